//! Versioned objects: an update names the revision it read, old revisions are kept with who made them and
//! when, to inspect, compare and roll back to. Depends on the store's trait and `diff`.

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Difference, Entry, Expected, InvalidKey, Key, MAX_TRANSACTION_BYTES, PAGE, Prefix, Revision, Store,
    StoreError, Transaction, diff,
};
use crate::objects::Timestamp;

/// How many old revisions of an object are kept besides the current one.
pub const KEPT: u64 = 10;

/// Names one revision of one object, as CouchDB's `_rev` does: `3-9f2c04ab`. The second part is of what is
/// in it, so that a name is never given twice, not even to an object that was removed and made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionId {
    /// 1 for the first.
    pub number: u64,
    digest: u32,
}

/// A string that names no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no revision; one looks like 3-9f2c04ab")]
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

/// Who changes an object, when, and how they would call it.
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

/// Why an object was not read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevisionError {
    /// Somebody else changed it since it was read.
    #[error(
        "{kind} {name} was changed by somebody else: revision {given} was read, {current} is current; read it again and repeat the change"
    )]
    Stale {
        /// Of which kind the object is.
        kind: &'static str,
        /// The object.
        name: String,
        /// What the caller had read.
        given: RevisionId,
        /// What is current.
        current: RevisionId,
    },
    /// There is no such object.
    #[error("there is no {name} among {kind}")]
    Missing {
        /// Of which kind the object would be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("there is a {name} among {kind} already")]
    Exists {
        /// Of which kind the object is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The revision is not kept (any more).
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
    /// What is stored cannot be read, or what shall be stored cannot be written, as JSON.
    #[error(
        "{key} is not of the kind it should be; restore the newest backup if nobody has edited the store by hand"
    )]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store.
    #[error("the store did not do it")]
    Store(#[from] StoreError),
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}

/// A change that was worked out and not yet committed.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The revision it will make.
    pub revision: RevisionId,
    /// Keeps the old revision; only where that and the new one are too large for one transaction. To be
    /// committed first; it does no harm if the other never is.
    pub before: Option<Transaction>,
    /// Makes the change, if nobody else is faster. More can be added, such as a leader's fence.
    pub transaction: Transaction,
}

/// The versioned objects of one kind.
#[derive(Clone, Debug)]
pub struct Revisions<T> {
    store: Arc<dyn Store>,
    kind: &'static str,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Revisions<T> {
    /// Those at `/kind/<name>`, with the old ones at `/history/kind/<name>/<number>`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, kind: &'static str) -> Self {
        Self {
            store,
            kind,
            of: PhantomData,
        }
    }

    /// The current revision; `None` where there is no such object.
    ///
    /// # Errors
    /// As [`Store::get`]; [`RevisionError::Damaged`].
    pub async fn get(&self, name: &str) -> Result<Option<Revised<T>>, RevisionError> {
        match self.store.get(&self.key(name)?).await? {
            Some(entry) => read(&entry).map(Some),
            None => Ok(None),
        }
    }

    /// All objects by name, and the store's revision to watch from.
    ///
    /// # Errors
    /// As [`Store::list`]; [`RevisionError::Damaged`].
    pub async fn list(&self) -> Result<(Vec<Revised<T>>, Revision), RevisionError> {
        let listing = self.store.list(&Prefix::new([self.kind])?, PAGE).await?;
        let revision = listing.revision;
        let entries = listing.entries().await?;
        let objects: Result<Vec<_>, _> = entries.iter().map(Self::read).collect();
        Ok((objects?, revision))
    }

    /// What a list or a watch of the store has of one.
    ///
    /// # Errors
    /// [`RevisionError::Damaged`].
    pub fn read(entry: &Entry) -> Result<Revised<T>, RevisionError> {
        read(entry)
    }

    /// Makes an object.
    ///
    /// # Errors
    /// [`RevisionError::Exists`]; as [`Store::commit`].
    pub async fn create(&self, name: &str, value: &T, author: Author) -> Result<RevisionId, RevisionError> {
        let staged = self.stage_create(name, value, author)?;
        match self.commit(name, staged).await {
            Err(RevisionError::Store(StoreError::Conflict { .. })) => Err(RevisionError::Exists {
                kind: self.kind,
                name: name.to_owned(),
            }),
            other => other,
        }
    }

    /// Changes an object that was read at a revision.
    ///
    /// # Errors
    /// [`RevisionError::Stale`], [`RevisionError::Missing`]; as [`Store::commit`].
    pub async fn update(
        &self,
        name: &str,
        given: RevisionId,
        value: &T,
        author: Author,
    ) -> Result<RevisionId, RevisionError> {
        let staged = self.stage_update(name, given, value, author).await?;
        match self.commit(name, staged).await {
            Err(RevisionError::Store(StoreError::Conflict { .. })) => Err(self.stale(name, given).await?),
            other => other,
        }
    }

    /// Gives an object the value that it had at an older revision, as a new revision.
    ///
    /// # Errors
    /// [`RevisionError::NotKept`]; as [`Self::update`].
    pub async fn roll_back(
        &self,
        name: &str,
        given: RevisionId,
        to: u64,
        author: Author,
    ) -> Result<RevisionId, RevisionError> {
        let old = self.at(name, to).await?;
        self.update(name, given, &old.value, author).await
    }

    /// Removes an object that was read at a revision, and its history.
    ///
    /// # Errors
    /// [`RevisionError::Stale`], [`RevisionError::Missing`]; as [`Store::commit`].
    pub async fn remove(&self, name: &str, given: RevisionId) -> Result<(), RevisionError> {
        let (entry, _) = self.current(name, given).await?;
        let mut transaction = Transaction::new()
            .expect(entry.key.clone(), Expected::At(entry.modified))
            .delete(entry.key);
        for old in self.old(name).await? {
            transaction = transaction.delete(old.key);
        }
        match self.store.commit(transaction).await {
            Err(StoreError::Conflict { .. }) => Err(self.stale(name, given).await?),
            other => other.map(drop).map_err(Into::into),
        }
    }

    /// All revisions that are kept, the current one first.
    ///
    /// # Errors
    /// [`RevisionError::Missing`]; as [`Store::list`].
    pub async fn history(&self, name: &str) -> Result<Vec<Revised<T>>, RevisionError> {
        let current = self.get(name).await?.ok_or_else(|| self.missing(name))?;
        let mut revisions = vec![current];
        for entry in self.old(name).await?.iter().rev() {
            let old: Revised<T> = read(entry)?;
            // One may be kept already for a change that was not made in the end.
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

    /// What differs between two of the revisions that are kept.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub async fn diff(&self, name: &str, from: u64, to: u64) -> Result<Vec<Difference>, RevisionError> {
        let key = self.key(name)?;
        let json =
            |revised: Revised<T>| serde_json::to_value(revised.value).map_err(|error| damaged(&key, error));
        let (from, to) = (self.at(name, from).await?, self.at(name, to).await?);
        Ok(diff(&json(from)?, &json(to)?))
    }

    /// Works out the making of an object.
    ///
    /// # Errors
    /// When the name is not allowed, or the object is no JSON.
    pub fn stage_create(&self, name: &str, value: &T, author: Author) -> Result<Staged, RevisionError> {
        stage(self.kind, name, None, value, author)
    }

    /// Works out a change to an object that was read at a revision.
    ///
    /// # Errors
    /// [`RevisionError::Stale`], [`RevisionError::Missing`]; as [`Store::get`].
    pub async fn stage_update(
        &self,
        name: &str,
        given: RevisionId,
        value: &T,
        author: Author,
    ) -> Result<Staged, RevisionError> {
        let (entry, revision) = self.current(name, given).await?;
        let current = Current {
            revision,
            modified: entry.modified,
            stored: entry.value,
        };
        stage(self.kind, name, Some(current), value, author)
    }

    /// Commits a staged change. Where the store cannot tell whether it was committed, looks.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit(&self, name: &str, staged: Staged) -> Result<RevisionId, RevisionError> {
        if let Some(before) = staged.before {
            self.store.commit(before).await?;
        }
        match self.store.commit(staged.transaction).await {
            Ok(_) => Ok(staged.revision),
            Err(unknown @ StoreError::OutcomeUnknown { .. }) => match self.get(name).await {
                Ok(Some(current)) if current.revision == staged.revision => Ok(staged.revision),
                // Not there now is not proof: it may come, or have been changed again.
                Ok(_) | Err(_) => Err(unknown.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn key(&self, name: &str) -> Result<Key, InvalidKey> {
        Key::new([self.kind, name])
    }

    async fn old(&self, name: &str) -> Result<Vec<Entry>, RevisionError> {
        let prefix = Prefix::new(["history", self.kind, name])?;
        Ok(self.store.list(&prefix, PAGE).await?.entries().await?)
    }

    async fn current(&self, name: &str, given: RevisionId) -> Result<(Entry, RevisionId), RevisionError> {
        let entry = self
            .store
            .get(&self.key(name)?)
            .await?
            .ok_or_else(|| self.missing(name))?;
        let current = read::<T>(&entry)?.revision;
        if current == given {
            return Ok((entry, current));
        }
        Err(RevisionError::Stale {
            kind: self.kind,
            name: name.to_owned(),
            given,
            current,
        })
    }

    /// Why a change was refused that was worked out from the given revision.
    async fn stale(&self, name: &str, given: RevisionId) -> Result<RevisionError, RevisionError> {
        Ok(match self.get(name).await? {
            Some(current) => RevisionError::Stale {
                kind: self.kind,
                name: name.to_owned(),
                given,
                current: current.revision,
            },
            None => self.missing(name),
        })
    }

    fn missing(&self, name: &str) -> RevisionError {
        RevisionError::Missing {
            kind: self.kind,
            name: name.to_owned(),
        }
    }
}

/// What is stored of an object before it is changed.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// Its revision.
    pub(crate) revision: RevisionId,
    /// The store's revision at which it was last written.
    pub(crate) modified: Revision,
    /// The bytes.
    pub(crate) stored: Vec<u8>,
}

/// Works out the making or the change of an object, without asking the store.
pub(crate) fn stage<T: Serialize>(
    kind: &'static str,
    name: &str,
    current: Option<Current>,
    value: &T,
    author: Author,
) -> Result<Staged, RevisionError> {
    let key = Key::new([kind, name])?;
    let (revision, bytes) = write(
        &key,
        current.as_ref().map(|current| current.revision),
        value,
        author,
    )?;
    let Some(current) = current else {
        return Ok(Staged {
            revision,
            before: None,
            transaction: Transaction::new()
                .expect(key.clone(), Expected::Absent)
                .put(key, bytes),
        });
    };
    let guard = || Transaction::new().expect(key.clone(), Expected::At(current.modified));
    let mut transaction = guard().put(key.clone(), bytes);
    let number = current.revision.number;
    if number > KEPT {
        transaction = transaction.delete(old_key(kind, name, number - KEPT)?);
    }
    let old = old_key(kind, name, number)?;
    let before = if transaction.bytes() + current.stored.len() + old.as_str().len() > MAX_TRANSACTION_BYTES {
        Some(guard().put(old, current.stored))
    } else {
        transaction = transaction.put(old, current.stored);
        None
    };
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

/// The next revision of an object, and what is stored for it.
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
    // Of the parent's name, the author and the value: all that makes it what it is.
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

    proptest! {
        #[test]
        fn a_revision_reads_as_it_is_written(number: u64, digest: u32) {
            let revision = RevisionId { number, digest };
            prop_assert_eq!(revision.to_string().parse(), Ok(revision));
        }
    }

    #[test]
    fn what_is_no_revision_is_refused() {
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
