//! The states that a task goes through, in order; with Swarm's names.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The states of a task, in the order in which it goes through them; with Swarm's names.
///
/// As a desired state only `Ready`, `Running`, `Complete`, `Shutdown` and `Remove` occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Made; waits for what the service depends on.
    New,
    /// Waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node knows of it.
    Accepted,
    /// The node pulls the image and makes the container.
    Preparing,
    /// Could start.
    Ready,
    /// Starts, or is not healthy yet.
    Starting,
    /// Runs, and is healthy where there is a check.
    Running,
    /// Has ended without an error.
    Complete,
    /// Was asked to stop and has.
    Shutdown,
    /// Has ended with an error.
    Failed,
    /// The node could not run it.
    Rejected,
    /// Is to be removed.
    Remove,
    /// Its node is gone, and nobody knows what became of it.
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

    /// Observed: it does not run any more and never will.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Observed: its node may have a container of it, and keeps resources for it.
    #[must_use]
    pub fn holds_resources(self) -> bool {
        (Self::Assigned..=Self::Running).contains(&self)
    }

    /// Desired: it is meant to run, or to run to its end.
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
