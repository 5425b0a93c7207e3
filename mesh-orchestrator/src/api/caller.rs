//! Who makes a request, and what they may do.

use super::types::Scope;

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
