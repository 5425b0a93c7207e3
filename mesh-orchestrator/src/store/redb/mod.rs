//! The embedded store: one crash-safe file, nothing to install; the default on one node. Depends on the
//! store's trait and plain data, and on redb.

mod open;
mod shared;
mod tables;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use redb::ReadTransaction;
use tokio::sync::{mpsc, oneshot};

use self::{
    shared::{Request, Shared},
    tables::LogRead,
};
use super::{
    Entry, Expected, Heartbeat, Key, Lease, Listing, Prefix, Revision, Store, StoreError, Transaction, Watch,
    WatchBatch, Write, is_ephemeral, lease::Keeper, watch::WatchSender,
};

pub use tables::History;

/// How many changes a watch reads at a time.
const CHANGES: usize = 256;

/// The pause before a watch reads again from a disk that failed.
const RETRY: Duration = Duration::from_millis(200);

/// A store in one file on this machine, which one process can have open at a time.
///
/// Dropping it closes the file, after the commits in progress.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::UnboundedSender<Request>>,
    writer: Option<JoinHandle<()>>,
    leases: Leases,
}

/// The keys put under each lease of this process, and the revisions of those puts.
type Leases = Arc<Mutex<BTreeMap<i64, Vec<(Key, Revision)>>>>;

impl RedbStore {
    /// Opens the store in a file, or creates it if there is none. Blocks while the file is checked.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a file that is damaged, truncated or not a store, [`StoreError::TooNew`]
    /// for one of a newer release, [`StoreError::Unavailable`] when it cannot be read or written, or another
    /// process has it open. The file is not changed then.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(path, History::default())
    }

    /// As [`Self::open`], with another limit on how far back watches can start.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl Into<PathBuf>, history: History) -> Result<Self, StoreError> {
        let path = path.into();
        let shared = Arc::new(Shared::open(path.clone(), history)?);
        let (requests, receiver) = mpsc::unbounded_channel();
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.write_until_closed(receiver)
            })
            .map_err(|source| StoreError::Unavailable {
                operation: "open the store",
                store: path.display().to_string(),
                advice: "no thread could be started",
                source: source.into(),
            })?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
            leases: Leases::default(),
        })
    }

    /// Sends a transaction to the writing thread.
    async fn write(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check()?;
        let (answer, answered) = oneshot::channel();
        let closed = || open::closed(&self.shared.path, "commit");
        self.requests
            .as_ref()
            .ok_or_else(closed)?
            .send((transaction, answer))
            .map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<i64, Vec<(Key, Revision)>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // It cannot panic: its work is under `catch_unwind`.
            let _ = writer.join();
        }
        self.shared.close();
    }
}

#[async_trait]
impl Store for RedbStore {
    fn describe(&self) -> String {
        self.shared.path.display().to_string()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let key = key.clone();
        blocking(&self.shared, move |shared| {
            shared.read("read", |transaction| tables::get(transaction, &key))
        })
        .await
    }

    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError> {
        let (transaction, revision) = blocking(&self.shared, |shared| shared.begin_read("list")).await?;
        let position = Position {
            shared: Arc::clone(&self.shared),
            transaction: Arc::new(transaction),
            prefix: prefix.clone(),
            page: page.max(1),
            after: None,
        };
        Ok(Listing {
            revision,
            pages: stream::try_unfold(position, Position::next).boxed(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.write(transaction).await
    }

    /// A lease of this process, which ends with it: the next process to open the file removes ephemeral keys.
    async fn lease(&self, _heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        let requests = self
            .requests
            .as_ref()
            .map(mpsc::UnboundedSender::downgrade)
            .ok_or_else(|| open::closed(&self.shared.path, "grant a lease"))?;
        let id = {
            let mut leases = self.leases();
            let id = leases.keys().next_back().map_or(1, |last| last + 1);
            leases.insert(id, Vec::new());
            id
        };
        let leases = Arc::clone(&self.leases);
        Ok(Lease::start(id, move |keeper| {
            release(id, keeper, leases, requests)
        }))
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        let put: Vec<Key> = transaction
            .writes()
            .filter(|(key, write)| is_ephemeral(key) && matches!(write, Write::Put(_)))
            .map(|(key, _)| key.clone())
            .collect();
        if lease.is_lost() || !self.leases().contains_key(&lease.id()) {
            return Err(open::closed(&self.shared.path, "commit under a lease"));
        }
        let revision = self.write(transaction).await?;
        let revoked = match self.leases().get_mut(&lease.id()) {
            Some(keys) => {
                keys.extend(put.into_iter().map(|key| (key, revision)));
                Vec::new()
            }
            // Revoked meanwhile: no one else will remove them.
            None => put,
        };
        for key in revoked {
            let removal = Transaction::new()
                .expect(key.clone(), Expected::At(revision))
                .delete(key);
            match self.write(removal).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(revision)
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        let read = blocking(&self.shared, {
            let prefix = prefix.clone();
            move |shared| {
                shared.read("watch", |transaction| {
                    tables::changes(transaction, &prefix, after, 1)
                })
            }
        })
        .await?;
        if let LogRead::Compacted { oldest } = read {
            return Err(StoreError::Compacted {
                requested: after,
                oldest,
            });
        }
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.clone());
        Ok(Watch::start(|sender| follow(shared, prefix, after, sender)))
    }
}

/// Waits until a lease is revoked, and removes the keys put under it that still exist.
async fn release(id: i64, keeper: Keeper, leases: Leases, requests: mpsc::WeakUnboundedSender<Request>) {
    let _ = keeper.given_up.await;
    let keys = leases
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id)
        .unwrap_or_default();
    for (key, put) in keys {
        let (answer, answered) = oneshot::channel();
        let transaction = Transaction::new()
            .expect(key.clone(), Expected::At(put))
            .delete(key);
        let Some(requests) = requests.upgrade() else {
            break;
        };
        if requests.send((transaction, answer)).is_ok() {
            drop(requests);
            // A conflict: it was put again by another holder, and is theirs.
            let _ = answered.await;
        }
    }
    keeper.lost.send_replace(true);
}

/// The progress of a list.
struct Position {
    shared: Arc<Shared>,
    transaction: Arc<ReadTransaction>,
    prefix: Prefix,
    page: usize,
    after: Option<Key>,
}

impl Position {
    async fn next(mut self) -> Result<Option<(Vec<Entry>, Self)>, StoreError> {
        let transaction = Arc::clone(&self.transaction);
        let (prefix, after, limit) = (self.prefix.clone(), self.after.clone(), self.page);
        let page = blocking(&self.shared, move |shared| {
            tables::page(&transaction, &prefix, after.as_ref(), limit)
                .map_err(|failure| open::error(&shared.path, "list", failure))
        })
        .await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.after = Some(last.key.clone());
        Ok(Some((page, self)))
    }
}

/// Delivers the file's log to a watch, from a revision on.
async fn follow(shared: Arc<Shared>, prefix: Prefix, after: Revision, sender: WatchSender) {
    let mut newest = shared.newest.subscribe();
    let mut delivered = after;
    loop {
        newest.mark_unchanged();
        let read = blocking(&shared, {
            let prefix = prefix.clone();
            move |shared| {
                shared.read("watch", |transaction| {
                    tables::changes(transaction, &prefix, delivered, CHANGES)
                })
            }
        })
        .await;
        let (batches, until) = match read {
            Ok(LogRead::Batches(batches, until)) => (batches, until),
            Ok(LogRead::Compacted { oldest }) => {
                let requested = delivered;
                let _ = sender
                    .send(Err(StoreError::Compacted { requested, oldest }))
                    .await;
                return;
            }
            Err(_) if shared.is_closed() => return,
            Err(error) if error.is_unavailable() => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        if !send(&sender, batches).await {
            return;
        }
        let moved = until > delivered;
        delivered = until;
        // Read again immediately after progress: there may be more.
        if !moved && newest.changed().await.is_err() {
            return;
        }
    }
}

async fn send(sender: &WatchSender, batches: Vec<WatchBatch>) -> bool {
    for batch in batches {
        if sender.send(Ok(batch)).await.is_err() {
            return false;
        }
    }
    true
}

/// Runs disk I/O on a blocking thread.
async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let shared = Arc::clone(shared);
    let path = shared.path.clone();
    tokio::task::spawn_blocking(move || work(&shared))
        .await
        .unwrap_or_else(|panic| {
            Err(StoreError::Corrupt {
                store: path.display().to_string(),
                detail: panic.to_string(),
            })
        })
}
