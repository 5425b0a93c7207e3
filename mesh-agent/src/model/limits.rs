//! How many new connections a service takes, as its labels say. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Limits of new connections, per second and node, for each published port. New flows of UDP count as such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many there may be (label `mesh.max-new-connections`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new: Option<u32>,
    /// How many of one client (label `mesh.max-new-connections-per-source`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_per_source: Option<u32>,
    /// Past how many connections get no flow entries until they are open; 0 for never (label
    /// `mesh.flood-limit`). `None` for the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flood: Option<u32>,
}

impl Limits {
    /// Whether no label says anything.
    #[must_use]
    pub fn are_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether connections can be refused.
    #[must_use]
    pub fn refuse(&self) -> bool {
        self.max_new.is_some() || self.max_new_per_source.is_some()
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            ("max-new-connections", self.max_new),
            ("max-new-connections-per-source", self.max_new_per_source),
            ("flood-limit", self.flood),
        ];
        let mut shown = named.iter().filter_map(|(name, limit)| Some((name, (*limit)?)));
        if let Some((name, limit)) = shown.next() {
            write!(formatter, "{name} {limit}")?;
        }
        shown.try_for_each(|(name, limit)| write!(formatter, ", {name} {limit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_shown() {
        assert_eq!(Limits::default().to_string(), "");
        let limits = Limits {
            max_new: Some(100),
            flood: Some(0),
            ..Limits::default()
        };
        assert_eq!(limits.to_string(), "max-new-connections 100, flood-limit 0");
    }
}
