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
