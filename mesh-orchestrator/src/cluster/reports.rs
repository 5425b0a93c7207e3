//! What becomes of tasks, on its way from a node's agent to the store: in order, nothing twice, and through
//! whatever keeps the store away. Imports `commit` and `draft`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{ChangeError, Cluster, draft};
use crate::{
    objects::{ObjectChange, State, TaskId, TaskStatus},
    store::StoreError,
};

/// How many tasks' reports go into one transaction.
const TOGETHER: usize = 64;

/// The pause before the store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Reports that have not been stored yet, by task, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Reports {
    waiting: Mutex<BTreeMap<TaskId, VecDeque<TaskStatus>>>,
    count: watch::Sender<usize>,
}

impl Reports {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<TaskId, VecDeque<TaskStatus>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, task: TaskId, status: TaskStatus) {
        let mut waiting = self.waiting();
        let statuses = waiting.entry(task).or_default();
        match statuses.back_mut() {
            // A state that lies behind is old news; of how a task has ended the first word counts.
            Some(last) if last.state > status.state || last.state.is_terminal() => {}
            Some(last) if last.state == status.state => *last = status,
            Some(_) | None => statuses.push_back(status),
        }
        self.count.send_replace(waiting.len());
    }

    /// What goes next, without taking it out.
    fn next(&self) -> Vec<(TaskId, VecDeque<TaskStatus>)> {
        let waiting = self.waiting();
        let next = waiting.iter().take(TOGETHER);
        next.map(|(task, statuses)| (task.clone(), statuses.clone()))
            .collect()
    }

    /// Takes out what was stored, but for what was reported meanwhile.
    fn done(&self, stored: &[(TaskId, VecDeque<TaskStatus>)]) {
        let mut waiting = self.waiting();
        for (task, done) in stored {
            if let Some(statuses) = waiting.get_mut(task) {
                statuses.retain(|status| !done.contains(status));
                if statuses.is_empty() {
                    waiting.remove(task);
                }
            }
        }
        self.count.send_replace(waiting.len());
    }
}

impl Cluster {
    /// Reports how far a task has come. Returns at once: the report is stored as soon as the store takes it,
    /// after those of the same task before it. One that says nothing new, or comes too late, is dropped.
    pub fn report(&self, task: TaskId, status: TaskStatus) {
        self.inner.reports.add(task, status);
    }

    /// Waits until all that was reported is stored.
    pub async fn reported(&self) {
        // The sender lives as long as this handle.
        let _ = self
            .inner
            .reports
            .count
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }

    /// Stores reports for ever.
    pub(super) async fn store_reports(&self) {
        let reports = &self.inner.reports;
        let mut count = reports.count.subscribe();
        let mut together = TOGETHER;
        loop {
            if count.wait_for(|count| *count > 0).await.is_err() {
                return;
            }
            let mut next = reports.next();
            next.truncate(together);
            match self.store_some(&next).await {
                Ok(()) => {
                    reports.done(&next);
                    together = TOGETHER;
                }
                Err(ChangeError::Store(StoreError::Conflict { key, found, .. })) => {
                    // One task that somebody else changes must not hold up all others.
                    together = (together / 2).max(1);
                    self.catch_up(&key, found).await;
                }
                Err(error) => {
                    // What the store's absence means was said already.
                    if !error.is_unavailable() && !matches!(error, ChangeError::Restoring) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, tasks = next.len(), "could not store what tasks do");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn store_some(&self, reports: &[(TaskId, VecDeque<TaskStatus>)]) -> Result<(), ChangeError> {
        let drafted = {
            let mirror = self.mirror();
            let mut changes = Vec::new();
            for (task, statuses) in reports {
                changes.extend(news(mirror.state(), task, statuses));
            }
            draft::draft(&mirror, &self.author("agent", "report"), &changes)?
        };
        if !drafted.batches.is_empty() {
            let (revision, committed) = self.commit(&drafted.batches, None).await;
            self.reach(revision).await;
            committed?;
        }
        Ok(())
    }
}

/// What of some reports is new, and can still be.
fn news(state: &State, id: &TaskId, statuses: &VecDeque<TaskStatus>) -> Vec<ObjectChange> {
    let Some(task) = state.tasks().get(id) else {
        return Vec::new();
    };
    let mut seen = task.status.clone();
    let mut changes = Vec::new();
    for status in statuses {
        let is_news = status.state > seen.state || (status.state == seen.state && !same(status, &seen));
        if is_news && !seen.state.is_terminal() {
            seen = status.clone();
            changes.push(ObjectChange::Observe {
                task: id.clone(),
                status: status.clone(),
            });
        }
    }
    changes
}

/// Whether two statuses say the same, whenever they were made.
fn same(one: &TaskStatus, other: &TaskStatus) -> bool {
    let at = other.at;
    TaskStatus { at, ..one.clone() } == *other
}
