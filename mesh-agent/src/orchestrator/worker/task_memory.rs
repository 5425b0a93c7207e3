//! What the worker remembers of one task between two passes. A restarted agent rebuilds it.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use mesh_orchestrator::objects::{TaskState, TaskStatus, Timestamp};
use tokio::task::AbortHandle;

use super::{
    agent::AgentPrograms,
    machine::{Drain, Ending, Work},
};
use crate::orchestrator::runtime::Health;

/// How long a healthy container waits for the mesh to find it; then it counts as running anyway.
const REACH_LIMIT: Duration = Duration::from_secs(5);

/// The memory of one task.
#[derive(Debug, Default)]
pub(super) struct TaskMemory {
    /// The last reported status.
    pub(super) reported: Option<TaskStatus>,
    pub(super) in_progress: Option<(Work, AbortHandle)>,
    pub(super) refused: Option<String>,
    /// A warning to include in the next reports.
    pub(super) warning: Option<String>,
    /// No work is started before this time.
    pub(super) not_before: Option<Timestamp>,
    pub(super) probe: Option<Probing>,
    pub(super) drain: Option<Drain>,
    pub(super) ending: Ending,
    /// When the container first was healthy but not found by the mesh yet.
    pub(super) healthy_since: Option<Timestamp>,
    /// The mesh address chosen for its container.
    pub(super) address: Option<Ipv4Addr>,
    /// Ports inside the container that the mesh sends TCP connections to.
    pub(super) ports: BTreeSet<u16>,
    /// The programs involved, if the task's runtime is the agent.
    pub(super) programs: Option<AgentPrograms>,
}

/// A probe that the agent runs.
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
    /// The task's furthest state: the stored one, or a later one that was reported.
    pub(super) fn furthest(&self, stored: TaskState) -> TaskState {
        self.reported
            .as_ref()
            .map_or(stored, |reported| reported.state.max(stored))
    }

    /// Whether the mesh found the container, or had long enough to do so.
    pub(super) fn is_reachable(&mut self, found: bool, needed: bool, now: Timestamp) -> bool {
        if found || !needed {
            return true;
        }
        let since = *self.healthy_since.get_or_insert(now);
        now.since(since) >= REACH_LIMIT
    }

    /// When the mesh has had long enough to find the container.
    pub(super) fn reach_limit(&self) -> Option<Timestamp> {
        self.healthy_since.map(|since| since + REACH_LIMIT)
    }
}
