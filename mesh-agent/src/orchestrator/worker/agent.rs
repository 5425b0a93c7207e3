//! Decides what to do next for a task whose runtime is `agent`, that is, for this node's agent itself. Pure,
//! as `machine` is for containers.
//!
//! Invariants: stopping a task never stops the agent; the agent is replaced only by a program that was
//! checked and tried out; only the task's own program reports RUNNING.

use mesh_orchestrator::objects::{Task, TaskState, TaskStatus, Timestamp};

use super::machine::{Next, Work};
use crate::orchestrator::program::Digest;

/// The programs that an agent task involves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentPrograms {
    /// What this process runs.
    pub(super) own: Digest,
    /// What the task's image contains.
    pub(super) wanted: Digest,
}

/// How far this node's agent is with its own program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AgentState {
    /// The data path is not up yet, or the store was not reached yet.
    Starting,
    /// The data path is up and the store was reached.
    Proven,
    /// It is about to be replaced by another program.
    Leaving,
}

/// The inputs to one decision about an agent task.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgentObservation<'a> {
    pub(super) now: Timestamp,
    pub(super) task: &'a Task,
    /// The last reported state.
    pub(super) reported: TaskState,
    pub(super) in_progress: Option<Work>,
    /// Why preparing or starting was refused.
    pub(super) refused: Option<&'a str>,
    pub(super) programs: Option<&'a AgentPrograms>,
    pub(super) agent_state: AgentState,
    /// Why the agent went back from the task's program to the previous one.
    pub(super) failure: Option<&'a str>,
}

const WAIT: Next = Next::Wait(None);

/// What to do next for the task. `Work::Start` replaces this process by the task's program.
pub(super) fn next(observed: &AgentObservation<'_>) -> Next {
    let status = |state, message: &str| TaskStatus::new(state, observed.now, message);
    let report = |state, message: &str| Next::Report(status(state, message));
    let failed = |message: &str, error: &str| {
        // A task that was never ready was never started.
        let state = match observed.reported < TaskState::Ready {
            true => TaskState::Rejected,
            false => TaskState::Failed,
        };
        Next::Report(status(state, message).with_error(error))
    };
    if observed.reported.is_terminal() {
        return WAIT;
    }
    if !observed.task.desired.is_wanted() {
        return match observed.in_progress {
            Some(_) => Next::Abandon,
            None => report(TaskState::Shutdown, "shut down; the node's agent keeps running"),
        };
    }
    if let Some(reason) = observed.failure {
        return failed("the agent went back to its previous program", reason);
    }
    if let Some(reason) = observed.refused {
        return failed("preparing failed", reason);
    }
    if observed.in_progress.is_some() || observed.agent_state == AgentState::Leaving {
        return WAIT;
    }
    match observed.reported {
        TaskState::New | TaskState::Pending | TaskState::Assigned => {
            return report(TaskState::Accepted, "accepted");
        }
        TaskState::Accepted => return report(TaskState::Preparing, "preparing"),
        _ => {}
    }
    let Some(programs) = observed.programs else {
        return Next::Begin(Work::Prepare);
    };
    let runs_it = programs.own == programs.wanted;
    match observed.reported {
        TaskState::Preparing if runs_it => {
            report(TaskState::Ready, "prepared: the node already runs this program")
        }
        TaskState::Preparing => report(TaskState::Ready, "prepared"),
        TaskState::Ready if observed.task.desired == TaskState::Ready => WAIT,
        TaskState::Ready => report(TaskState::Starting, "starting"),
        TaskState::Starting if !runs_it => Next::Begin(Work::Start),
        TaskState::Starting if observed.agent_state == AgentState::Proven => {
            report(TaskState::Running, "started")
        }
        TaskState::Running if !runs_it => failed(
            "lost",
            "the node's agent runs another program: it was started by hand",
        ),
        _ => WAIT,
    }
}

#[cfg(test)]
mod tests;
