//! What a watch tells: each committed transaction's changes below a prefix, whole and in order.
//! Depends on `key`, `transaction` and `error`.

use tokio::{sync::mpsc, task::JoinHandle};

use super::{Entry, Key, Revision, StoreError};

/// How many transactions a watch may be ahead of its reader.
const AHEAD: usize = 64;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made or changed.
    Put(Entry),
    /// It was removed.
    Delete(Key),
}

impl Event {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// What one transaction changed below the watched prefix, in key order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision that it made.
    pub revision: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

pub(super) type WatchSender = mpsc::Sender<Result<WatchBatch, StoreError>>;

/// A running watch; ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    receiver: mpsc::Receiver<Result<WatchBatch, StoreError>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts the task that tells what happens; it ends by itself when nobody listens.
    pub(super) fn start<F>(work: impl FnOnce(WatchSender) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(AHEAD);
        Self {
            receiver,
            task: tokio::spawn(work(sender)),
        }
    }

    /// The next transaction's changes, waiting for it; `None` when the watch has ended, which it does
    /// after an error or when the store is closed. Nothing is lost when the waiting is given up.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, StoreError>> {
        self.receiver.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
