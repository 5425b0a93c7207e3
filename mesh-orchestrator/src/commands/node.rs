//! Commands on nodes.

use std::collections::BTreeMap;

use super::{CommandError, service::set_rebalance};
use crate::{
    objects::{Availability, Node, NodeId, NodeStatus, ObjectChange, State, Timestamp},
    spec::ServiceMode,
};

/// Stores a node, and starts what follows when it becomes schedulable again: automatic rebalancing.
#[must_use]
pub fn put_node(state: &State, mut node: Node, now: Timestamp) -> Vec<ObjectChange> {
    let known = state.nodes().get(&node.id);
    if known.is_none_or(|known| known.status != node.status) {
        node.status_since = now;
    }
    let returns = node.is_schedulable() && !known.is_some_and(Node::is_schedulable);
    if returns && (known.is_some() || !state.tasks().is_empty()) {
        node.returned_at = Some(now);
    }
    let mut changes = vec![ObjectChange::PutNode(Box::new(node))];
    if returns && !state.tasks().is_empty() {
        for service in state.services().values() {
            let config = &service.spec.rebalance_config;
            if config.automatic && matches!(service.spec.mode, ServiceMode::Replicated(_)) {
                changes.push(set_rebalance(service, now + config.settle, config.max_moves));
            }
        }
    }
    changes
}

/// Stores what an agent reports about its own node. What users and the leader have set is kept.
#[must_use]
pub fn describe_node(state: &State, description: &Node, now: Timestamp) -> Vec<ObjectChange> {
    let Some(known) = state.nodes().get(&description.id) else {
        let node = Node {
            status: NodeStatus::Unknown,
            returned_at: None,
            ..description.clone()
        };
        return put_node(state, node, now);
    };
    let node = Node {
        labels: known.labels.clone(),
        availability: known.availability,
        status: known.status,
        status_since: known.status_since,
        returned_at: known.returned_at,
        ..description.clone()
    };
    if node == *known {
        return Vec::new();
    }
    put_node(state, node, now)
}

/// Sets a node's availability, if one is given, and the given labels; a label without a value is removed.
///
/// # Errors
/// If there is no such node.
pub fn modify_node(
    state: &State,
    id: &NodeId,
    availability: Option<Availability>,
    labels: &BTreeMap<String, Option<String>>,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let known = known_node(state, id)?;
    let mut node = known.clone();
    node.availability = availability.unwrap_or(known.availability);
    for (name, value) in labels {
        match value {
            Some(value) => drop(node.labels.insert(name.clone(), value.clone())),
            None => drop(node.labels.remove(name)),
        }
    }
    if node == *known {
        return Ok(Vec::new());
    }
    Ok(put_node(state, node, now))
}

/// Sets whether a node is ready, as the leader finds it.
///
/// # Errors
/// If there is no such node.
pub fn set_node_status(
    state: &State,
    id: &NodeId,
    status: NodeStatus,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let node = Node {
        status,
        ..known_node(state, id)?.clone()
    };
    Ok(put_node(state, node, now))
}

/// Removes a node that is down. Its tasks may run while its status is unknown, so that it takes `force`
/// to have them run elsewhere. A ready node would be back at once.
///
/// # Errors
/// If there is no such node, or it is ready, or its status is unknown.
pub fn remove_node(state: &State, id: &NodeId, force: bool) -> Result<Vec<ObjectChange>, CommandError> {
    match known_node(state, id)?.status {
        NodeStatus::Down => {}
        NodeStatus::Unknown if force => {}
        NodeStatus::Unknown => return Err(CommandError::NodeUnknown(id.clone())),
        NodeStatus::Ready => return Err(CommandError::NodeNotDown(id.clone())),
    }
    Ok(vec![ObjectChange::RemoveNode(id.clone())])
}

fn known_node<'a>(state: &'a State, id: &NodeId) -> Result<&'a Node, CommandError> {
    state
        .nodes()
        .get(id)
        .ok_or_else(|| CommandError::UnknownNode(id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::testing::Cluster;

    #[test]
    fn a_node_whose_tasks_may_run_is_removed_by_force_only() {
        let mut cluster = Cluster::of(1);
        let id = NodeId::from("node1");
        let mut may = |status, force| {
            cluster.set_status("node1", status);
            remove_node(cluster.state(), &id, force).is_ok()
        };
        assert!(may(NodeStatus::Down, false) && may(NodeStatus::Down, true));
        assert!(!may(NodeStatus::Unknown, false) && may(NodeStatus::Unknown, true));
        assert!(!may(NodeStatus::Ready, false) && !may(NodeStatus::Ready, true));
    }
}
