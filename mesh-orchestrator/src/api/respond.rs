//! The answers of successful operations.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::error::{ApiError, entity_tag};
use crate::store::revisions::RevisionId;

/// A JSON answer with the given status.
pub(super) fn json(status: StatusCode, answer: &impl Serialize) -> Result<Response, ApiError> {
    let text = serde_json::to_vec(answer)
        .map_err(|error| ApiError::caused(StatusCode::INTERNAL_SERVER_ERROR, &error))?;
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((status, content_type, text).into_response())
}

/// A JSON answer with the status 200.
pub(super) fn ok(answer: &impl Serialize) -> Result<Response, ApiError> {
    json(StatusCode::OK, answer)
}

/// A JSON answer with the revision as its `ETag`.
pub(super) fn tagged(
    status: StatusCode,
    revision: &RevisionId,
    answer: &impl Serialize,
) -> Result<Response, ApiError> {
    let mut response = json(status, answer)?;
    if let Some(tag) = entity_tag(revision) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// An answer without a body.
pub(super) fn no_content() -> Result<Response, ApiError> {
    Ok(StatusCode::NO_CONTENT.into_response())
}
