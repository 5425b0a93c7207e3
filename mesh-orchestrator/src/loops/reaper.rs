//! Removes tasks from the state: those to be removed as soon as they have stopped, and all but the last few
//! of a slot's history.

use super::{LoopOutput, Round, tasks::stop};
use crate::objects::{ObjectChange, ServiceId, Slot, State, Task, TaskState};

/// Number of ended tasks that are kept for each slot.
pub const HISTORY: usize = 5;

/// Removes the tasks of a slot that need not be kept.
#[must_use]
pub fn reap(state: &State, service: &ServiceId, slot: &Slot) -> LoopOutput {
    let mut output = LoopOutput::default();
    let mut history: Vec<&Task> = Vec::new();
    for task in state.slot(service, slot) {
        if task.desired == TaskState::Remove {
            if !task.status.state.holds_resources() {
                output.push(ObjectChange::RemoveTask(task.id.clone()));
            }
        } else if task.status.state.is_terminal() && !task.desired.is_wanted() {
            history.push(task);
        }
    }
    // The oldest come first.
    let excess = history.len().saturating_sub(HISTORY);
    output.changes.extend(
        history[..excess]
            .iter()
            .map(|task| ObjectChange::RemoveTask(task.id.clone())),
    );
    output
}

/// Marks all tasks of a removed service for removal.
#[must_use]
pub fn remove_all(round: &Round, state: &State, service: &ServiceId) -> LoopOutput {
    let mut output = LoopOutput::default();
    let Some(index) = state.tasks_of(service) else {
        return output;
    };
    for (_, id) in index.slots.values().flatten() {
        if let Some(task) = state.tasks().get(id) {
            stop(&mut output, task, TaskState::Remove, round.now);
        }
    }
    output
}
