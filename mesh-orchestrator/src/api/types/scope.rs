//! The scopes of tokens: `services:read`, `secrets:write`, `all`.

use std::{fmt, str::FromStr};

use crate::by_text::by_text;

/// A kind of object that scopes refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Services with their tasks, history and logs, and the event stream.
    Services,
    /// Nodes.
    Nodes,
    /// Secrets.
    Secrets,
    /// Configs.
    Configs,
    /// Credentials for registries.
    Registries,
    /// Webhooks; `webhooks:read` includes their secret URLs.
    Webhooks,
    /// Backups.
    Backups,
    /// Tokens.
    Tokens,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Services,
        Self::Nodes,
        Self::Secrets,
        Self::Configs,
        Self::Registries,
        Self::Webhooks,
        Self::Backups,
        Self::Tokens,
    ];

    /// Its name in scopes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Nodes => "nodes",
            Self::Secrets => "secrets",
            Self::Configs => "configs",
            Self::Registries => "registries",
            Self::Webhooks => "webhooks",
            Self::Backups => "backups",
            Self::Tokens => "tokens",
        }
    }
}

/// A permission of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To read objects of a kind.
    Read(Resource),
    /// To create, change, remove and read objects of a kind.
    Write(Resource),
    /// Everything.
    All,
}

impl Scope {
    /// Whether this scope includes another.
    #[must_use]
    pub fn allows(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::All, _) => true,
            (Self::Write(mine), Self::Write(theirs) | Self::Read(theirs))
            | (Self::Read(mine), Self::Read(theirs)) => mine == theirs,
            (Self::Read(_) | Self::Write(_), _) => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(resource) => write!(formatter, "{}:read", resource.name()),
            Self::Write(resource) => write!(formatter, "{}:write", resource.name()),
            Self::All => formatter.write_str("all"),
        }
    }
}

/// The text is not a scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid scope {text:?}: use all, <kind>:read or <kind>:write, where <kind> is one of {kinds}", text = .0, kinds = kinds())]
pub struct InvalidScope(String);

fn kinds() -> String {
    Resource::ALL.map(Resource::name).join(", ")
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        if text == "all" {
            return Ok(Self::All);
        }
        let parsed = text.split_once(':').and_then(|(name, access)| {
            let resource = Resource::ALL.into_iter().find(|one| one.name() == name)?;
            match access {
                "read" => Some(Self::Read(resource)),
                "write" => Some(Self::Write(resource)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| InvalidScope(text.to_owned()))
    }
}

by_text!(
    Scope,
    "^(all|[a-z]+:(read|write))$",
    "A permission of a token: `services:read`, `secrets:write`, `all`."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_parsed_from_its_text() {
        let all = Resource::ALL
            .into_iter()
            .flat_map(|one| [Scope::Read(one), Scope::Write(one)]);
        for scope in all.chain([Scope::All]) {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for wrong in ["", "services", "services:delete", "service:read", "ALL"] {
            let error = wrong.parse::<Scope>().unwrap_err().to_string();
            assert!(error.contains("services, nodes"), "{error}");
        }
    }

    #[test]
    fn write_includes_read_of_the_same_kind_only() {
        let (read, write) = (Scope::Read(Resource::Nodes), Scope::Write(Resource::Nodes));
        assert!(write.allows(read) && write.allows(write) && read.allows(read));
        assert!(!read.allows(write));
        assert!(!write.allows(Scope::Read(Resource::Secrets)) && !write.allows(Scope::All));
        assert!(Scope::All.allows(write) && Scope::All.allows(Scope::All));
    }
}
