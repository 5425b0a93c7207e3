//! The embedded store's tables, and how a transaction changes them. Synchronous; depends on redb and on
//! the store's plain data.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, StorageError, TableDefinition, TableError, WriteTransaction};

use crate::store::{
    Entry, Event, Expected, Key, Prefix, Revision, SCHEMA, StoreError, Transaction, WatchBatch, Write,
};

/// Key to (created, modified, version, value).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, u64, &[u8])> = TableDefinition::new("entries");

/// (Revision, index within it) to key and (created, version, value), or no value if it was removed. Read by
/// watches.
const LOG: TableDefinition<'_, (u64, u32), Logged<'_>> = TableDefinition::new("log");

type Logged<'a> = (&'a str, Option<(u64, u64, &'a [u8])>);

/// Numbers by name.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const META_SCHEMA: &str = "schema";
const META_REVISION: &str = "revision";
/// The newest revision whose changes were dropped.
const META_COMPACTED: &str = "compacted";
const META_LOG_BYTES: &str = "log-bytes";

/// How far back watches can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The most transactions.
    pub revisions: u64,
    /// The most bytes of keys and values.
    pub bytes: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            revisions: 10_000,
            bytes: 64 << 20,
        }
    }
}

/// An error of redb, before its operation is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Redb(#[from] redb::Error),
    #[error("{0}")]
    Corrupt(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Redb(error.into())
    }
}

impl From<TableError> for Failure {
    fn from(error: TableError) -> Self {
        Self::Redb(error.into())
    }
}

type Result<T> = std::result::Result<T, Failure>;

fn parse(key: &str) -> Result<Key> {
    key.parse()
        .map_err(|error| Failure::Corrupt(format!("a stored key is invalid: {error}")))
}

/// Creates the tables of a new store.
pub(super) fn create(transaction: &WriteTransaction) -> Result<()> {
    transaction.open_table(ENTRIES)?;
    transaction.open_table(LOG)?;
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_SCHEMA, SCHEMA)?;
    meta.insert(META_REVISION, 0)?;
    meta.insert(META_COMPACTED, 0)?;
    meta.insert(META_LOG_BYTES, 0)?;
    Ok(())
}

/// The version of the stored data.
pub(super) fn schema(transaction: &ReadTransaction) -> Result<u64> {
    number(&transaction.open_table(META)?, META_SCHEMA)
}

/// The newest revision.
pub(super) fn revision(transaction: &ReadTransaction) -> Result<Revision> {
    Ok(Revision(number(&transaction.open_table(META)?, META_REVISION)?))
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64> {
    meta.get(name)?
        .map(|value| value.value())
        .ok_or_else(|| Failure::Corrupt(format!("its {name} is missing")))
}

/// One entry.
pub(super) fn get(transaction: &ReadTransaction, key: &Key) -> Result<Option<Entry>> {
    let entries = transaction.open_table(ENTRIES)?;
    Ok(entries
        .get(key.as_str())?
        .map(|found| entry(key.clone(), found.value())))
}

fn entry(key: Key, (created, modified, version, value): (u64, u64, u64, &[u8])) -> Entry {
    Entry {
        key,
        value: value.to_vec(),
        created: Revision(created),
        modified: Revision(modified),
        version,
    }
}

/// Up to `limit` entries below a prefix, after a key.
pub(super) fn page(
    transaction: &ReadTransaction,
    prefix: &Prefix,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Entry>> {
    let entries = transaction.open_table(ENTRIES)?;
    let end = prefix.end();
    let begin = after.map_or(Bound::Included(prefix.as_str()), |key| {
        Bound::Excluded(key.as_str())
    });
    entries
        .range::<&str>((begin, Bound::Excluded(end.as_str())))?
        .take(limit)
        .map(|found| {
            let (key, value) = found?;
            Ok(entry(parse(key.value())?, value.value()))
        })
        .collect()
}

/// The log after a revision.
pub(super) enum LogRead {
    /// The next transactions with changes below the prefix, and the revision up to which these are all.
    Batches(Vec<WatchBatch>, Revision),
    /// The revision is older than the log, or not of this store.
    Compacted { oldest: Revision },
}

/// The changes below a prefix after a revision, from about `limit` changes.
pub(super) fn changes(
    transaction: &ReadTransaction,
    prefix: &Prefix,
    after: Revision,
    limit: usize,
) -> Result<LogRead> {
    let meta = transaction.open_table(META)?;
    let (compacted, newest) = (number(&meta, META_COMPACTED)?, number(&meta, META_REVISION)?);
    if after.0 < compacted || after.0 > newest {
        return Ok(LogRead::Compacted {
            oldest: Revision(compacted),
        });
    }
    let log = transaction.open_table(LOG)?;
    let mut batches: Vec<WatchBatch> = Vec::new();
    let mut delivered = after;
    for (count, found) in log.range((after.0 + 1, 0)..)?.enumerate() {
        let (position, change) = found?;
        let revision = Revision(position.value().0);
        if count >= limit && revision != delivered {
            return Ok(LogRead::Batches(batches, delivered));
        }
        delivered = revision;
        let (key, put) = change.value();
        let key = parse(key)?;
        if !prefix.contains(&key) {
            continue;
        }
        let event = match put {
            Some((created, version, value)) => Event::Put(entry(key, (created, revision.0, version, value))),
            None => Event::Delete(key),
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push(WatchBatch {
                revision,
                events: vec![event],
            }),
        }
    }
    Ok(LogRead::Batches(batches, Revision(newest)))
}

/// Applies a transaction, or returns the first condition that does not hold and changes nothing.
pub(super) fn apply(
    redb: &WriteTransaction,
    transaction: &Transaction,
    history: History,
) -> Result<std::result::Result<Revision, StoreError>> {
    let mut entries = redb.open_table(ENTRIES)?;
    for (key, expected) in transaction.conditions() {
        let found = entries.get(key.as_str())?.map(|found| Revision(found.value().1));
        if !expected.holds(found) {
            return Ok(Err(conflict(key, expected, found)));
        }
    }
    let mut meta = redb.open_table(META)?;
    let revision = number(&meta, META_REVISION)? + 1;
    let mut log = redb.open_table(LOG)?;
    let (mut index, mut bytes) = (0, number(&meta, META_LOG_BYTES)?);
    for (key, write) in transaction.writes() {
        let key = key.as_str();
        match write {
            Write::Put(value) => {
                let (created, version) = entries.get(key)?.map_or((revision, 1), |found| {
                    let (created, _, version, _) = found.value();
                    (created, version + 1)
                });
                entries.insert(key, (created, revision, version, value.as_slice()))?;
                log.insert(
                    (revision, index),
                    (key, Some((created, version, value.as_slice()))),
                )?;
                bytes += weight(key, Some(value.len()));
            }
            Write::Delete => {
                if entries.remove(key)?.is_none() {
                    continue;
                }
                log.insert((revision, index), (key, None))?;
                bytes += weight(key, None);
            }
        }
        index += 1;
    }
    if index == 0 {
        return Ok(Ok(Revision(revision - 1)));
    }
    let mut compacted = number(&meta, META_COMPACTED)?;
    // The newest transaction is kept whatever its size, and transactions are dropped whole.
    while compacted + 1 < revision && (revision - compacted > history.revisions || bytes > history.bytes) {
        compacted += 1;
        for dropped in log.extract_from_if((compacted, 0)..(compacted + 1, 0), |_, _| true)? {
            let (_, change) = dropped?;
            let (key, put) = change.value();
            bytes = bytes.saturating_sub(weight(key, put.map(|(_, _, value)| value.len())));
        }
    }
    meta.insert(META_REVISION, revision)?;
    meta.insert(META_COMPACTED, compacted)?;
    meta.insert(META_LOG_BYTES, bytes)?;
    Ok(Ok(Revision(revision)))
}

fn weight(key: &str, value: Option<usize>) -> u64 {
    (key.len() + value.unwrap_or_default()) as u64
}

fn conflict(key: &Key, expected: Expected, found: Option<Revision>) -> StoreError {
    StoreError::Conflict {
        key: key.clone(),
        expected,
        found,
    }
}
