//! An authorized request: the caller, the path's segments, the query's arguments and the body, all of bounded
//! size.

use std::sync::{Mutex, PoisonError};

use axum::{
    body::{Body as HttpBody, Bytes, to_bytes},
    extract::path::RawPathParams,
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Api,
    caller::Caller,
    error::ApiError,
    input::{Body, Input, Precondition},
};
use crate::{
    spec::{nearest, read_json},
    store::revisions::{Author, RevisionId},
};

/// An authorized request. Not `Debug`, because headers and body may contain secrets.
pub(super) struct Call {
    pub(super) api: Api,
    pub(super) caller: Caller,
    segments: Vec<(String, String)>,
    arguments: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
    /// A body that is ignored, with its limit.
    skipped: Mutex<Option<(HttpBody, usize)>>,
}

impl Call {
    /// Reads the parts of a request that its operation takes.
    pub(super) async fn read(
        api: Api,
        caller: Caller,
        input: &Input,
        segments: &RawPathParams,
        parts: Parts,
        body: HttpBody,
    ) -> Result<Self, ApiError> {
        let arguments = arguments(input, parts.uri.query().unwrap_or_default())?;
        let mut skipped = None;
        let (body, optional) = match input.body {
            // Do not wait for a body that is not read.
            Body::None => (Bytes::new(), true),
            // Anyone may have sent it: nothing is read before the handler knows the caller.
            Body::Ignored { limit } => {
                skipped = Some((body, limit));
                (Bytes::new(), true)
            }
            Body::Json { limit, optional, .. } => (read(body, limit).await?, optional),
        };
        if body.is_empty() && !optional {
            return Err(ApiError::bad_request("the request has no body: send JSON"));
        }
        if input.precondition == Precondition::Required && !parts.headers.contains_key(header::IF_MATCH) {
            return Err(ApiError::new(
                StatusCode::PRECONDITION_REQUIRED,
                "the header If-Match is missing: send the ETag of the service that was read, so that no other change is \
                 overwritten",
            )
            .about("If-Match", Value::Null));
        }
        Ok(Self {
            api,
            caller,
            segments: segments
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            arguments,
            headers: parts.headers,
            body,
            skipped: Mutex::new(skipped),
        })
    }

    /// Reads the body of an operation that ignores it.
    ///
    /// # Errors
    /// When it is longer than its limit, or cut off.
    pub(super) async fn skip_body(&self) -> Result<(), ApiError> {
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match skipped {
            Some((body, limit)) => read(body, limit).await.map(drop),
            None => Ok(()),
        }
    }

    /// A segment of the path, by its name in the operation's path.
    pub(super) fn segment(&self, name: &str) -> &str {
        self.segments
            .iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    }

    /// A query argument.
    pub(super) fn argument(&self, name: &str) -> Option<&str> {
        self.arguments(name).next()
    }

    /// All values of a query argument that may be repeated.
    pub(super) fn arguments(&self, name: &str) -> impl Iterator<Item = &str> {
        self.arguments
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean query argument: `follow`, `follow=true`, `follow=1`.
    pub(super) fn switch(&self, name: &str) -> Result<bool, ApiError> {
        match self.argument(name) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(ApiError::invalid(name, other, "true or false")),
        }
    }

    /// A numeric query argument.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.argument(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::invalid(name, text, "a number"))
            })
            .transpose()
    }

    /// A header, if it is present and text.
    pub(super) fn header(&self, name: &header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body.
    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Parses the body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        Ok(read_json(body, "request")?)
    }

    /// The revision in `If-Match`; `None` without the header, or for `*`.
    pub(super) fn if_match(&self) -> Result<Option<RevisionId>, ApiError> {
        let Some(value) = self.headers.get(header::IF_MATCH) else {
            return Ok(None);
        };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(None);
        }
        // Quoted as HTTP demands, or unquoted as people type it.
        let bare = text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .unwrap_or(text);
        bare.parse()
            .map(Some)
            .map_err(|_| ApiError::invalid("If-Match", text, "one revision such as \"3-9f2c04ab\", or *"))
    }

    /// The author of a change by the caller, now.
    pub(super) fn author(&self, action: impl Into<String>) -> Author {
        self.api.cluster().author(self.caller.name(), action)
    }
}

async fn read(body: HttpBody, limit: usize) -> Result<Bytes, ApiError> {
    to_bytes(body, limit).await.map_err(|error| {
        if std::error::Error::source(&error)
            .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>())
        {
            too_large(limit)
        } else {
            ApiError::bad_request("the request body was cut off: send the request again")
        }
    })
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request body is too large: at most {limit} bytes are allowed"),
    )
}

/// The query's arguments, all of which the operation must know.
fn arguments(input: &Input, query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let mut arguments: Vec<(String, String)> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let names = || input.arguments.iter().map(|argument| argument.name);
        let Some(known) = input.arguments.iter().find(|argument| argument.name == name) else {
            let hint = nearest(&name, names())
                .map(|nearest| format!(": did you mean {nearest:?}?"))
                .unwrap_or_default();
            let known: Vec<&str> = names().collect();
            return Err(
                ApiError::bad_request(format!("unknown query argument {name:?}{hint}"))
                    .about(name.into_owned(), value.into_owned())
                    .allowing(known.join(", ")),
            );
        };
        if !known.repeats && arguments.iter().any(|(other, _)| *other == name) {
            return Err(ApiError::invalid(
                known.name,
                value.into_owned(),
                "given only once",
            ));
        }
        arguments.push((name.into_owned(), value.into_owned()));
    }
    Ok(arguments)
}
