//! A transaction: conditions on some keys and writes, all or nothing. Plain data; depends on `key` and
//! `error`.

use std::collections::BTreeMap;

use super::{Expected, Key, StoreError};

/// The most conditions, and the most writes, of one transaction: what etcd allows by default.
pub const MAX_OPERATIONS: usize = 128;

/// The most bytes of one transaction, keys and values: what etcd allows by default (1.5 MiB), less its
/// overhead.
pub const MAX_TRANSACTION_BYTES: usize = 1_500_000;

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
}
