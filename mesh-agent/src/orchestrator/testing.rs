//! A task for this module's tests.

use std::sync::Arc;

use mesh_orchestrator::{
    objects::{NodeId, ServiceId, Slot, Task, TaskId, TaskState, TaskStatus, Timestamp},
    spec::TaskSpec,
};

/// Task `t1`, the first of service `s1` (`web`), assigned to node `n1` and wanted running.
pub(super) fn task(spec: Arc<TaskSpec>) -> Task {
    Task {
        id: TaskId::from("t1"),
        service: ServiceId::from("s1"),
        service_name: "web".into(),
        slot: Slot::Number(1),
        spec,
        spec_version: 1,
        host_ports: Vec::new(),
        node: Some(NodeId::from("n1")),
        desired: TaskState::Running,
        status: TaskStatus::new(TaskState::Assigned, Timestamp(0), ""),
        created_at: Timestamp(0),
        started_at: None,
        finished_at: None,
        not_before: None,
        restarts: Vec::new(),
        failures: 0,
        update_began: None,
        given_up: false,
    }
}
