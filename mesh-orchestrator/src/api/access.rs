//! Who may do what: whoever can open the Unix socket may do all, others need a bearer token with the scope.

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

/// How often a token is looked at again that has a stream open.
const LOOK: Duration = Duration::from_secs(1);

/// How callers of a listener are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By having come this far: a Unix socket that only root may open, or another agent whose certificate
    /// was verified. They may do everything.
    Trusted,
    /// By a bearer token, which says what they may do.
    Tokens,
}

/// Lets a request in, or not.
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
        format!("the token does not allow this: it needs the scope {needed}"),
    ))
}

/// The token that a request was let in by, if it was one.
pub(super) fn token(access: Access, headers: &HeaderMap) -> Option<Zeroizing<String>> {
    match access {
        Access::Trusted => None,
        Access::Tokens => bearer(headers).ok().map(|token| Zeroizing::new(token.to_owned())),
    }
}

/// Ends a stream soon after the token that opened it; other answers are not changed.
pub(super) fn while_valid(api: &Api, token: Zeroizing<String>, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    // What is not a stream is whole already.
    if body.size_hint().exact().is_some() {
        return Response::from_parts(parts, body);
    }
    // A stream must not keep what it comes from.
    let api = api.downgrade();
    let ended = Box::pin(async move {
        loop {
            sleep(LOOK).await;
            let Some(api) = api.upgrade() else {
                return;
            };
            // A store that is away takes nothing from anybody.
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
                "a token is needed: send Authorization: Bearer <token> (meshctl token create makes one)",
            )
        })
}
