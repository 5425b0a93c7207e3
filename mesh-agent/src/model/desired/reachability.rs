//! Which tasks this node can send to, and whether with new flows.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{BackendState, Location};
use crate::model::{Checks, Cluster, Draining, Local, Node, NodeDatapath, NodeId, ServiceId, Task, TaskId};

/// Where this node would send a task's packets, and whether new flows may go there.
#[derive(Clone, Copy)]
pub(super) struct Reachability {
    pub(super) location: Location,
    pub(super) state: BackendState,
}

/// The tasks that this node can send to.
pub(super) fn reachable<'a>(cluster: &'a Cluster, local: &Local) -> BTreeMap<&'a TaskId, Reachability> {
    let mut reachable: BTreeMap<&TaskId, Reachability> = cluster
        .tasks
        .iter()
        .filter_map(|(id, task)| Some((id, reachability(cluster, local, id, task)?)))
        .collect();
    avoid_silent_nodes(cluster, local, &mut reachable);
    avoid_failed_replicas(cluster, local, &mut reachable);
    reachable
}

/// `None` where this node cannot send to the task, or no longer does.
fn reachability(cluster: &Cluster, local: &Local, id: &TaskId, task: &Task) -> Option<Reachability> {
    let checks = Checks {
        cluster,
        own: &local.node,
        failed: &local.failed,
    };
    if local.drained_out.contains(id) || checks.is_out_of_reach(id) {
        return None;
    }
    let state = if takes_new_flows(cluster, local, id, task) {
        BackendState::Active
    } else {
        BackendState::Draining
    };
    if task.node == local.node {
        // The manager lists a task before the engine lists its container, which follows within moments.
        let location = Location::Local(*local.containers.get(id)?);
        return Some(Reachability { location, state });
    }
    let node = cluster.nodes.get(&task.node)?;
    // What managers do not hear of may work: its connections go on while its data path answers this node.
    let state = match node.ready {
        true => state,
        false if local.answered.contains(&node.address) && !is_silent(local, node) => BackendState::Draining,
        false => return None,
    };
    if local.without_hook.contains_key(&node.address) {
        return None;
    }
    let location = Location::Remote(node.address);
    match local.datapath_of(node) {
        kind if kind.takes_from(local.datapath) => Some(Reachability { location, state }),
        NodeDatapath::Leaving => Some(Reachability {
            location,
            state: BackendState::Draining,
        }),
        NodeDatapath::Unknown | NodeDatapath::None | NodeDatapath::Ebpf | NodeDatapath::Ipvs => None,
    }
}

/// Whether a task is meant to take new flows: it is not about to end, and no operator drains it.
fn takes_new_flows(cluster: &Cluster, local: &Local, id: &TaskId, task: &Task) -> bool {
    let draining = Draining {
        cluster,
        own: &local.node,
        drained: &local.drained,
    };
    !draining.has(id, task)
}

/// Sends no new flows to silent nodes if a service has active tasks elsewhere that this node can reach, and
/// gives up what it has there once such a node is lost. Otherwise the service keeps what it has: a silent
/// node may be working.
fn avoid_silent_nodes(cluster: &Cluster, local: &Local, reachable: &mut BTreeMap<&TaskId, Reachability>) {
    let silent: BTreeSet<&NodeId> = cluster
        .nodes
        .iter()
        .filter(|(id, node)| **id != local.node && is_silent(local, node))
        .map(|(id, _)| id)
        .collect();
    if silent.is_empty() {
        return;
    }
    let task_of = |id: &TaskId| cluster.tasks.get(id);
    let elsewhere: BTreeSet<&ServiceId> = reachable
        .iter()
        .filter(|(_, reachability)| reachability.state == BackendState::Active)
        .filter_map(|(id, _)| task_of(id))
        .filter(|task| !silent.contains(&task.node))
        .map(|task| &task.service)
        .collect();
    reachable.retain(|id, reachability| {
        let avoided =
            task_of(id).is_some_and(|task| silent.contains(&task.node) && elsewhere.contains(&task.service));
        if avoided {
            reachability.state = BackendState::Draining;
        }
        !(avoided && is_lost(local, reachability.location))
    });
}

/// Sends no new flows to replicas that fail their check while another of the service's passes. When all
/// fail, all are tried: the check may be wrong, and a client that is refused has nothing.
fn avoid_failed_replicas(cluster: &Cluster, local: &Local, reachable: &mut BTreeMap<&TaskId, Reachability>) {
    let checks = Checks {
        cluster,
        own: &local.node,
        failed: &local.failed,
    };
    let failed: BTreeSet<&TaskId> = reachable
        .keys()
        .copied()
        .filter(|id| checks.failure(id).is_some())
        .collect();
    if failed.is_empty() {
        return;
    }
    let service_of = |id: &TaskId| cluster.tasks.get(id).map(|task| &task.service);
    let passed_by: BTreeSet<&ServiceId> = reachable
        .iter()
        .filter(|(id, reachability)| reachability.state == BackendState::Active && !failed.contains(*id))
        .filter_map(|(id, _)| service_of(id))
        .collect();
    for (id, reachability) in reachable.iter_mut() {
        if failed.contains(*id) && service_of(id).is_some_and(|service| passed_by.contains(service)) {
            reachability.state = BackendState::Draining;
        }
    }
}

/// Whether a node seems to be out of reach: its agent has lost contact with the cluster, or its data path
/// does not answer this node.
fn is_silent(local: &Local, node: &Node) -> bool {
    node.silent || local.silent.contains(&node.address)
}

fn is_lost(local: &Local, location: Location) -> bool {
    match location {
        Location::Local(_) => false,
        Location::Remote(address) => local.lost.contains(&address),
    }
}

/// The services that have tasks for new flows, and none to which this node can send them.
pub(super) fn unreached<'a>(
    cluster: &'a Cluster,
    local: &Local,
    reachable: &BTreeMap<&TaskId, Reachability>,
) -> BTreeSet<&'a ServiceId> {
    let mut unreached = BTreeSet::new();
    let mut reached = BTreeSet::new();
    for (id, task) in &cluster.tasks {
        if reachable
            .get(id)
            .is_some_and(|reachability| reachability.state == BackendState::Active)
        {
            reached.insert(&task.service);
        } else if takes_new_flows(cluster, local, id, task) {
            unreached.insert(&task.service);
        }
    }
    unreached.difference(&reached).copied().collect()
}
