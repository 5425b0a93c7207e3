//! The states of a task.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The states of a task, in the order in which it goes through them; with Swarm's names.
///
/// As desired states only `Ready`, `Running`, `Complete`, `Shutdown` and `Remove` occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created; waits for the services that its service depends on.
    New,
    /// Waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node's agent has accepted it.
    Accepted,
    /// The node pulls the image and creates the container.
    Preparing,
    /// Ready to start.
    Ready,
    /// Starting, or not healthy yet.
    Starting,
    /// Running, and healthy if it has a health check.
    Running,
    /// Ended without an error.
    Complete,
    /// Stopped as requested.
    Shutdown,
    /// Ended with an error.
    Failed,
    /// The node could not run it.
    Rejected,
    /// To be removed.
    Remove,
    /// Its node is gone, and its fate is unknown.
    Orphaned,
}

impl TaskState {
    /// All of them, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// As an observed state: whether the task has ended for good.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// As an observed state: whether its node may have a container of it and reserves resources for it.
    #[must_use]
    pub fn holds_resources(self) -> bool {
        (Self::Assigned..=Self::Running).contains(&self)
    }

    /// As a desired state: whether the task is meant to run, or to run to completion.
    #[must_use]
    pub fn is_wanted(self) -> bool {
        self <= Self::Complete
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        })
    }
}
