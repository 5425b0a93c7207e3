//! Turns the cluster's objects into the views that the API answers with. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::types::{NodeView, ServiceView, TaskView};
use crate::{
    cluster::Registration,
    loops::scheduler::suits,
    objects::{Node, NodeId, NodeStatus, Service, Slot, State, Task, TaskState},
    spec::{ServiceMode, ServiceSpec},
    store::revisions::{Author, RevisionId},
};

/// Maximum number of reasons for waiting that are shown.
const REASONS: usize = 16;

/// Nodes that have not registered yet, as after a backup was restored: whether their tasks run is unknown.
pub(super) fn silent(state: &State, registrations: &BTreeMap<NodeId, Registration>) -> BTreeSet<NodeId> {
    let nodes = state.nodes().values();
    nodes
        .filter(|node| node.status == NodeStatus::Unknown && !registrations.contains_key(&node.id))
        .map(|node| node.id.clone())
        .collect()
}

/// Tasks on the `silent` nodes do not count as running.
pub(super) fn service(
    state: &State,
    service: &Service,
    revision: RevisionId,
    author: Author,
    silent: &BTreeSet<NodeId>,
) -> ServiceView {
    let index = state.tasks_of(&service.id);
    let tasks = || {
        index
            .into_iter()
            .flat_map(|index| index.slots.values().flatten())
            .filter_map(|(_, id)| state.tasks().get(id))
    };
    let wanted = index.map_or(0, |index| u32::try_from(index.wanted.len()).unwrap_or(u32::MAX));
    let is_done =
        |task: &Task| task.spec_version == service.task_version && task.status.state == TaskState::Complete;
    let done = || u32::try_from(tasks().filter(|task| is_done(task)).count()).unwrap_or(u32::MAX);
    let (desired, completed) = match service.spec.mode {
        ServiceMode::Replicated(settings) => (settings.replicas, None),
        ServiceMode::Global(_) => (global(state, service), None),
        ServiceMode::ReplicatedJob(job) => {
            let done = done();
            let left = job.total_completions.saturating_sub(done);
            (left.min(job.max_concurrent), Some(done))
        }
        ServiceMode::GlobalJob(_) => {
            let done = done();
            (wanted.saturating_sub(done), Some(done))
        }
    };
    let is_unheard = |task: &&Task| {
        let node = task.node.as_ref();
        task.is_running() && node.is_some_and(|node| silent.contains(node))
    };
    let unheard = match silent.is_empty() {
        true => 0,
        false => u32::try_from(tasks().filter(is_unheard).count()).unwrap_or(u32::MAX),
    };
    // Counted, so that the most frequent come first.
    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    for task in tasks().filter(|task| {
        task.desired.is_wanted() && task.status.state <= TaskState::Pending && !task.status.message.is_empty()
    }) {
        *reasons.entry(&task.status.message).or_default() += 1;
    }
    let mut waiting: Vec<(&str, u32)> = reasons.into_iter().collect();
    waiting.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    ServiceView {
        id: service.id.clone(),
        revision,
        author,
        created_at: service.created_at,
        updated_at: service.updated_at,
        spec: Arc::clone(&service.spec),
        previous_spec: service
            .previous
            .as_ref()
            .map(|previous| Arc::clone(&previous.spec)),
        ports: service.ports.clone(),
        task_version: service.task_version,
        update_status: service.update_status.clone(),
        rebalancing: service.rebalance.is_some(),
        running: index.map_or(0, |index| index.running).saturating_sub(unheard),
        desired,
        completed,
        waiting: waiting
            .into_iter()
            .take(REASONS)
            .map(|(reason, _)| reason.to_owned())
            .collect(),
    }
}

/// How many nodes have a task of a global service, or will get one.
fn global(state: &State, service: &Service) -> u32 {
    let placement = &service.spec.task_template.placement;
    let wanted = state.tasks_of(&service.id).map(|index| &index.wanted);
    let has_task = |node: &Node| {
        let slot = Slot::Node(node.id.clone());
        wanted.is_some_and(|wanted| wanted.contains_key(&slot))
    };
    let counts = |node: &&Node| {
        has_task(node) || (node.is_schedulable() && node.keeps_tasks() && suits(node, placement))
    };
    u32::try_from(state.nodes().values().filter(counts).count()).unwrap_or(u32::MAX)
}

pub(super) fn task(state: &State, task: &Task) -> TaskView {
    TaskView {
        name: task.name(),
        node_hostname: task
            .node
            .as_ref()
            .and_then(|node| state.nodes().get(node))
            .map(|node| node.hostname.clone()),
        task: task.clone(),
    }
}

pub(super) fn node(
    state: &State,
    node: &Node,
    leader: Option<&NodeId>,
    registration: Option<Registration>,
) -> NodeView {
    let index = state.tasks_on(&node.id);
    let running = index
        .into_iter()
        .flat_map(|index| &index.tasks)
        .filter(|id| state.tasks().get(*id).is_some_and(Task::is_running))
        .count();
    NodeView {
        leader: leader == Some(&node.id),
        registration,
        running: u32::try_from(running).unwrap_or(u32::MAX),
        reserved: index.map(|index| index.reserved).unwrap_or_default(),
        node: node.clone(),
    }
}

/// Warnings about a specification that is accepted.
pub(super) fn warnings(state: &State, spec: &ServiceSpec) -> Option<Vec<String>> {
    let mut warnings: Vec<String> = spec
        .depends_on
        .iter()
        .filter(|name| state.service_named(name).is_none())
        .map(|name| {
            format!("depends_on: service {name} does not exist yet: no task starts before it is ready")
        })
        .collect();
    if let ServiceMode::Replicated(settings) = spec.mode {
        let most = spec.task_template.placement.max_replicas_per_node;
        let nodes = u32::try_from(state.nodes().len()).unwrap_or(u32::MAX);
        if most > 0 && nodes.saturating_mul(most) < settings.replicas {
            warnings.push(format!(
                "mode.replicated.replicas: with at most {most} per node, {nodes} nodes cannot run all {} replicas",
                settings.replicas
            ));
        }
    }
    (!warnings.is_empty()).then_some(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        loops::testing::{Cluster, replicas, spec},
        objects::{NodeStatus, Timestamp},
    };

    #[test]
    fn tasks_on_a_node_that_has_not_registered_do_not_count_as_running() {
        let mut cluster = Cluster::of(2);
        cluster.create(spec("web", replicas(4)));
        cluster.settle();
        let running = |cluster: &Cluster, registrations: &BTreeMap<NodeId, Registration>| {
            let revision = "1-00000000".parse().unwrap();
            let author = Author {
                by: "someone".to_owned(),
                at: Timestamp(1),
                action: "create".to_owned(),
            };
            let state = cluster.state();
            let silent = silent(state, registrations);
            service(state, cluster.service("web"), revision, author, &silent).running
        };
        let registered = BTreeMap::from([(NodeId::from("node1"), Registration::default())]);
        assert_eq!(running(&cluster, &BTreeMap::new()), 4);
        cluster.set_status("node1", NodeStatus::Unknown);
        assert_eq!(running(&cluster, &BTreeMap::new()), 2);
        // Its agent waits for its engine.
        assert_eq!(running(&cluster, &registered), 4);
    }
}
