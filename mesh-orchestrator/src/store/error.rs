//! What can go wrong in a store, and what to do about it. Depends on `key` and
//! `transaction`.

use super::{Expected, Key, Revision};

/// Any failure's cause.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a store refused a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another writer changed a key since it was read. Nothing was changed.
    #[error("another writer changed {key}: expected {expected}, found {}; read it again and repeat the change", describe(.found))]
    Conflict {
        /// The first key, in key order, that is not as expected.
        key: Key,
        /// What the transaction expected.
        expected: Expected,
        /// The revision at which the key was last changed; `None` if there is no such key.
        found: Option<Revision>,
    },
    /// The store cannot be reached or cannot write. Nothing was changed, and nothing can be until it
    /// recovers.
    #[error(
        "could not {operation} in {store}: it is unavailable, so nothing was changed; tasks and traffic go on, changes wait until it is available again ({advice})"
    )]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Which store: a file, or endpoints.
        store: String,
        /// What to check.
        advice: &'static str,
        /// The cause.
        source: Source,
    },
    /// The store became unavailable during a commit: it has the whole transaction or nothing of it.
    #[error(
        "{store} did not answer whether it committed a transaction, which is there as a whole or not at all; read again before repeating the change"
    )]
    OutcomeUnknown {
        /// Which store: a file, or endpoints.
        store: String,
        /// The cause.
        source: Source,
    },
    /// The changes after a revision are no longer kept. List everything again and watch from there.
    #[error(
        "the changes after revision {requested} are no longer kept (oldest: {oldest}); list everything again and watch from there"
    )]
    Compacted {
        /// The requested revision.
        requested: Revision,
        /// The oldest revision that can be watched from.
        oldest: Revision,
    },
    /// Larger than a transaction may be, in any store.
    #[error("a transaction of {found} {what} is too large; the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A newer release wrote the store. It was not changed.
    #[error(
        "{store} was written by a newer release (schema {found}, this release knows up to {known}) and was not changed; install the newer release, or restore a backup into an empty store"
    )]
    TooNew {
        /// Which store: a file, or endpoints.
        store: String,
        /// The schema version found.
        found: u64,
        /// The newest schema version known.
        known: u64,
    },
    /// The stored data is inconsistent. It was not changed.
    #[error("{store} is damaged ({detail}) and was not changed; move it away and restore the newest backup")]
    Corrupt {
        /// Which store: a file, or endpoints.
        store: String,
        /// What is wrong.
        detail: String,
    },
}

impl StoreError {
    /// Whether the store is or was unavailable, so that trying again later can help.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::OutcomeUnknown { .. })
    }

    /// Whether another writer was faster, so that reading again and repeating the change can help.
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
    fn an_error_says_what_to_do_and_leaves_out_its_source() {
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
            "another writer changed /services/web: expected revision 3, found nothing; \
             read it again and repeat the change"
        );
    }
}
