//! What a worker's agent and a manager's say to each other, as JSON. Plain data; depends on the store's plain
//! data.

use serde::{Deserialize, Serialize};

use crate::store::{Entry, Event, Expected, Key, Revision, StoreError, Transaction, WatchBatch, Write};

/// What a worker asks a manager for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// One object.
    Get {
        /// Its key.
        key: Key,
    },
    /// A transaction.
    Commit {
        /// What it expects: the revision of the last change, or that there is no such key.
        expected: Vec<(Key, Option<Revision>)>,
        /// What it writes; without a value, the key is removed.
        writes: Vec<(Key, Option<String>)>,
        /// The lease under which it is committed.
        lease: Option<i64>,
    },
    /// A lease, with the time between two heartbeats and how many may be missed.
    Lease {
        /// In milliseconds.
        interval: u64,
        /// How many.
        missed: u32,
    },
    /// A heartbeat.
    Renew {
        /// The lease.
        lease: i64,
    },
    /// The end of a lease.
    Revoke {
        /// The lease.
        lease: i64,
    },
    /// A secret, config or credential in clear text.
    Reveal {
        /// Its kind, as the first segment of its key.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The number of the node's block of addresses.
    Block,
}

/// What a manager answers. Not `Debug`, as it may be a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// An object, if there is one.
    Entry(Option<Sent>),
    /// The revision of a transaction.
    Revision(Revision),
    /// A lease's identifier.
    Lease(i64),
    /// A value in base 64, if there is one.
    Value(Option<String>),
    /// The number of a block of addresses.
    Block(u32),
    /// It is done.
    Done,
    /// It is not.
    Failed(Failure),
}

/// Why a manager did not do what a worker asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Another writer changed a key.
    Conflict {
        /// The key.
        key: Key,
        /// What was expected.
        expected: Option<Revision>,
        /// What was found.
        found: Option<Revision>,
    },
    /// The transaction is too large.
    TooLarge {
        /// How many bytes or operations there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The store did not answer whether it has committed.
    OutcomeUnknown(String),
    /// The manager cannot do it now; another one may.
    Unavailable(String),
    /// The worker may not do it.
    Refused(String),
    /// The manager does not have the lease.
    NoLease,
}

/// A part of what a worker may read, one a line: first all objects, then changes, without an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// Some of all objects.
    Part(Vec<Sent>),
    /// These were all, at this revision.
    Whole(Revision),
    /// In place of all objects: what follows is what has changed since the revision that the worker named.
    Resumed,
    /// A change.
    Change {
        /// Its revision.
        revision: Revision,
        /// What was put.
        put: Vec<Sent>,
        /// What was removed.
        delete: Vec<Key>,
    },
    /// Nothing has changed, and the manager's store answers.
    Alive,
    /// The manager shows nothing, or nothing more, and why.
    Failed(String),
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its key.
    pub key: Key,
    /// Its value: JSON.
    pub value: String,
    /// When it was last changed.
    pub modified: Revision,
}

impl From<Entry> for Sent {
    fn from(entry: Entry) -> Self {
        Self {
            key: entry.key,
            value: String::from_utf8_lossy(&entry.value).into_owned(),
            modified: entry.modified,
        }
    }
}

impl From<Sent> for Entry {
    fn from(sent: Sent) -> Self {
        Self {
            key: sent.key,
            value: sent.value.into_bytes(),
            created: sent.modified,
            modified: sent.modified,
            version: 1,
        }
    }
}

impl Frame {
    /// A change as one frame.
    #[must_use]
    pub fn change(batch: WatchBatch) -> Self {
        let (mut put, mut delete) = (Vec::new(), Vec::new());
        for event in batch.events {
            match event {
                Event::Put(entry) => put.push(entry.into()),
                Event::Delete(key) => delete.push(key),
            }
        }
        Self::Change {
            revision: batch.revision,
            put,
            delete,
        }
    }
}

impl Request {
    /// A transaction's request.
    #[must_use]
    pub fn commit(transaction: &Transaction, lease: Option<i64>) -> Self {
        let revision = |expected| match expected {
            Expected::Absent => None,
            Expected::At(revision) => Some(revision),
        };
        let value = |write: &Write| match write {
            Write::Put(value) => Some(String::from_utf8_lossy(value).into_owned()),
            Write::Delete => None,
        };
        Self::Commit {
            expected: transaction
                .conditions()
                .map(|(key, expected)| (key.clone(), revision(expected)))
                .collect(),
            writes: transaction
                .writes()
                .map(|(key, write)| (key.clone(), value(write)))
                .collect(),
            lease,
        }
    }

    /// Whether it may be sent to another manager when the answer of one was lost.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        !matches!(self, Self::Commit { .. })
    }
}

/// The transaction of a request.
#[must_use]
pub fn transaction(
    expected: Vec<(Key, Option<Revision>)>,
    writes: Vec<(Key, Option<String>)>,
) -> Transaction {
    let transaction = expected
        .into_iter()
        .fold(Transaction::new(), |all, (key, revision)| {
            all.expect(key, revision.map_or(Expected::Absent, Expected::At))
        });
    writes
        .into_iter()
        .fold(transaction, |all, (key, value)| match value {
            Some(value) => all.put(key, value),
            None => all.delete(key),
        })
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = mesh_support::error_chain(&error);
        match error {
            StoreError::Conflict { key, expected, found } => Self::Conflict {
                key,
                expected: match expected {
                    Expected::Absent => None,
                    Expected::At(revision) => Some(revision),
                },
                found,
            },
            StoreError::TooLarge { found, limit, .. } => Self::TooLarge { found, limit },
            StoreError::OutcomeUnknown { .. } => Self::OutcomeUnknown(text),
            StoreError::Unavailable { .. }
            | StoreError::Compacted { .. }
            | StoreError::TooNew { .. }
            | StoreError::Corrupt { .. } => Self::Unavailable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_survives_the_way() {
        let key = |name: &str| Key::new(["tasks", name]).unwrap();
        let sent = Transaction::new()
            .expect(key("a"), Expected::At(Revision(7)))
            .expect(key("b"), Expected::Absent)
            .put(key("a"), "{}")
            .delete(key("c"));
        let text = serde_json::to_string(&Request::commit(&sent, Some(5))).unwrap();
        let Request::Commit {
            expected,
            writes,
            lease,
        } = serde_json::from_str(&text).unwrap()
        else {
            panic!("{text}");
        };
        assert_eq!((transaction(expected, writes), lease), (sent, Some(5)));
    }
}
