//! Who makes a request, and what they may do.

use axum::http::StatusCode;

use super::{
    admission::{Refusal, Rules},
    error::ApiError,
    types::Scope,
};
use crate::spec::ServiceSpec;

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// The machine's administrator, or a verified agent.
    Administrator,
    /// The holder of a token.
    Token {
        /// Its name.
        name: String,
        /// Its scopes.
        scopes: Vec<Scope>,
        /// What it allows its holder's services.
        rules: Rules,
    },
    /// An unknown caller, of an operation that needs no scope.
    Anyone,
}

impl Caller {
    /// The caller's name in histories.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Administrator => "root".to_owned(),
            Self::Token { name, .. } => format!("token {name}"),
            Self::Anyone => "anyone".to_owned(),
        }
    }

    /// Whether the caller has a scope.
    pub(super) fn may(&self, needed: Scope) -> bool {
        match self {
            Self::Administrator => true,
            Self::Token { scopes, .. } => scopes.iter().any(|scope| scope.allows(needed)),
            Self::Anyone => false,
        }
    }

    /// Checks that the caller may have such a service.
    pub(super) fn admit(&self, spec: &ServiceSpec) -> Result<(), ApiError> {
        let Self::Token { rules, .. } = self else {
            return Ok(());
        };
        if self.may(Scope::All) {
            return Ok(());
        }
        rules.check(spec).map_err(|Refusal { field, value, needs }| {
            ApiError::new(
                StatusCode::FORBIDDEN,
                format!("{field}: {value:?} is not allowed by the token: it needs {needs}"),
            )
            .about(field, value)
        })
    }
}
