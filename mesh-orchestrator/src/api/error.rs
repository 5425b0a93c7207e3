//! Turns errors into answers: status, body and headers. Imports every error that a handler can return.

use std::error::Error;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_support::error_chain;
use serde_json::Value;

use super::types::{ErrorAnswer, ErrorDetail};
use crate::{
    backups::BackupError,
    cluster::ChangeError,
    commands::CommandError,
    objects::Refused,
    secrets::VaultError,
    spec::SpecError,
    store::{
        InvalidKey, StoreError,
        revisions::{RevisionError, RevisionId},
    },
};

/// The failure of a request.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    // Boxed, to keep results small: most are successes.
    detail: Box<ErrorDetail>,
    /// Seconds after which the client may try again.
    retry_after: Option<u64>,
    /// The current revision, if the request named another one.
    current: Option<RevisionId>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            detail: Box::new(ErrorDetail {
                message: message.into(),
                ..ErrorDetail::default()
            }),
            retry_after: None,
            current: None,
        }
    }

    /// From an error and its sources.
    pub(super) fn caused(status: StatusCode, error: &dyn Error) -> Self {
        Self::new(status, error_chain(error))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// An invalid value of a field; `allowed` completes the sentence "must be …".
    pub(super) fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        allowed: impl Into<String>,
    ) -> Self {
        let (field, value, allowed) = (field.into(), value.into(), allowed.into());
        Self::bad_request(format!("{field}: {value} is invalid: must be {allowed}"))
            .about(field, value)
            .allowing(allowed)
    }

    pub(super) fn about(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.detail.field = Some(field.into());
        self.detail.value = Some(value.into());
        self
    }

    pub(super) fn allowing(mut self, allowed: impl Into<String>) -> Self {
        self.detail.allowed = Some(allowed.into());
        self
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(super) fn with_current(mut self, current: RevisionId) -> Self {
        self.current = Some(current);
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message = self.detail.message, "a request failed");
        }
        let answer = ErrorAnswer { error: *self.detail };
        let mut response = (self.status, Json(answer)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(current) = self.current.and_then(|current| entity_tag(&current)) {
            headers.insert(header::ETAG, current);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A revision in the form of an `ETag`.
pub(super) fn entity_tag(revision: &RevisionId) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{revision}\"")).ok()
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        let message = error.to_string();
        match error {
            SpecError::Invalid {
                field,
                value,
                allowed,
            } => Self::bad_request(message).about(field, value).allowing(allowed),
            SpecError::UnknownField { path, field, nearest } => {
                let whole = ["specification", "request"].contains(&path.as_str());
                let field_path = if whole {
                    field.clone()
                } else {
                    format!("{path}.{field}")
                };
                let error = Self::bad_request(message).about(field_path, Value::Null);
                match nearest {
                    Some(nearest) => error.allowing(nearest),
                    None => error,
                }
            }
            SpecError::Malformed { path, .. } => Self::bad_request(message).about(path, Value::Null),
            SpecError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            SpecError::DependencyCycle { cycle } => Self::bad_request(message).about("depends_on", cycle),
        }
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let message = error_chain(&error);
        match error {
            CommandError::Spec(error) => {
                let mut answer = Self::from(error);
                // The specification is valid, but another service has the port.
                if answer
                    .detail
                    .field
                    .as_deref()
                    .is_some_and(|field| field.starts_with("endpoint_spec.ports"))
                {
                    answer.status = StatusCode::CONFLICT;
                }
                answer
            }
            CommandError::NameTaken(name) => Self::conflict(message)
                .about("name", name)
                .allowing("a name that no other service has"),
            CommandError::UnknownService(_) | CommandError::UnknownNode(_) => Self::not_found(message),
            CommandError::OutOfDate { .. } => Self::new(StatusCode::PRECONDITION_FAILED, message),
            CommandError::NothingToRollBack(_)
            | CommandError::NodeNotDown(_)
            | CommandError::WorkerNotDown(_)
            | CommandError::NodeUnknown(_) => Self::conflict(message),
            CommandError::ModeChange { from, to, .. } => {
                Self::bad_request(message).about("mode", to).allowing(from)
            }
            CommandError::NotReplicated(_) => Self::bad_request(message),
            CommandError::NodeName(name) => Self::bad_request(message).about("name", name),
            CommandError::NodeExists(name) => Self::conflict(message).about("name", name),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let message = error_chain(&error);
        match error {
            ChangeError::Command(error) => error.into(),
            ChangeError::Refused(error) => error.into(),
            ChangeError::Store(error) => error.into(),
            ChangeError::Revision(error) => error.into(),
            ChangeError::Backup(error) => error.into(),
            ChangeError::Name(error) => error.into(),
            ChangeError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            ChangeError::Contended { .. } => Self::conflict(message).retry_after(1),
            ChangeError::Behind { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(1),
            ChangeError::Restoring | ChangeError::NotLeader => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(5)
            }
            ChangeError::Unwritable(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(error: Refused) -> Self {
        let status = match &error {
            Refused::UnknownService(_) | Refused::UnknownNode(_) | Refused::UnknownTask(_) => {
                StatusCode::NOT_FOUND
            }
            Refused::NameTaken(_) | Refused::TaskExists(_) | Refused::Backwards { .. } => {
                StatusCode::CONFLICT
            }
        };
        Self::caused(status, &error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error_chain(&error);
        match error {
            StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(5)
            }
            StoreError::Conflict { .. } => Self::conflict(message),
            StoreError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            // Including errors of future stores.
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<RevisionError> for ApiError {
    fn from(error: RevisionError) -> Self {
        let message = error_chain(&error);
        match error {
            RevisionError::Missing { .. } => Self::not_found(message),
            RevisionError::NotKept { number, kept, .. } => {
                let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
                Self::not_found(message)
                    .about("revision", number)
                    .allowing(kept.join(", "))
            }
            RevisionError::Name(error) => error.into(),
            RevisionError::Store(error) => error.into(),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        let message = error_chain(&error);
        match error {
            VaultError::Name { .. } => Self::bad_request(message),
            VaultError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            VaultError::Exists { .. } | VaultError::NotPrepared => Self::conflict(message),
            VaultError::Missing { .. } => Self::not_found(message),
            VaultError::Store(error) => error.into(),
            VaultError::NoKey { .. } | VaultError::KeyFile(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let message = error_chain(&error);
        match error {
            BackupError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::not_found(message)
            }
            BackupError::NotEmpty(_) | BackupError::TooNew { .. } => Self::conflict(message),
            BackupError::NotABackup(_) | BackupError::Damaged { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
            }
            BackupError::Store(error) => error.into(),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<InvalidKey> for ApiError {
    fn from(error: InvalidKey) -> Self {
        Self::caused(StatusCode::BAD_REQUEST, &error)
    }
}
