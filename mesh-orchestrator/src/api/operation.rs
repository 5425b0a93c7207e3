//! One operation of the API: method, path, required scope, input, answer and handler. The router and the
//! OpenAPI document are both generated from these, so that they cannot differ.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    http::{Method, StatusCode},
    response::Response,
};
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, SchemaGenerator};

use super::{
    call::Call,
    error::ApiError,
    input::{Argument, Body, Input, Precondition, SchemaOf},
    types::{Resource, Scope},
};
use crate::spec::MAX_SPEC_BYTES;

/// How long most operations may take, as they may have to wait for the store.
const PATIENCE: Duration = Duration::from_secs(40);

type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Response, ApiError>> + Send + Sync>;

/// One operation.
#[derive(Clone)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// Its name in clients that are generated from the document.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    /// The scope that a token must have; `None` if no token is needed.
    pub(super) needs: Option<Scope>,
    pub(super) input: Input,
    pub(super) answer: Answer,
    pub(super) patience: Duration,
    pub(super) handler: Handler,
}

/// The answer of a successful operation.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    /// Schema of the whole body, or of each line or event of a stream.
    pub(super) schema: Option<SchemaOf>,
    /// Whether the header `ETag` contains the revision.
    pub(super) tagged: bool,
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.method, self.path)
    }
}

impl Operation {
    pub(super) fn new<F, A>(
        method: Method,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Self
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        Self {
            method,
            path,
            id,
            summary,
            needs: Some(Scope::All),
            input: Input {
                arguments: &[],
                precondition: Precondition::None,
                body: Body::None,
            },
            answer: Answer {
                status: StatusCode::NO_CONTENT,
                content_type: "application/json",
                schema: None,
                tagged: false,
            },
            patience: PATIENCE,
            handler: Arc::new(move |call| Box::pin(handler(call))),
        }
    }

    /// Requires the scope to read a kind of object.
    pub(super) fn reads(mut self, resource: Resource) -> Self {
        self.needs = Some(Scope::Read(resource));
        self
    }

    /// Requires the scope to change a kind of object.
    pub(super) fn writes(mut self, resource: Resource) -> Self {
        self.needs = Some(Scope::Write(resource));
        self
    }

    /// Requires no token.
    pub(super) fn open(mut self) -> Self {
        self.needs = None;
        self
    }

    pub(super) fn arguments(mut self, arguments: &'static [Argument]) -> Self {
        self.input.arguments = arguments;
        self
    }

    pub(super) fn precondition(mut self, precondition: Precondition) -> Self {
        self.input.precondition = precondition;
        self
    }

    /// Takes JSON.
    pub(super) fn takes<T: JsonSchema>(mut self) -> Self {
        self.input.body = Body::Json {
            schema: SchemaGenerator::subschema_for::<T>,
            content_type: "application/json",
            limit: MAX_SPEC_BYTES,
            optional: false,
        };
        self
    }

    /// Takes a merge patch (RFC 7396).
    pub(super) fn takes_patch<T: JsonSchema>(mut self) -> Self {
        self.input.body = Body::Json {
            schema: SchemaGenerator::subschema_for::<T>,
            content_type: "application/merge-patch+json",
            limit: MAX_SPEC_BYTES,
            optional: false,
        };
        self
    }

    /// Makes the body optional.
    pub(super) fn or_nothing(mut self) -> Self {
        if let Body::Json { optional, .. } = &mut self.input.body {
            *optional = true;
        }
        self
    }

    /// Raises the limit of the body, in bytes.
    pub(super) fn up_to(mut self, bytes: usize) -> Self {
        if let Body::Json { limit, .. } = &mut self.input.body {
            *limit = bytes;
        }
        self
    }

    /// Accepts any body and ignores it.
    pub(super) fn ignores_body(mut self, limit: usize) -> Self {
        self.input.body = Body::Ignored { limit };
        self
    }

    pub(super) fn answers<T: JsonSchema>(mut self, status: StatusCode) -> Self {
        self.answer.status = status;
        self.answer.schema = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// Answers with a stream of lines or events.
    pub(super) fn streams<T: JsonSchema>(mut self, content_type: &'static str) -> Self {
        self.answer.content_type = content_type;
        self.answers::<T>(StatusCode::OK)
    }

    /// Answers with an `ETag`.
    pub(super) fn tagged(mut self) -> Self {
        self.answer.tagged = true;
        self
    }

    pub(super) fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}
