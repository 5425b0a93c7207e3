//! Points in a store's history. Plain data; depends on nothing of ours.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A point in a store's history: each transaction that writes makes a new, higher one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What a transaction expects of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There is no such key.
    Absent,
    /// The key was last changed at this revision.
    At(Revision),
}

impl fmt::Display for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => formatter.write_str("nothing"),
            Self::At(revision) => write!(formatter, "revision {revision}"),
        }
    }
}

impl Expected {
    /// Whether it holds, given the revision at which the key was last changed.
    #[must_use]
    pub fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::At(revision) => found == Some(revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_compare_the_last_change() {
        assert!(Expected::Absent.holds(None) && !Expected::Absent.holds(Some(Revision(1))));
        assert!(Expected::At(Revision(1)).holds(Some(Revision(1))));
        assert!(!Expected::At(Revision(1)).holds(Some(Revision(2))));
        assert!(!Expected::At(Revision(1)).holds(None));
    }
}
