//! Which replicas fail their check, as one node knows it from its own checks and from what others announce.
//! Pure.

use super::{Cluster, FailedChecks, NodeId};

/// Every replica's last known check, as one node sees them.
#[derive(Clone, Copy, Debug)]
pub struct Checks<'a> {
    /// The cluster, with what the other nodes have announced.
    pub cluster: &'a Cluster,
    /// This node.
    pub own: &'a NodeId,
    /// What its own checks have found: the managers repeat it, later.
    pub failed: &'a FailedChecks,
}

impl<'a> Checks<'a> {
    /// Why a task fails the check that its service asks for; `None` if it does not.
    #[must_use]
    pub fn failure(&self, id: &str) -> Option<&'a str> {
        let task = self.cluster.tasks.get(id)?;
        if self.is_out_of_reach(id) {
            return None;
        }
        // A node without an agent goes on announcing what it found before the label was removed.
        self.cluster.services.get(&task.service)?.health.as_ref()?;
        self.of_node(&task.node)?.reason(id)
    }

    /// Whether the mesh cannot reach a task on its node, as no bridge there leads to its container.
    #[must_use]
    pub fn is_out_of_reach(&self, id: &str) -> bool {
        let task = self.cluster.tasks.get(id);
        let of_node = task.and_then(|task| self.of_node(&task.node));
        of_node.is_some_and(|failed| failed.is_out_of_reach(id))
    }

    /// What a node says of its own replicas.
    fn of_node(&self, node: &NodeId) -> Option<&'a FailedChecks> {
        if node == self.own {
            Some(self.failed)
        } else {
            self.cluster.nodes.get(node).map(|node| &node.failed)
        }
    }
}
