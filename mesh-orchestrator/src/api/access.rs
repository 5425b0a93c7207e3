//! Who may do what: callers on the Unix socket may do everything, others need a bearer token with the scope.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use futures_util::StreamExt;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::{Api, caller::Caller, credentials::authenticate, error::ApiError, types::Scope};

/// How often the token of an open stream is checked again.
const RECHECK: Duration = Duration::from_secs(1);

/// How the callers of a listener are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the listener itself: a Unix socket that only root can open, or TLS with the verified certificate of
    /// another agent. They may do everything.
    Trusted,
    /// By a bearer token, whose scopes say what they may do.
    Tokens,
}

/// Authenticates the caller and checks that it has the scope that the operation needs.
pub(super) async fn admit(
    api: &Api,
    access: Access,
    needed: Option<Scope>,
    headers: &HeaderMap,
) -> Result<Caller, ApiError> {
    let Some(needed) = needed else {
        return Ok(Caller::Anyone);
    };
    let caller = match access {
        Access::Trusted => Caller::Administrator,
        Access::Tokens => authenticate(api, bearer(headers)?).await?,
    };
    if caller.may(needed) {
        return Ok(caller);
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        format!("the token does not have the scope {needed}, which this operation needs"),
    ))
}

/// The token that a request was authenticated by, if it was.
pub(super) fn token(access: Access, headers: &HeaderMap) -> Option<Zeroizing<String>> {
    match access {
        Access::Trusted => None,
        Access::Tokens => bearer(headers).ok().map(|token| Zeroizing::new(token.to_owned())),
    }
}

/// Ends a streamed response soon after the token that opened it becomes invalid. Other responses are
/// unchanged.
pub(super) fn while_valid(api: &Api, token: Zeroizing<String>, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    // A body of known size is not a stream.
    if body.size_hint().exact().is_some() {
        return Response::from_parts(parts, body);
    }
    // A stream must not keep the API alive.
    let api = api.downgrade();
    let ended = Box::pin(async move {
        loop {
            sleep(RECHECK).await;
            let Some(api) = api.upgrade() else {
                return;
            };
            // While the store is unavailable, streams stay open.
            if let Err(error) = authenticate(&api, &token).await
                && error.status() == StatusCode::UNAUTHORIZED
            {
                return;
            }
        }
    });
    let stream = body.into_data_stream().take_until(ended);
    Response::from_parts(parts, Body::from_stream(stream))
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "a token is required: send Authorization: Bearer <token> (create one with meshctl token create)",
            )
        })
}
