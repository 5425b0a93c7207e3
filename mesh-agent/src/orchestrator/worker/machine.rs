//! Decides what to do next for a task of this node: a pure function of the desired state and one observation.
//!
//! Invariants: a task's state moves forward only; a container is stopped only if its task is no longer wanted
//! or has ended; one that gets connections from the mesh is drained before its stop signal; one that has
//! ended is kept while its task is in the history.

use std::time::Duration;

use mesh_orchestrator::objects::{Task, TaskState, TaskStatus, Timestamp};

use crate::orchestrator::runtime::{ContainerFacts, Health, Phase};

/// Time for the mesh on every node to stop sending connections to a task that is to stop.
pub(super) const SETTLE: Duration = Duration::from_millis(1000);
/// How often a draining container's connections are counted.
const COUNT: Duration = Duration::from_millis(200);
/// How long a killed container may take to end before it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// The inputs to one decision about a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation<'a> {
    pub(super) now: Timestamp,
    /// The task with its desired state.
    pub(super) task: &'a Task,
    /// The last reported state.
    pub(super) reported: TaskState,
    /// Its container, if there is one.
    pub(super) container: Option<&'a ContainerFacts>,
    /// The work in progress for it.
    pub(super) in_progress: Option<Work>,
    /// Why the engine refused to create or start the container.
    pub(super) refused: Option<&'a str>,
    /// The result of the agent's own probe; `Unchecked` if there is none.
    pub(super) probe: Health,
    /// Whether the mesh can reach the container, or need not.
    pub(super) reachable: bool,
    /// The drain, once it began.
    pub(super) drain: Option<Drain>,
    /// The signals sent so far.
    pub(super) ending: Ending,
}

/// A replica that no longer gets new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drain {
    pub(super) since: Timestamp,
    /// How long its connections may stay open.
    pub(super) limit: Duration,
    /// Whether the last count found connections.
    pub(super) busy: bool,
}

/// When a container was asked to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) signalled: Option<Timestamp>,
    pub(super) killed: Option<Timestamp>,
}

/// Work that takes time; each task has at most one in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Pull the image and create the container.
    Prepare,
    /// Start the container.
    Start,
    /// Send its stop signal.
    Signal,
    /// Kill it.
    Kill,
    /// Remove it.
    Remove,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Report this status, and decide again.
    Report(TaskStatus),
    /// Begin this work.
    Begin(Work),
    /// Stop preparing.
    Abandon,
    /// Begin to drain.
    BeginDrain,
    /// Nothing until an input changes or this time comes.
    Wait(Option<Timestamp>),
}

const WAIT: Next = Next::Wait(None);

/// What to do next for a task.
pub(super) fn next(observed: &Observation<'_>) -> Next {
    if !observed.task.desired.is_wanted() || observed.reported.is_terminal() {
        return stop(observed);
    }
    let Some(container) = observed.container else {
        return without_container(observed);
    };
    match &container.phase {
        Phase::Created => created(observed),
        Phase::Running => running(observed, container),
        Phase::Exited {
            code,
            out_of_memory,
            error,
        } => Next::Report(ended(observed.now, *code, *out_of_memory, error)),
    }
}

fn without_container(observed: &Observation<'_>) -> Next {
    let report = |state, message: &str| Next::Report(TaskStatus::new(state, observed.now, message));
    if observed.in_progress.is_some() {
        return WAIT;
    }
    match observed.reported {
        TaskState::New | TaskState::Pending | TaskState::Assigned => report(TaskState::Accepted, "accepted"),
        TaskState::Accepted => report(TaskState::Preparing, "preparing"),
        TaskState::Preparing | TaskState::Ready => match observed.refused {
            Some(error) => Next::Report(
                TaskStatus::new(TaskState::Rejected, observed.now, "preparing failed").with_error(error),
            ),
            None => Next::Begin(Work::Prepare),
        },
        _ => Next::Report(
            TaskStatus::new(TaskState::Failed, observed.now, "lost")
                .with_error("its container is gone: it was removed outside the orchestrator"),
        ),
    }
}

fn created(observed: &Observation<'_>) -> Next {
    let report = |state, message: &str| Next::Report(TaskStatus::new(state, observed.now, message));
    if observed.in_progress.is_some() {
        WAIT
    } else if observed.reported < TaskState::Ready {
        report(TaskState::Ready, "prepared")
    } else if observed.task.desired == TaskState::Ready {
        WAIT
    } else if let Some(error) = observed.refused {
        Next::Report(TaskStatus::new(TaskState::Failed, observed.now, "starting failed").with_error(error))
    } else if observed.reported < TaskState::Starting {
        report(TaskState::Starting, "starting")
    } else {
        Next::Begin(Work::Start)
    }
}

fn running(observed: &Observation<'_>, container: &ContainerFacts) -> Next {
    let report = |state, message: &str| Next::Report(TaskStatus::new(state, observed.now, message));
    if observed.reported < TaskState::Starting {
        return report(TaskState::Starting, "starting");
    }
    let health = match observed.probe {
        Health::Unchecked => container.health,
        probed => probed,
    };
    match health {
        Health::Unhealthy => Next::Report(
            TaskStatus::new(TaskState::Failed, observed.now, "unhealthy")
                .with_error("task: unhealthy container: its health check failed too often"),
        ),
        Health::Starting => WAIT,
        Health::Healthy | Health::Unchecked if observed.reported == TaskState::Running => WAIT,
        Health::Healthy | Health::Unchecked if !observed.reachable => WAIT,
        Health::Healthy | Health::Unchecked => report(TaskState::Running, "started"),
    }
}

/// The status of a task whose container ended by itself.
fn ended(now: Timestamp, code: i32, out_of_memory: bool, error: &str) -> TaskStatus {
    let mut status = if code == 0 && error.is_empty() && !out_of_memory {
        TaskStatus::new(TaskState::Complete, now, "finished")
    } else {
        let mut text = format!("task: non-zero exit ({code})");
        if out_of_memory {
            text.push_str(": out of memory: the limit is too low, or the program leaks");
        }
        if !error.is_empty() {
            text.push_str(": ");
            text.push_str(error);
        }
        TaskStatus::new(TaskState::Failed, now, "failed").with_error(text)
    };
    status.exit_code = Some(code);
    status
}

/// For a task that is no longer wanted or has ended: its container must not keep running.
fn stop(observed: &Observation<'_>) -> Next {
    let over = |message: &str, exit_code: Option<i32>| {
        if observed.reported.is_terminal() {
            return WAIT;
        }
        let mut status = TaskStatus::new(TaskState::Shutdown, observed.now, message);
        status.exit_code = exit_code;
        Next::Report(status)
    };
    match (
        observed.container.map(|container| &container.phase),
        observed.in_progress,
    ) {
        (None | Some(Phase::Created), Some(Work::Prepare)) => Next::Abandon,
        (_, Some(_)) => WAIT,
        (None | Some(Phase::Created), None) => over("shut down before it ran", None),
        (Some(Phase::Exited { code, .. }), None) => over("shutdown", Some(*code)),
        (Some(Phase::Running), None) => {
            // Only tasks reported as running get connections from the mesh.
            if observed.reported == TaskState::Running {
                match observed.drain {
                    None => return Next::BeginDrain,
                    Some(drain) if !drain.is_over(observed.now) => {
                        return Next::Wait(Some(drain.next_count(observed.now)));
                    }
                    Some(_) => {}
                }
            }
            observed
                .container
                .map_or(WAIT, |container| end(observed.now, container, observed.ending))
        }
    }
}

/// What to do next with a running container that must end.
fn end(now: Timestamp, container: &ContainerFacts, ending: Ending) -> Next {
    let kill_at = match ending {
        Ending { signalled: None, .. } => return Next::Begin(Work::Signal),
        Ending {
            killed: Some(killed), ..
        } => killed + KILL_AGAIN,
        Ending {
            signalled: Some(signalled),
            killed: None,
        } => signalled + container.stop_grace,
    };
    if now >= kill_at {
        Next::Begin(Work::Kill)
    } else {
        Next::Wait(Some(kill_at))
    }
}

/// What to do next with a container of this node whose task has ended, is gone or is assigned elsewhere. One
/// that ran is kept with its output for as long as its task is `in_history`.
pub(super) fn leftover(
    now: Timestamp,
    container: &ContainerFacts,
    in_history: bool,
    in_progress: Option<Work>,
    ending: Ending,
) -> Next {
    match (&container.phase, in_progress) {
        (_, Some(_)) => WAIT,
        (Phase::Running, None) => end(now, container, ending),
        (Phase::Exited { .. }, None) if in_history => WAIT,
        (Phase::Created | Phase::Exited { .. }, None) => Next::Begin(Work::Remove),
    }
}

impl Drain {
    fn is_over(self, now: Timestamp) -> bool {
        now >= self.since + SETTLE && (!self.busy || now >= self.since + SETTLE + self.limit)
    }

    fn next_count(self, now: Timestamp) -> Timestamp {
        (self.since + SETTLE).max(now + COUNT)
    }
}

#[cfg(test)]
mod tests;
