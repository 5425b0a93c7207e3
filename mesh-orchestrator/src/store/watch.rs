//! What a watch delivers: each committed transaction's changes below a prefix, whole and in order.
//! Depends on `key`, `transaction` and `error`.

use tokio::{sync::mpsc, task::JoinHandle};

use super::{Entry, Key, Revision, StoreError};

/// How many transactions a watch may be ahead of its reader.
const AHEAD: usize = 64;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was created or changed.
    Put(Entry),
    /// It was removed.
    Delete(Key),
}

impl Event {
    /// The changed key.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// One transaction's changes below the watched prefix, in key order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The transaction's revision.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// The store's side of a watch.
pub type WatchSender = mpsc::Sender<Result<WatchBatch, StoreError>>;

/// A running watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    receiver: mpsc::Receiver<Result<WatchBatch, StoreError>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts the task that delivers changes; it ends when the watch is dropped. For implementations of a
    /// store.
    pub fn start<F>(work: impl FnOnce(WatchSender) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(AHEAD);
        Self {
            receiver,
            task: tokio::spawn(work(sender)),
        }
    }

    /// Waits for the next transaction's changes; `None` when the watch has ended, after an error or because
    /// the store was closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, StoreError>> {
        self.receiver.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
