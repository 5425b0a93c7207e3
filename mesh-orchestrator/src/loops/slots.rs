//! Which task runs in a slot: of several, the newest of the current version stays once it runs, and a held
//! task starts when nothing else runs there.

use super::{
    LoopOutput, Round, Subject,
    tasks::{running, stop},
};
use crate::objects::{NodeStatus, ObjectChange, Service, Slot, State, Task, TaskState};

/// Stops tasks that a newer one has replaced.
///
/// Invariant: a running task of a slot is stopped only while another one runs.
#[must_use]
pub fn settle(round: &Round, state: &State, service: &Service, slot: &Slot) -> LoopOutput {
    let mut output = LoopOutput::default();
    let live: Vec<&Task> = state
        .slot(&service.id, slot)
        .filter(|task| task.is_live())
        .collect();
    if live.len() < 2 {
        return output;
    }
    let is_current = |task: &Task| task.spec_version == service.task_version;
    // The newest of the current version; among equals `max_by_key` returns the last, which is the newest.
    let Some(preferred) = live.iter().max_by_key(|task| (is_current(task), task.created_at)) else {
        return output;
    };
    let keeper = if preferred.is_running() {
        None
    } else {
        // The most advanced of the others keeps the slot alive until the preferred one runs.
        live.iter()
            .filter(|task| task.id != preferred.id)
            .max_by_key(|task| (task.status.state, task.created_at))
    };
    for task in &live {
        if task.id != preferred.id && keeper.is_none_or(|keeper| keeper.id != task.id) {
            stop(&mut output, task, TaskState::Shutdown, round.now);
        }
    }
    output
}

/// Lets a held task run when its time has come and everything that is to stop in its slot has stopped. Tasks
/// on nodes that are down are not waited for.
#[must_use]
pub fn promote(round: &Round, state: &State, service: &Service, slot: &Slot) -> LoopOutput {
    let mut output = LoopOutput::default();
    let held = |task: &&Task| task.is_live() && task.desired == TaskState::Ready;
    for task in state.slot(&service.id, slot).filter(held) {
        if let Some(time) = task.not_before.filter(|time| *time > round.now) {
            output.wake(time, Subject::Slot(service.id.clone(), slot.clone()));
            continue;
        }
        let is_in_the_way = |other: &Task| {
            other.is_stopping()
                && other
                    .node
                    .as_ref()
                    .and_then(|node| state.nodes().get(node))
                    .is_some_and(|node| node.status != NodeStatus::Down)
        };
        if !state.slot(&service.id, slot).any(is_in_the_way) {
            output.push(ObjectChange::SetDesired {
                task: task.id.clone(),
                desired: running(service),
            });
        }
    }
    output
}
