//! What an operator drains on a node: replicas that keep their flows and get no new ones. Plain data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The replicas that an operator drains on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drained {
    /// Every replica of the node, later ones too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub node: bool,
    /// The ids of these tasks.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tasks: BTreeSet<String>,
}

impl Drained {
    /// So many tasks at once: a node's announcement is limited to 1 KiB.
    pub const MAX_TASKS: usize = 24;

    /// Whether nothing is drained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.node && self.tasks.is_empty()
    }

    /// Whether a task of the node is drained.
    #[must_use]
    pub fn contains(&self, task: &str) -> bool {
        self.node || self.tasks.contains(task)
    }
}

/// Which replicas of one node to drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    /// The name or id of the node, or of one of its tasks.
    pub target: String,
    /// Whether to end a drain.
    #[serde(default)]
    pub undo: bool,
    /// Whether the last replica of a service may be drained.
    #[serde(default)]
    pub force: bool,
}

/// The drained replicas of one node, with their open connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// Whether every replica of the node is drained, later ones too.
    pub node: bool,
    /// The drained replicas.
    pub replicas: Vec<DrainedReplica>,
}

/// A replica that keeps its connections and gets no new ones, because an operator drains it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedReplica {
    /// The task's name.
    pub task: String,
    /// The task's id.
    pub task_id: String,
    /// Its open connections, through whichever node; `None` where the data path does not count them.
    pub open: Option<u64>,
}
