//! Task statuses on their way from a node's agent to the store: in order, without repetition, and across
//! outages of the store. Imports `commit` and `draft`.

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

/// The longest text of a report; the rest is cut off.
const MAX_TEXT: usize = 4096;

/// The pause before the store is tried again.
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

    fn add(&self, task: TaskId, mut status: TaskStatus) {
        shorten(&mut status.message);
        if let Some(error) = &mut status.error {
            shorten(error);
        }
        let mut waiting = self.waiting();
        let statuses = waiting.entry(task).or_default();
        match statuses.back_mut() {
            // An earlier state is out of date, and the first report of how a task ended counts.
            Some(last) if last.state > status.state || last.state.is_terminal() => {}
            Some(last) if last.state == status.state => *last = status,
            Some(_) | None => statuses.push_back(status),
        }
        self.count.send_replace(waiting.len());
    }

    /// The next reports, without removing them.
    fn next(&self) -> Vec<(TaskId, VecDeque<TaskStatus>)> {
        let waiting = self.waiting();
        let next = waiting.iter().take(TOGETHER);
        next.map(|(task, statuses)| (task.clone(), statuses.clone()))
            .collect()
    }

    /// Removes what was stored; newer reports stay.
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
    /// Reports a task's status. Returns immediately: the report is stored as soon as the store accepts it,
    /// after earlier reports of the same task. A report that is not new, or out of date, is dropped.
    pub fn report(&self, task: TaskId, status: TaskStatus) {
        self.inner.reports.add(task, status);
    }

    /// Waits until all reports are stored.
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

    /// Stores reports, forever.
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
                    // A task that others change must not hold up the rest.
                    together = (together / 2).max(1);
                    self.catch_up(&key, found).await;
                }
                Err(ChangeError::TooLarge { key, .. }) if next.len() == 1 => {
                    tracing::error!(
                        %key,
                        "the task cannot be stored any more, so that its reports are dropped; remove its service"
                    );
                    reports.done(&next);
                    together = TOGETHER;
                }
                Err(ChangeError::TooLarge { .. }) => together = (together / 2).max(1),
                Err(error) => {
                    // `note` has logged that the store is unavailable.
                    if !error.is_unavailable() && !matches!(error, ChangeError::Restoring) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, tasks = next.len(), "could not store task reports");
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
                changes.extend(new_statuses(mirror.state(), task, statuses));
            }
            draft::draft(&mirror, &self.author("agent", "report"), &changes, 0)?
        };
        if !drafted.batches.is_empty() {
            let (revision, committed) = self.commit(&drafted.batches, None).await;
            self.catch_up_to(revision).await;
            committed?;
        }
        Ok(())
    }
}

/// The reports that are new and still possible.
fn new_statuses(state: &State, id: &TaskId, statuses: &VecDeque<TaskStatus>) -> Vec<ObjectChange> {
    let Some(task) = state.tasks().get(id) else {
        return Vec::new();
    };
    let mut seen = task.status.clone();
    let mut changes = Vec::new();
    for status in statuses {
        let is_new = status.state > seen.state || (status.state == seen.state && !same(status, &seen));
        if is_new && !seen.state.is_terminal() {
            seen = status.clone();
            changes.push(ObjectChange::Observe {
                task: id.clone(),
                status: status.clone(),
            });
        }
    }
    changes
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str(" ...");
    }
}

/// Whether two statuses are equal but for their time.
fn same(one: &TaskStatus, other: &TaskStatus) -> bool {
    let at = other.at;
    TaskStatus { at, ..one.clone() } == *other
}
