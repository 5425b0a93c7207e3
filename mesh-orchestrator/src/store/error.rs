//! What can go wrong in a store, told so that a caller knows what to do next. Depends on `key` and
//! `transaction`.

use super::{Expected, Key, Revision};

/// Any failure's cause.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else changed a key since it was read. Nothing was changed.
    #[error("{key} was changed by somebody else: expected {expected}, found {}; read it again and repeat the change", describe(.found))]
    Conflict {
        /// The first key, in key order, that is not as expected.
        key: Key,
        /// What the transaction expected.
        expected: Expected,
        /// The revision the key was last changed at; `None` where there is no such key.
        found: Option<Revision>,
    },
    /// The store cannot be reached or cannot write. Nothing was changed, and nothing can be until it is back.
    #[error(
        "could not {operation} in {store}: it is not available, so nothing was changed; tasks and traffic go on, changes wait until it is back ({advice})"
    )]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Which store: a file, or endpoints.
        store: String,
        /// What a person can look at.
        advice: &'static str,
        /// The cause.
        source: Source,
    },
    /// The store went away while it committed: the transaction is either whole in it or not at all.
    #[error(
        "could not learn from {store} whether a transaction was committed; it is there as a whole or not at all: read it again before repeating it"
    )]
    OutcomeUnknown {
        /// Which store: a file, or endpoints.
        store: String,
        /// The cause.
        source: Source,
    },
    /// The changes after a revision are no longer kept. List everything anew and watch from there.
    #[error(
        "the changes after revision {requested} are no longer kept (oldest: {oldest}); list everything anew and watch from there"
    )]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can be watched from.
        oldest: Revision,
    },
    /// More than one transaction may carry, in any store.
    #[error("a transaction of {found} {what} is too large; the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// A newer release has written the store. It was left as it is.
    #[error(
        "{store} was written by a newer release (schema {found}, this release knows up to {known}); it was left as it is: install the newer release, or restore a backup into an empty store"
    )]
    TooNew {
        /// Which store: a file, or endpoints.
        store: String,
        /// The schema version found.
        found: u64,
        /// The newest schema version known.
        known: u64,
    },
    /// What is stored makes no sense. It was left as it is.
    #[error(
        "{store} is damaged ({detail}); it was left as it is: move it away and restore the newest backup"
    )]
    Corrupt {
        /// Which store: a file, or endpoints.
        store: String,
        /// What does not make sense.
        detail: String,
    },
}

impl StoreError {
    /// Whether the store is (or was, at a bad moment) out of reach, so that trying again later can help.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::OutcomeUnknown { .. })
    }

    /// Whether somebody else was faster, so that reading again and repeating the change can help.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

fn describe(found: &Option<Revision>) -> String {
    found.map_or_else(|| "nothing".to_owned(), |revision| format!("revision {revision}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_and_keeps_its_source_apart() {
        let error = StoreError::Unavailable {
            operation: "commit",
            store: "/var/lib/mesh/store.redb".to_owned(),
            advice: "is the disk full?",
            source: "no space left on device".into(),
        };
        let text = error.to_string();
        assert!(
            text.contains("store.redb") && text.contains("is the disk full?"),
            "{text}"
        );
        assert!(!text.contains("no space left"), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_conflict_names_key_expected_and_found() {
        let error = StoreError::Conflict {
            key: "/services/web".parse().unwrap(),
            expected: Expected::At(Revision(3)),
            found: None,
        };
        assert_eq!(
            error.to_string(),
            "/services/web was changed by somebody else: expected revision 3, found nothing; \
             read it again and repeat the change"
        );
    }
}
