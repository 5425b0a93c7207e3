//! Restoring a backup into a store. Depends on `file` and the store's trait.

use std::path::Path;

use super::file::{self, BackupError, BackupInfo};
use crate::store::{
    Expected, InvalidKey, Key, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, PAGE, Prefix, Revision, Store,
    StoreError, Transaction, is_ephemeral,
};

/// The store into which a backup may be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreInto {
    /// An empty store only.
    Empty,
    /// Any store; its content is removed.
    Replace,
}

/// Whether a restore into the store was started and not finished. Such a store can only be restored again.
///
/// # Errors
/// As [`Store::get`].
pub async fn interrupted(store: &dyn Store) -> Result<bool, BackupError> {
    Ok(store.get(&marker(store)?).await?.is_some())
}

/// Present while a restore is in progress.
fn marker(store: &dyn Store) -> Result<Key, StoreError> {
    Key::new(["restore", "unfinished"]).map_err(|error: InvalidKey| StoreError::Corrupt {
        store: store.describe(),
        detail: error.to_string(),
    })
}

/// Restores a backup, each value as `adjust` returns it: some objects say what was so when the backup was
/// made and need not be so any more. It is checked as a whole before anything is changed. An interrupted
/// restore is detected by [`interrupted`], and repeated by restoring again.
///
/// # Errors
/// When the backup is damaged or of a newer release; [`BackupError::NotEmpty`]; as [`Store::commit`],
/// [`StoreError::Conflict`] when another writer changes the store meanwhile.
pub async fn restore(
    store: &dyn Store,
    path: &Path,
    into: RestoreInto,
    adjust: impl Fn(&Key, Vec<u8>) -> Vec<u8>,
) -> Result<BackupInfo, BackupError> {
    let (info, entries) = {
        let path = path.to_owned();
        let reading = path.clone();
        tokio::task::spawn_blocking(move || {
            let mut entries = Vec::new();
            let info = file::read(&reading, |key, value| entries.push((key, value)))?;
            Ok::<_, BackupError>((info, entries))
        })
        .await
        .map_err(|error| BackupError::Damaged {
            path,
            detail: error.to_string(),
        })??
    };
    let marker = marker(store)?;
    let present = present(store).await?;
    // The remains of an unfinished restore may always be replaced.
    let unfinished = present.contains(&marker);
    if !present.is_empty() && !unfinished && into == RestoreInto::Empty {
        return Err(BackupError::NotEmpty(store.describe()));
    }
    let begun = begin(store, &marker, unfinished).await?;
    // Again: what was written before the marker was there must go, too.
    let present = self::present(store).await?;
    let mut batches = Batches {
        store,
        marker: &marker,
        begun,
        batch: Transaction::new(),
        count: 0,
        bytes: 0,
    };
    // Backwards, and the entries forwards: tasks go before what they run, and come after it.
    for key in present.into_iter().rev() {
        if key != marker {
            batches.add(key, None).await?;
        }
    }
    for (key, value) in entries {
        if key != marker {
            let value = adjust(&key, value);
            batches.add(key, Some(value)).await?;
        }
    }
    batches.finish().await?;
    Ok(info)
}

/// The keys in the store that do not belong to leases.
async fn present(store: &dyn Store) -> Result<Vec<Key>, StoreError> {
    let entries = store.list(&Prefix::everything(), PAGE).await?.entries().await?;
    let keys = entries.into_iter().map(|entry| entry.key);
    Ok(keys.filter(|key| !is_ephemeral(key)).collect())
}

/// Puts the marker, so that only one of two concurrent restores goes on.
async fn begin(store: &dyn Store, marker: &Key, unfinished: bool) -> Result<Revision, StoreError> {
    let expected = match store.get(marker).await? {
        Some(entry) if unfinished => Expected::At(entry.modified),
        Some(_) | None => Expected::Absent,
    };
    let transaction = Transaction::new()
        .expect(marker.clone(), expected)
        .put(marker.clone(), "");
    store.commit(transaction).await
}

/// Writes in as few transactions as the limits allow. Each commits only while the marker is ours.
struct Batches<'a> {
    store: &'a dyn Store,
    marker: &'a Key,
    begun: Revision,
    batch: Transaction,
    count: usize,
    bytes: usize,
}

impl Batches<'_> {
    async fn add(&mut self, key: Key, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let bytes = key.as_str().len() + value.as_ref().map_or(0, Vec::len);
        let full = self.bytes + bytes + self.marker.as_str().len() > MAX_TRANSACTION_BYTES;
        if self.count == MAX_OPERATIONS || (self.count > 0 && full) {
            self.commit().await?;
        }
        let batch = std::mem::take(&mut self.batch);
        self.batch = match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        };
        self.count += 1;
        self.bytes += bytes;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch);
        (self.count, self.bytes) = (0, 0);
        let guarded = batch
            .clone()
            .expect(self.marker.clone(), Expected::At(self.begun));
        // One entry may be so large that the condition does not fit.
        let transaction = if guarded.check().is_ok() { guarded } else { batch };
        self.store.commit(transaction).await.map(drop)
    }

    /// The last transaction removes the marker.
    async fn finish(mut self) -> Result<(), StoreError> {
        self.commit().await?;
        self.batch = Transaction::new().delete(self.marker.clone());
        self.commit().await
    }
}
