//! Who may do what: whoever can open the Unix socket may do all, others need a bearer token with the scope.

use axum::http::{HeaderMap, StatusCode, header};

use super::{Api, error::ApiError, tokens, types::Scope};

/// How callers of a listener are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By having come this far: a Unix socket that only root may open, or another agent whose certificate
    /// was verified. They may do everything.
    Trusted,
    /// By a bearer token, which says what they may do.
    Tokens,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// The machine's administrator, or a verified agent.
    Administrator,
    /// Whoever has a token.
    Token {
        /// Its name.
        name: String,
        /// What it allows.
        scopes: Vec<Scope>,
    },
    /// Nobody in particular.
    Anyone,
}

impl Caller {
    /// As histories name it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Administrator => "root".to_owned(),
            Self::Token { name, .. } => format!("token {name}"),
            Self::Anyone => "anyone".to_owned(),
        }
    }

    /// Whether it may do what needs a scope.
    pub(super) fn may(&self, needed: Scope) -> bool {
        match self {
            Self::Administrator => true,
            Self::Token { scopes, .. } => scopes.iter().any(|scope| scope.allows(needed)),
            Self::Anyone => false,
        }
    }
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
        Access::Tokens => tokens::authenticate(api, bearer(headers)?).await?,
    };
    if caller.may(needed) {
        return Ok(caller);
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        format!("the token does not allow this: it needs the scope {needed}"),
    ))
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
