//! The open file, shared by readers and the one writing thread: reading, committing in groups, and reopening
//! the file after its disk failed. Synchronous; depends on `tables` and `open`.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{Database, Error, ReadTransaction, ReadableDatabase};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    open,
    tables::{self, Failure, History},
};
use crate::store::{MAX_OPERATIONS, Revision, StoreError, Transaction, lease};

/// How many waiting transactions are committed by one disk write.
const GROUP: usize = 64;

/// A transaction, and the channel for its result.
pub(super) type Request = (Transaction, oneshot::Sender<Result<Revision, StoreError>>);

/// The results of a group of transactions, one each.
type Answers = Vec<Result<Revision, StoreError>>;

pub(super) struct Shared {
    pub(super) path: PathBuf,
    /// Wakes watches; the revision is a hint, the file is authoritative.
    pub(super) newest: watch::Sender<Revision>,
    history: History,
    /// How many times the file was reopened; changed under the lock of `state`.
    openings: AtomicU64,
    state: RwLock<State>,
}

enum State {
    /// With the number of this opening.
    Open(Database, u64),
    /// The disk failed; to be reopened.
    Failed,
    Closed,
}

/// Why a group was not committed.
enum GroupFailure {
    /// The file is not open, and cannot be opened.
    NotOpen(StoreError),
    /// Before the commit: nothing of it is in the file.
    Before(Failure),
    /// During the commit. If the file has it nevertheless, these are the results, and this is the revision.
    Within(Failure, Answers, Revision),
}

impl<E: Into<Error>> From<E> for GroupFailure {
    fn from(error: E) -> Self {
        Self::Before(Failure::Redb(error.into()))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn open(path: PathBuf, history: History) -> Result<Self, StoreError> {
        let database = open::open(&path)?;
        let shared = Self {
            path,
            newest: watch::Sender::new(Revision(0)),
            history,
            openings: AtomicU64::new(0),
            state: RwLock::new(State::Open(database, 0)),
        };
        let revision = shared.read("open the store", tables::revision)?;
        shared.newest.send_replace(revision);
        shared.remove_ephemeral()?;
        Ok(shared)
    }

    /// Removes the leased keys of the process that had the file open before.
    fn remove_ephemeral(&self) -> Result<(), StoreError> {
        loop {
            let left = self.read("open the store", |transaction| {
                tables::page(transaction, &lease::ephemeral(), None, MAX_OPERATIONS)
            })?;
            if left.is_empty() {
                return Ok(());
            }
            let removal = left
                .into_iter()
                .fold(Transaction::new(), |all, entry| all.delete(entry.key));
            for answer in self.commit(&[removal]) {
                answer?;
            }
        }
    }

    /// Reads at the newest revision.
    pub(super) fn read<T>(
        &self,
        operation: &'static str,
        work: impl Fn(&ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.with_transaction(operation, |transaction| work(&transaction))
    }

    /// Starts a read transaction that outlives the call.
    pub(super) fn begin_read(
        &self,
        operation: &'static str,
    ) -> Result<(ReadTransaction, Revision), StoreError> {
        self.with_transaction(operation, |transaction| {
            let revision = tables::revision(&transaction)?;
            Ok((transaction, revision))
        })
    }

    fn with_transaction<T>(
        &self,
        operation: &'static str,
        work: impl Fn(ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        // After a failed write redb refuses to read, too, until the file is reopened.
        for last in [false, true] {
            let failed = match &*self.state() {
                State::Open(database, opened) => {
                    let result = database
                        .begin_read()
                        .map_err(|error| Failure::Redb(error.into()))
                        .and_then(&work);
                    match result {
                        Ok(value) => return Ok(value),
                        Err(failure) if last || !is_disk(&failure) => {
                            return Err(open::error(&self.path, operation, failure));
                        }
                        Err(_) => Some(*opened),
                    }
                }
                State::Closed => return Err(open::closed(&self.path, operation)),
                State::Failed => None,
            };
            self.reopen(failed)?;
        }
        Err(open::closed(&self.path, operation))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reopens the file, unless that was done since the opening in which it failed. Committed transactions
    /// are in it, others are gone.
    fn reopen(&self, failed: Option<u64>) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let opened = match &*state {
            State::Closed => return Err(open::closed(&self.path, "open the store")),
            // Another thread was faster.
            State::Open(_, opened) if Some(*opened) != failed => return Ok(()),
            State::Open(_, opened) => *opened,
            State::Failed => self.openings.load(Ordering::Relaxed),
        };
        self.openings.store(opened + 1, Ordering::Relaxed);
        // Releases the lock on the file.
        *state = State::Failed;
        *state = State::Open(open::open(&self.path)?, opened + 1);
        Ok(())
    }

    /// The number of the current opening; `None` if the file is not open.
    fn opening(&self) -> Option<u64> {
        match &*self.state() {
            State::Open(_, opened) => Some(*opened),
            State::Failed | State::Closed => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state(), State::Closed)
    }

    /// Closes the file; later calls of the store fail.
    pub(super) fn close(&self) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::Closed;
        // Wake the watches, which find it closed.
        self.newest.send_modify(|_| {});
    }

    /// The writing thread: commits requests until all senders are gone.
    pub(super) fn write_until_closed(&self, mut requests: mpsc::UnboundedReceiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(request) = requests.try_recv()
            {
                group.push(request);
            }
            let (transactions, callers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            for (caller, answer) in callers.into_iter().zip(self.commit(&transactions)) {
                // The caller may no longer wait for it.
                let _ = caller.send(answer);
            }
        }
    }

    fn commit(&self, group: &[Transaction]) -> Answers {
        let opened = self.opening();
        let result = catch_unwind(AssertUnwindSafe(|| self.try_commit(group)));
        let error = match result {
            Ok(Ok((answers, revision))) => {
                self.newest.send_replace(revision);
                return answers;
            }
            Ok(Err(GroupFailure::NotOpen(error))) => error,
            Ok(Err(GroupFailure::Before(failure))) => {
                // For the next group: this one has failed already.
                let _ = self.reopen(opened);
                open::error(&self.path, "commit", failure)
            }
            Ok(Err(GroupFailure::Within(failure, answers, intended))) => {
                match self
                    .reopen(opened)
                    .and_then(|()| self.read("commit", tables::revision))
                {
                    // This is the only writer, so this revision is the group's.
                    Ok(found) if found == intended => {
                        self.newest.send_replace(found);
                        return answers;
                    }
                    Ok(_) => open::error(&self.path, "commit", failure),
                    Err(_) => StoreError::OutcomeUnknown {
                        store: self.path.display().to_string(),
                        source: Box::new(failure),
                    },
                }
            }
            Err(_) => StoreError::Corrupt {
                store: self.path.display().to_string(),
                detail: "redb panicked while writing to it".to_owned(),
            },
        };
        share(error, group.len())
    }

    fn try_commit(&self, group: &[Transaction]) -> Result<(Answers, Revision), GroupFailure> {
        if self.opening().is_none() {
            self.reopen(None).map_err(GroupFailure::NotOpen)?;
        }
        let state = self.state();
        let State::Open(database, _) = &*state else {
            return Err(GroupFailure::NotOpen(open::closed(&self.path, "commit")));
        };
        let transaction = database.begin_write()?;
        let mut answers = Vec::with_capacity(group.len());
        let mut newest = None;
        for one in group {
            let answer = tables::apply(&transaction, one, self.history).map_err(GroupFailure::Before)?;
            if let Ok(revision) = &answer {
                newest = Some(*revision);
            }
            answers.push(answer);
        }
        match newest {
            // All refused: nothing to write.
            None => {
                transaction.abort()?;
                let read = database.begin_read()?;
                let revision = tables::revision(&read).map_err(GroupFailure::Before)?;
                Ok((answers, revision))
            }
            Some(revision) => match transaction.commit() {
                Ok(()) => Ok((answers, revision)),
                Err(error) => Err(GroupFailure::Within(
                    Failure::Redb(error.into()),
                    answers,
                    revision,
                )),
            },
        }
    }
}

/// The same error for each transaction of a group.
fn share(error: StoreError, count: usize) -> Answers {
    let text = {
        let source: &dyn std::error::Error = &error;
        source.source().map(ToString::to_string)
    };
    let again = |error: &StoreError| match error {
        StoreError::Unavailable {
            operation,
            store,
            advice,
            ..
        } => StoreError::Unavailable {
            operation,
            store: store.clone(),
            advice,
            source: text.clone().unwrap_or_default().into(),
        },
        StoreError::Corrupt { store, detail } => StoreError::Corrupt {
            store: store.clone(),
            detail: detail.clone(),
        },
        other => StoreError::OutcomeUnknown {
            store: other.to_string(),
            source: text.clone().unwrap_or_default().into(),
        },
    };
    (0..count).map(|_| Err(again(&error))).collect()
}

/// Whether the disk failed, rather than the data being inconsistent.
fn is_disk(failure: &Failure) -> bool {
    match failure {
        Failure::Redb(Error::PreviousIo) => true,
        Failure::Redb(Error::Io(error)) => !matches!(
            error.kind(),
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
        ),
        Failure::Redb(_) | Failure::Corrupt(_) => false,
    }
}
