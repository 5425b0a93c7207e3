//! Revisions of objects: each change gets an identifier, and old revisions are kept with their author and time, to
//! inspect, compare and roll back to. Depends on the store's trait.

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{Entry, InvalidKey, Key, MAX_TRANSACTION_BYTES, PAGE, Prefix, Store, StoreError, Transaction};
use crate::objects::Timestamp;

/// How many old revisions of an object are kept besides the current one.
pub const KEPT: u64 = 10;

/// Identifies one revision of one object, as CouchDB's `_rev` does: `3-9f2c04ab`. The second part is a hash of the
/// content, so that an identifier is never reused, not even when an object is removed and created again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionId {
    /// 1 for the first.
    pub number: u64,
    digest: u32,
}

/// A string that is not a revision identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a revision identifier; one looks like 3-9f2c04ab")]
pub struct InvalidRevision(String);

impl fmt::Display for RevisionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{:08x}", self.number, self.digest)
    }
}

impl FromStr for RevisionId {
    type Err = InvalidRevision;

    fn from_str(text: &str) -> Result<Self, InvalidRevision> {
        let parsed = text.split_once('-').and_then(|(number, digest)| {
            (digest.len() == 8).then_some(())?;
            Some(Self {
                number: number.parse().ok()?,
                digest: u32::from_str_radix(digest, 16).ok()?,
            })
        });
        parsed.ok_or_else(|| InvalidRevision(text.to_owned()))
    }
}

impl JsonSchema for RevisionId {
    fn schema_name() -> Cow<'static, str> {
        "RevisionId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+-[0-9a-f]{8}$",
            "description": "One revision of one object.",
        })
    }
}

impl Serialize for RevisionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RevisionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Who changes an object, when and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Author {
    /// A user, a token's name, a webhook or a control loop.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// `create`, `update`, `scale`, `rollback to 3`, ...
    pub action: String,
}

/// An object as it is, or was, at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revised<T> {
    /// Which revision.
    pub revision: RevisionId,
    /// Who made it.
    pub author: Author,
    /// The object.
    pub value: T,
}

/// Why a revision was not read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevisionError {
    /// There is no such object.
    #[error("there is no {name} among {kind}")]
    Missing {
        /// Of which kind the object would be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The revision is not kept, or not any more.
    #[error("{kind} {name} has no revision {number}; kept are {}", list(.kept))]
    NotKept {
        /// Of which kind the object is.
        kind: &'static str,
        /// The object.
        name: String,
        /// The number asked for.
        number: u64,
        /// The numbers that there are.
        kept: Vec<u64>,
    },
    /// The name cannot be part of a key.
    #[error("the name of an object is not allowed")]
    Name(#[from] InvalidKey),
    /// The object cannot be read from JSON, or written to it.
    #[error(
        "{key} does not have the expected format; unless it was edited by hand, restore the newest backup"
    )]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store.
    #[error("the store could not be read")]
    Store(#[from] StoreError),
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}

/// The revisions of objects of one kind.
#[derive(Clone, Debug)]
pub struct Revisions<T> {
    store: Arc<dyn Store>,
    kind: &'static str,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Revisions<T> {
    /// Of objects at `/kind/<name>`, with old revisions at `/history/kind/<name>/<number>`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, kind: &'static str) -> Self {
        Self {
            store,
            kind,
            of: PhantomData,
        }
    }

    /// All revisions that are kept, the current one first.
    ///
    /// # Errors
    /// [`RevisionError::Missing`]; as [`Store::list`].
    pub async fn history(&self, name: &str) -> Result<Vec<Revised<T>>, RevisionError> {
        let missing = || RevisionError::Missing {
            kind: self.kind,
            name: name.to_owned(),
        };
        let current = self.store.get(&Key::new([self.kind, name])?).await?;
        let mut revisions = vec![read::<T>(&current.ok_or_else(missing)?)?];
        for entry in self.old(name).await?.iter().rev() {
            let old: Revised<T> = read(entry)?;
            // Its successor may never have been committed.
            if old.revision.number < revisions[0].revision.number {
                revisions.push(old);
            }
        }
        Ok(revisions)
    }

    /// One of the revisions that are kept, by its number.
    ///
    /// # Errors
    /// [`RevisionError::NotKept`]; as [`Self::history`].
    pub async fn at(&self, name: &str, number: u64) -> Result<Revised<T>, RevisionError> {
        let mut kept = Vec::new();
        for revision in self.history(name).await? {
            if revision.revision.number == number {
                return Ok(revision);
            }
            kept.push(revision.revision.number);
        }
        Err(RevisionError::NotKept {
            kind: self.kind,
            name: name.to_owned(),
            number,
            kept,
        })
    }

    async fn old(&self, name: &str) -> Result<Vec<Entry>, RevisionError> {
        let prefix = Prefix::new(["history", self.kind, name])?;
        Ok(self.store.list(&prefix, PAGE).await?.entries().await?)
    }
}

/// What is stored of an object before it is changed.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// Its revision.
    pub(crate) revision: RevisionId,
    /// The bytes.
    pub(crate) stored: Vec<u8>,
}

/// The writes that make a new revision. The caller adds what they expect of the store.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// The new revision.
    pub(crate) revision: RevisionId,
    /// Keeps the old revision, where both are too large for one transaction. To be committed first; harmless if
    /// the second is never committed.
    pub(crate) before: Option<Transaction>,
    /// Writes the new revision.
    pub(crate) transaction: Transaction,
}

/// Prepares a new object, or a new revision of `current`.
pub(crate) fn stage<T: Serialize>(
    kind: &'static str,
    name: &str,
    current: Option<Current>,
    value: &T,
    author: Author,
) -> Result<Staged, RevisionError> {
    let key = Key::new([kind, name])?;
    let parent = current.as_ref().map(|current| current.revision);
    let (revision, bytes) = write(&key, parent, value, author)?;
    let mut transaction = Transaction::new().put(key.clone(), bytes);
    let mut before = None;
    if let Some(current) = current {
        let number = current.revision.number;
        if number > KEPT {
            transaction = transaction.delete(old_key(kind, name, number - KEPT)?);
        }
        let old = old_key(kind, name, number)?;
        // The key counts again as a condition.
        let together = transaction.bytes() + key.as_str().len() + current.stored.len() + old.as_str().len();
        if together > MAX_TRANSACTION_BYTES {
            before = Some(Transaction::new().put(old, current.stored));
        } else {
            transaction = transaction.put(old, current.stored);
        }
    }
    Ok(Staged {
        revision,
        before,
        transaction,
    })
}

/// Where an old revision is kept.
pub(crate) fn old_key(kind: &str, name: &str, number: u64) -> Result<Key, InvalidKey> {
    // Padded, so that they are in order.
    Key::new(["history", kind, name, &format!("{number:020}")])
}

fn damaged(key: &Key, source: serde_json::Error) -> RevisionError {
    RevisionError::Damaged {
        key: key.to_string(),
        source,
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Result<Revised<T>, RevisionError> {
    serde_json::from_slice(&entry.value).map_err(|error| damaged(&entry.key, error))
}

/// The next revision of an object, and its stored bytes.
fn write<T: Serialize>(
    key: &Key,
    parent: Option<RevisionId>,
    value: &T,
    author: Author,
) -> Result<(RevisionId, Vec<u8>), RevisionError> {
    let bytes = |revision| {
        let revised = Revised {
            revision,
            author: author.clone(),
            value,
        };
        serde_json::to_vec(&revised).map_err(|error| damaged(key, error))
    };
    // A hash of the parent, the author and the value.
    let parent = parent.unwrap_or(RevisionId { number: 0, digest: 0 });
    let digest = Sha256::new()
        .chain_update(key.as_str())
        .chain_update(bytes(parent)?)
        .finalize();
    let revision = RevisionId {
        number: parent.number + 1,
        digest: digest
            .iter()
            .take(4)
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte)),
    };
    Ok((revision, bytes(revision)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Write;

    proptest! {
        #[test]
        fn a_revision_reads_as_it_is_written(number: u64, digest: u32) {
            let revision = RevisionId { number, digest };
            prop_assert_eq!(revision.to_string().parse(), Ok(revision));
        }
    }

    fn author(by: &str) -> Author {
        Author {
            by: by.to_owned(),
            at: Timestamp(1),
            action: "update".to_owned(),
        }
    }

    fn staged(current: Option<RevisionId>, stored: &str, value: &str, by: &str) -> Staged {
        let current = current.map(|revision| Current {
            revision,
            stored: stored.as_bytes().to_vec(),
        });
        stage("things", "web", current, &value, author(by)).unwrap()
    }

    #[test]
    fn a_new_revision_keeps_the_old_one_and_drops_the_oldest() {
        let current = RevisionId {
            number: KEPT + 1,
            digest: 7,
        };
        let staged = staged(Some(current), "old", "new", "someone");
        assert_eq!(staged.revision.number, KEPT + 2);
        assert!(staged.before.is_none());
        let writes: Vec<_> = staged.transaction.writes().collect();
        let key = |text: &str| text.parse::<Key>().unwrap();
        assert_eq!(writes.len(), 3);
        assert_eq!(
            writes[..2],
            [
                (&key("/history/things/web/00000000000000000001"), &Write::Delete),
                (
                    &key("/history/things/web/00000000000000000011"),
                    &Write::Put(b"old".to_vec())
                ),
            ]
        );
        assert_eq!(*writes[2].0, key("/things/web"));
    }

    #[test]
    fn two_revisions_too_large_for_one_transaction_are_written_in_two() {
        let current = RevisionId { number: 1, digest: 7 };
        let large = "x".repeat(MAX_TRANSACTION_BYTES / 2);
        let staged = staged(Some(current), &large, &large, "someone");
        for transaction in [staged.before.unwrap(), staged.transaction] {
            assert_eq!(transaction.writes().len(), 1);
            transaction.check().unwrap();
        }
    }

    #[test]
    fn an_object_that_is_created_again_gets_another_revision() {
        let (first, again) = (staged(None, "", "a", "one"), staged(None, "", "a", "other"));
        assert_eq!((first.revision.number, again.revision.number), (1, 1));
        assert_ne!(first.revision, again.revision);
    }

    #[test]
    fn other_strings_are_not_revisions() {
        for wrong in [
            "",
            "3",
            "3-",
            "-9f2c04ab",
            "3-9f2c04",
            "x-9f2c04ab",
            "3-9f2c04abc",
        ] {
            assert!(wrong.parse::<RevisionId>().is_err(), "{wrong:?}");
        }
    }
}
