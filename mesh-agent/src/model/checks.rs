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
        // A node without an agent goes on announcing what it found before the label was removed.
        self.cluster.services.get(&task.service)?.health.as_ref()?;
        if task.node == *self.own {
            self.failed.reason(id)
        } else {
            self.cluster.nodes.get(&task.node)?.failed.reason(id)
        }
    }
}
