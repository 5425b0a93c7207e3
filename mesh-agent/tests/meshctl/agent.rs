//! A simulated agent: takes its node's tasks through their states as a real one does, without containers. An
//! image named `broken` cannot be run, and one named `slow` never becomes ready.

use mesh_orchestrator::{
    cluster::Cluster,
    objects::{Node, NodeId, NodeRole, Task, TaskState, TaskStatus},
    spec::{Platform, Resources},
};

/// The node's description.
pub(crate) fn description(id: &str) -> Node {
    Node {
        id: NodeId::from(id),
        hostname: "alpha".to_owned(),
        address: "192.0.2.1".to_owned(),
        role: NodeRole::Manager,
        labels: Default::default(),
        engine_labels: Default::default(),
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
        },
        resources: Resources {
            nano_cpus: 8_000_000_000,
            memory_bytes: 16 << 30,
        },
        availability: Default::default(),
        status: Default::default(),
        status_since: Default::default(),
        returned_at: None,
    }
}

/// Advances the tasks after every change, and never returns.
pub(crate) async fn work(cluster: Cluster, node: NodeId) {
    let mut changes = cluster.changes();
    loop {
        changes.mark_unchanged();
        let tasks: Vec<Task> = cluster.read(|state| {
            let ours = state.tasks_on(&node).into_iter().flat_map(|index| &index.tasks);
            ours.filter_map(|id| state.tasks().get(id)).cloned().collect()
        });
        for task in tasks
            .iter()
            .filter(|task| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal())
        {
            advance(&cluster, task);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn advance(cluster: &Cluster, task: &Task) {
    let now = cluster.clock().now();
    let report = |state: TaskState| cluster.report(task.id.clone(), TaskStatus::new(state, now, "simulated"));
    if !task.desired.is_wanted() {
        return report(TaskState::Shutdown);
    }
    for state in [TaskState::Accepted, TaskState::Preparing] {
        report(state);
    }
    let image = &task.spec.container_spec.image;
    if image.contains("broken") {
        let status =
            TaskStatus::new(TaskState::Rejected, now, "").with_error(format!("no such image: {image}"));
        return cluster.report(task.id.clone(), status);
    }
    report(TaskState::Ready);
    if task.desired == TaskState::Ready {
        return;
    }
    report(TaskState::Starting);
    if image.contains("slow") {
        return;
    }
    report(TaskState::Running);
    if task.desired == TaskState::Complete {
        report(TaskState::Complete);
    }
}
