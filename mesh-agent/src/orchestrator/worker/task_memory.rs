//! What the worker remembers of one task between two looks at it. Whatever of it is lost with the agent is
//! found out again.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use mesh_orchestrator::objects::{TaskState, TaskStatus, Timestamp};
use tokio::task::AbortHandle;

use super::{
    agent::AgentPrograms,
    machine::{Drain, Ending, Work},
};
use crate::orchestrator::runtime::Health;

/// How long a container that is well waits for the mesh to find it, before it counts as running all the
/// same.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// The memory of one task.
#[derive(Debug, Default)]
pub(super) struct TaskMemory {
    /// What was last reported.
    pub(super) reported: Option<TaskStatus>,
    pub(super) in_progress: Option<(Work, AbortHandle)>,
    pub(super) refused: Option<String>,
    /// Something to tell when the container is made.
    pub(super) warning: Option<String>,
    /// Nothing is begun before.
    pub(super) not_before: Option<Timestamp>,
    pub(super) probe: Option<Probing>,
    pub(super) drain: Option<Drain>,
    pub(super) ending: Ending,
    /// Since when the container is well and the mesh should find it.
    pub(super) well_since: Option<Timestamp>,
    /// The address chosen for its container.
    pub(super) address: Option<Ipv4Addr>,
    /// Ports inside the container that the mesh sends TCP connections to.
    pub(super) ports: BTreeSet<u16>,
    /// The programs, of a task that is the agent.
    pub(super) programs: Option<AgentPrograms>,
}

/// A probe of the agent's own.
#[derive(Debug)]
pub(super) struct Probing {
    pub(super) health: Health,
    pub(super) task: AbortHandle,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TaskMemory {
    /// How far the task has come: as the store says, or further.
    pub(super) fn furthest(&self, stored: TaskState) -> TaskState {
        self.reported
            .as_ref()
            .map_or(stored, |reported| reported.state.max(stored))
    }

    /// Whether the mesh has found the container, or has been waited for long enough.
    pub(super) fn is_reachable(&mut self, found: bool, needed: bool, now: Timestamp) -> bool {
        if found || !needed {
            return true;
        }
        let since = *self.well_since.get_or_insert(now);
        now.since(since) >= REACH_LIMIT
    }

    /// When to look again because of the mesh.
    pub(super) fn reach_limit(&self) -> Option<Timestamp> {
        self.well_since.map(|since| since + REACH_LIMIT)
    }
}
