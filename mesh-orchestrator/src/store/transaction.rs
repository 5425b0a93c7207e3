//! A transaction: conditions on some keys and writes, all or nothing. Plain data; depends on `key` and `error`.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Key, StoreError};

/// The most conditions, and the most writes, of one transaction: what etcd allows by default.
pub const MAX_OPERATIONS: usize = 128;

/// The most bytes of one transaction, keys and values: what etcd allows by default (1.5 MiB), less its overhead.
pub const MAX_TRANSACTION_BYTES: usize = 1_500_000;

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

/// A write of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Set it to this value.
    Put(Vec<u8>),
    /// Remove it, if it exists.
    Delete,
}

/// Conditions and writes that are committed together or not at all.
///
/// A key has at most one condition and one write; a later one replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub(super) expected: BTreeMap<Key, Expected>,
    pub(super) writes: BTreeMap<Key, Write>,
}

impl Transaction {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Commits only if this holds for the key.
    #[must_use]
    pub fn expect(mut self, key: Key, expected: Expected) -> Self {
        self.expected.insert(key, expected);
        self
    }

    /// Sets the key to a value.
    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Vec<u8>>) -> Self {
        self.writes.insert(key, Write::Put(value.into()));
        self
    }

    /// Removes the key; no error if it does not exist.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.writes.insert(key, Write::Delete);
        self
    }

    /// The conditions, in key order.
    pub fn conditions(&self) -> impl ExactSizeIterator<Item = (&Key, Expected)> {
        self.expected.iter().map(|(key, expected)| (key, *expected))
    }

    /// The writes, in key order.
    pub fn writes(&self) -> impl ExactSizeIterator<Item = (&Key, &Write)> {
        self.writes.iter()
    }

    /// The size of its keys and values, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let conditions: usize = self.expected.keys().map(|key| key.as_str().len()).sum();
        let writes: usize = self
            .writes
            .iter()
            .map(|(key, write)| {
                let value = match write {
                    Write::Put(value) => value.len(),
                    Write::Delete => 0,
                };
                key.as_str().len() + value
            })
            .sum();
        conditions + writes
    }

    /// Checks the limits that all stores share, so that all of them accept the same transactions.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn check(&self) -> Result<(), StoreError> {
        let sizes = [
            ("conditions", self.expected.len(), MAX_OPERATIONS),
            ("writes", self.writes.len(), MAX_OPERATIONS),
            ("bytes", self.bytes(), MAX_TRANSACTION_BYTES),
        ];
        for (what, found, limit) in sizes {
            if found > limit {
                return Err(StoreError::TooLarge { what, found, limit });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: usize) -> Key {
        Key::new(["things", &name.to_string()]).unwrap()
    }

    #[test]
    fn all_stores_have_the_same_limits() {
        let most = (0..MAX_OPERATIONS).fold(Transaction::new(), |all, name| all.put(key(name), "x"));
        assert!(most.check().is_ok());
        let more = most.put(key(MAX_OPERATIONS), "x");
        assert!(matches!(
            more.check(),
            Err(StoreError::TooLarge { what: "writes", .. })
        ));
        let large = Transaction::new().put(key(0), vec![0; MAX_TRANSACTION_BYTES]);
        assert!(matches!(
            large.check(),
            Err(StoreError::TooLarge { what: "bytes", .. })
        ));
    }

    #[test]
    fn the_later_write_of_a_key_counts() {
        let transaction = Transaction::new().put(key(1), "a").delete(key(1));
        assert_eq!(
            transaction.writes().collect::<Vec<_>>(),
            [(&key(1), &Write::Delete)]
        );
    }

    #[test]
    fn expectations_compare_the_last_change() {
        assert!(Expected::Absent.holds(None) && !Expected::Absent.holds(Some(Revision(1))));
        assert!(Expected::At(Revision(1)).holds(Some(Revision(1))));
        assert!(!Expected::At(Revision(1)).holds(Some(Revision(2))));
        assert!(!Expected::At(Revision(1)).holds(None));
    }
}
