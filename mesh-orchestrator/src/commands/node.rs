//! Commands on nodes.

use std::collections::BTreeMap;

use super::{CommandError, service::set_rebalance};
use crate::{
    objects::{Availability, Node, NodeId, NodeRole, NodeStatus, ObjectChange, State, Timestamp},
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

/// The identifier of the worker without access to the store whose certificate has a name.
#[must_use]
pub fn worker_id(name: &str) -> NodeId {
    NodeId::derive(0, &["worker", name])
}

/// Whether a node is a worker without access to the store, which an operator has admitted.
#[must_use]
pub fn is_worker(node: &Node) -> bool {
    node.role == NodeRole::Worker && node.id == worker_id(&node.hostname)
}

/// Admits a worker without access to the store, by the name in its certificate.
///
/// # Errors
/// If the name cannot be a node's, or another node has it.
pub fn admit_worker(
    state: &State,
    name: &str,
    labels: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=63).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(CommandError::NodeName(name.to_owned()));
    }
    if state.nodes().values().any(|node| node.hostname == name) {
        return Err(CommandError::NodeExists(name.to_owned()));
    }
    let node = Node {
        id: worker_id(name),
        hostname: name.to_owned(),
        address: String::new(),
        role: NodeRole::Worker,
        labels: labels.clone(),
        engine_labels: BTreeMap::new(),
        platform: Default::default(),
        resources: Default::default(),
        availability: Availability::Active,
        status: NodeStatus::Unknown,
        status_since: now,
        returned_at: None,
    };
    Ok(put_node(state, node, now))
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
/// to have them run elsewhere. A ready node would be back at once, but not a worker without access to the
/// store: it is refused from then on.
///
/// # Errors
/// If there is no such node, or it is ready, or its status is unknown.
pub fn remove_node(state: &State, id: &NodeId, force: bool) -> Result<Vec<ObjectChange>, CommandError> {
    let node = known_node(state, id)?;
    match node.status {
        NodeStatus::Down => {}
        NodeStatus::Ready if force && is_worker(node) => {}
        NodeStatus::Unknown if force => {}
        NodeStatus::Unknown => return Err(CommandError::NodeUnknown(node.hostname.clone())),
        NodeStatus::Ready => {
            let name = node.hostname.clone();
            return Err(match is_worker(node) {
                true => CommandError::WorkerNotDown(name),
                false => CommandError::NodeNotDown(name),
            });
        }
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
    #[test]
    fn a_worker_is_admitted_by_its_name_and_removed_by_force_while_it_is_ready() {
        let mut cluster = Cluster::of(1);
        let mut admit = |name: &str| {
            let changes = admit_worker(cluster.state(), name, &BTreeMap::new(), Timestamp(5))?;
            cluster.make(changes);
            Ok::<_, CommandError>(cluster.state().nodes()[&worker_id(name)].clone())
        };
        let node = admit("edge1").unwrap();
        assert!(is_worker(&node) && node.status == NodeStatus::Unknown);
        assert!(!is_worker(&Node {
            role: NodeRole::Manager,
            ..node.clone()
        }));
        assert!(!is_worker(&Node {
            hostname: "edge2".into(),
            ..node
        }));
        assert!(matches!(admit("edge1"), Err(CommandError::NodeExists(_))));
        for name in ["", "a b", "a/b", &"x".repeat(64)] {
            assert!(matches!(admit(name), Err(CommandError::NodeName(_))), "{name}");
        }
        let id = worker_id("edge1");
        cluster.set_status(id.as_str(), NodeStatus::Ready);
        let refused = remove_node(cluster.state(), &id, false).unwrap_err().to_string();
        assert!(
            refused.contains("worker edge1") && refused.contains("--force"),
            "{refused}"
        );
        assert!(remove_node(cluster.state(), &id, true).is_ok());
    }
}
