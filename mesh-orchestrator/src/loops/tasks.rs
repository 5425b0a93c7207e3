//! Creates and stops tasks; shared by the loops.

use super::{LoopOutput, Round};
use crate::{
    objects::{
        EndpointPort, ObjectChange, Service, Slot, State, Task, TaskId, TaskState, TaskStatus, Timestamp,
    },
    spec::PublishMode,
};

/// A new task for a slot, with the service's current specification. It is held (desired `ready`) until
/// [`super::slots`] finds that nothing else runs in the slot.
pub(super) fn new_task(round: &Round, service: &Service, slot: Slot, purpose: &str) -> Task {
    let (state, message) = if service.released {
        (TaskState::Pending, "waiting for a node")
    } else {
        (TaskState::New, "waiting for other services")
    };
    Task {
        id: TaskId::derive(round.seed, &[service.id.as_str(), &slot.to_string(), purpose]),
        service: service.id.clone(),
        service_name: service.spec.name.as_str().into(),
        node: match &slot {
            Slot::Number(_) => None,
            Slot::Node(node) => Some(node.clone()),
        },
        slot,
        spec: service.spec.task_template.clone(),
        spec_version: service.task_version,
        host_ports: host_ports(service),
        desired: TaskState::Ready,
        status: TaskStatus::new(state, round.now, message),
        created_at: round.now,
        started_at: None,
        finished_at: None,
        not_before: None,
        restarts: Vec::new(),
        failures: 0,
        update_began: None,
        given_up: false,
    }
}

/// A new task that replaces one that has ended or must leave its node. While the service is being updated it
/// runs the same specification as that one, because only the update decides when a slot changes to the new
/// one.
pub(super) fn successor(round: &Round, service: &Service, ended: &Task, purpose: &str) -> Task {
    let mut task = new_task(round, service, ended.slot.clone(), purpose);
    if service.is_updating() && !service.spec.mode.is_job() {
        task.spec = ended.spec.clone();
        task.spec_version = ended.spec_version;
        task.host_ports = ended.host_ports.clone();
    }
    let slot_failed = || {
        service
            .update_status
            .as_ref()
            .is_some_and(|status| status.failed.contains(&ended.slot))
    };
    if task.spec_version == ended.spec_version {
        task.restarts = ended.restarts.clone();
        if ended.started_at.is_none() && !slot_failed() {
            task.update_began = ended.update_began;
        }
    }
    task
}

fn host_ports(service: &Service) -> Vec<EndpointPort> {
    let is_host = |port: &&EndpointPort| port.publish_mode == PublishMode::Host;
    service.ports.iter().filter(is_host).copied().collect()
}

/// Creates a task, which may run at once if nothing else is in its slot.
pub(super) fn create(output: &mut LoopOutput, state: &State, service: &Service, mut task: Task) {
    if state
        .slot(&task.service, &task.slot)
        .all(|other| other.status.state.is_terminal())
    {
        task.desired = running(service);
    }
    output.push(ObjectChange::CreateTask(Box::new(task)));
}

/// The desired state of a service's tasks that may run.
pub(super) fn running(service: &Service) -> TaskState {
    if service.spec.mode.is_job() {
        TaskState::Complete
    } else {
        TaskState::Running
    }
}

/// Stops a task. One that was not assigned to a node has stopped at once.
pub(super) fn stop(output: &mut LoopOutput, task: &Task, desired: TaskState, now: Timestamp) {
    if task.desired < desired {
        output.push(ObjectChange::SetDesired {
            task: task.id.clone(),
            desired,
        });
    }
    if task.status.state < TaskState::Assigned {
        output.push(ObjectChange::Observe {
            task: task.id.clone(),
            status: TaskStatus::new(
                TaskState::Shutdown,
                now,
                "stopped before it was assigned to a node",
            ),
        });
    }
}
