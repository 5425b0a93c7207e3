//! What the names that an operator gives to `meshctl drain` stand for. Pure.

use super::{Cluster, NodeId, Task, TaskId, TaskState};

/// What the target of a drain stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainTarget<'a> {
    /// Every replica of a node.
    Node(&'a NodeId),
    /// One task.
    Task(&'a TaskId, &'a Task),
}

impl<'a> DrainTarget<'a> {
    /// What a name or id stands for, as `own` sees it: of two tasks with one name, its own is meant.
    #[must_use]
    pub fn find(name: &str, cluster: &'a Cluster, own: &str) -> Option<Self> {
        let mut nodes = cluster.nodes.iter();
        if let Some((id, _)) = nodes.find(|(id, node)| *id == name || node.hostname == name) {
            return Some(Self::Node(id));
        }
        let tasks = cluster.tasks.iter();
        let named = tasks.filter(|(id, task)| *id == name || task.name == name);
        // During an update a name can have two tasks: the one that is not about to end is meant.
        named
            .min_by_key(|(_, task)| (task.node != own, task.state != TaskState::Active))
            .map(|(id, task)| Self::Task(id, task))
    }

    /// The node whose replicas are meant.
    #[must_use]
    pub fn node(self) -> &'a NodeId {
        match self {
            Self::Node(id) => id,
            Self::Task(_, task) => &task.node,
        }
    }

    /// Its id, which stands for nothing else.
    #[must_use]
    pub fn id(self) -> &'a str {
        match self {
            Self::Node(id) => id,
            Self::Task(id, _) => id,
        }
    }
}
