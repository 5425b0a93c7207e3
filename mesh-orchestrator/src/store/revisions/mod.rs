//! Revisions of objects: each change gets an identifier, and old revisions are kept with their author and
//! time, to inspect, compare and roll back to. Depends on the store's trait.

mod id;

use std::{marker::PhantomData, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Entry, InvalidKey, Key, MAX_TRANSACTION_BYTES, PAGE, Prefix, Store, StoreError, Transaction,
    later::{self, LaterFields},
};
use crate::objects::Timestamp;

pub use id::{InvalidRevision, RevisionId};

/// How many old revisions of an object are kept besides the current one.
pub const KEPT: u64 = 10;

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
        /// The requested number.
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
    /// Keeps the old revision, where both are too large for one transaction. To be committed first; harmless
    /// if the second is never committed.
    pub(crate) before: Option<Transaction>,
    /// Writes the new revision.
    pub(crate) transaction: Transaction,
}

/// Prepares a new object, or a new revision of `current`, which has fields of a later release.
pub(crate) fn stage<T: Serialize>(
    kind: &'static str,
    name: &str,
    current: Option<Current>,
    value: &T,
    author: Author,
    later: Option<&LaterFields>,
    seed: u128,
) -> Result<Staged, RevisionError> {
    let key = Key::new([kind, name])?;
    let parent = current.as_ref().map(|current| current.revision);
    let (revision, bytes) = write(&key, parent, value, author, later, seed)?;
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

fn read<T: Serialize + DeserializeOwned>(entry: &Entry) -> Result<Revised<T>, RevisionError> {
    match later::read(&entry.value) {
        Ok((revised, _)) => Ok(revised),
        Err(error) => Err(damaged(&entry.key, error)),
    }
}

/// The next revision of an object, and its stored bytes.
fn write<T: Serialize>(
    key: &Key,
    parent: Option<RevisionId>,
    value: &T,
    author: Author,
    later: Option<&LaterFields>,
    seed: u128,
) -> Result<(RevisionId, Vec<u8>), RevisionError> {
    let bytes = |revision| {
        let revised = Revised {
            revision,
            author: author.clone(),
            value,
        };
        later::write(&revised, later).map_err(|error| damaged(key, error))
    };
    // A hash of the parent, the author, the value, and chance: an author may make the same change twice at
    // the same time, and only one of both is stored.
    let parent = parent.unwrap_or(RevisionId { number: 0, digest: 0 });
    let digest = Sha256::new()
        .chain_update(key.as_str())
        .chain_update(bytes(parent)?)
        .chain_update(seed.to_le_bytes())
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
    use super::*;
    use crate::store::Write;

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
        stage("things", "web", current, &value, author(by), None, 0).unwrap()
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
    fn the_same_change_made_twice_is_two_revisions() {
        let made = |seed| {
            stage("things", "web", None, &"a", author("one"), None, seed)
                .unwrap()
                .revision
        };
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn an_object_that_is_created_again_gets_another_revision() {
        let (first, again) = (staged(None, "", "a", "one"), staged(None, "", "a", "other"));
        assert_eq!((first.revision.number, again.revision.number), (1, 1));
        assert_ne!(first.revision, again.revision);
    }
}
