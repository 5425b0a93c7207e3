//! What no node and no slot may come to, in the simulation of the loops alone and in that of whole members.

use std::collections::BTreeSet;

use mesh_orchestrator::{
    objects::{Node, ServiceId, Slot, State, Task, TaskId, TaskState},
    spec::Resources,
};

/// A slot never has two live tasks, except with start-first. Those that were cut off do not count.
pub(crate) fn check_slot(
    state: &State,
    (service, slot): (&ServiceId, &Slot),
    cut_off: &BTreeSet<TaskId>,
    start_first: &BTreeSet<ServiceId>,
) -> Result<(), String> {
    let is_alive = |task: &&Task| {
        let starts = task.desired.is_wanted() && task.desired != TaskState::Ready;
        let state = task.status.state;
        let may_run = (TaskState::Starting..=TaskState::Running).contains(&state)
            || (starts && (TaskState::Assigned..=TaskState::Ready).contains(&state));
        may_run && !cut_off.contains(&task.id)
    };
    let alive: Vec<&Task> = state.slot(service, slot).filter(is_alive).collect();
    if alive.len() > allowed(start_first, service) {
        return Err(format!(
            "{} tasks are alive in slot {slot} of {service}: {alive:#?}",
            alive.len()
        ));
    }
    Ok(())
}

/// How many tasks of a slot may be alive.
pub(crate) fn allowed(start_first: &BTreeSet<ServiceId>, service: &ServiceId) -> usize {
    if start_first.contains(service) { 2 } else { 1 }
}

/// Reservations never exceed a node, and its ports are used once. The tasks are those that hold resources.
pub(crate) fn check_node<'a>(
    node: &Node,
    holding: impl Iterator<Item = &'a Task> + Clone,
) -> Result<(), String> {
    let reserved = holding.clone().fold(Resources::default(), |sum, task| {
        sum.plus(task.spec.resources.reservations)
    });
    if !node.resources.holds(reserved) {
        return Err(format!(
            "{} has {:?}, but {reserved:?} is reserved",
            node.id, node.resources
        ));
    }
    let mut ports = BTreeSet::new();
    for port in holding.flat_map(|task| &task.host_ports) {
        if !ports.insert((port.protocol, port.published_port)) {
            return Err(format!(
                "port {} is used twice on {}",
                port.published_port, node.id
            ));
        }
    }
    Ok(())
}
