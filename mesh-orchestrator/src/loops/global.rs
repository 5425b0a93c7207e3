//! A global service or global job has one slot for each suitable node.

use super::{
    LoopOutput, Round,
    scheduler::suits,
    tasks::{create, new_task, stop},
};
use crate::objects::{NodeId, Service, Slot, State, TaskState};

/// Examines some nodes for one service: suitable nodes get a task, and tasks on other nodes stop. A paused
/// node keeps its task and gets no new one.
#[must_use]
pub fn global<'a>(
    round: &Round,
    state: &State,
    service: &Service,
    nodes: impl Iterator<Item = &'a NodeId>,
) -> LoopOutput {
    let mut output = LoopOutput::default();
    let index = state.tasks_of(&service.id);
    for id in nodes {
        let slot = Slot::Node(id.clone());
        let node = state.nodes().get(id);
        match node.filter(|node| node.keeps_tasks() && suits(node, &service.spec.task_template.placement)) {
            Some(node) => {
                let is_taken = index.is_some_and(|index| {
                    index.wanted.contains_key(&slot) || index.given_up.contains_key(&slot)
                });
                if node.is_schedulable() && !is_taken {
                    create(
                        &mut output,
                        state,
                        service,
                        new_task(round, service, slot, "node"),
                    );
                }
            }
            None => {
                for task in state.slot(&service.id, &slot) {
                    if task.given_up {
                        // The slot is tried again when the node is suitable again.
                        stop(&mut output, task, TaskState::Remove, round.now);
                    } else if task.is_live() || task.is_dead() {
                        stop(&mut output, task, TaskState::Shutdown, round.now);
                    }
                }
            }
        }
    }
    output
}
