//! A replicated job: a number of tasks must complete, and a limited number of them run at the same time. Each
//! change of the task template starts the job again.

use std::collections::BTreeSet;

use super::{
    LoopOutput, Round,
    tasks::{create, new_task, stop},
};
use crate::{
    objects::{Service, Slot, State, TaskState},
    spec::ReplicatedJob,
};

/// Removes tasks of earlier runs, and starts as many tasks of the current run as may run at the same time.
#[must_use]
pub fn replicated_job(round: &Round, state: &State, service: &Service, job: ReplicatedJob) -> LoopOutput {
    let mut output = outdated(round, state, service);
    let mut used = BTreeSet::new();
    let mut active = BTreeSet::new();
    for slot in state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.slots.keys())
    {
        for task in state.slot(&service.id, slot) {
            if task.spec_version == service.task_version && super::replicated::is_taken(task) {
                used.insert(slot.clone());
                if task.desired.is_wanted() && task.status.state != TaskState::Complete {
                    active.insert(slot.clone());
                }
            }
        }
    }
    let remaining = (job.total_completions as usize).saturating_sub(used.len());
    let room = (job.max_concurrent as usize).saturating_sub(active.len());
    let free = (1..=u32::MAX)
        .map(Slot::Number)
        .filter(|slot| !used.contains(slot));
    for slot in free.take(remaining.min(room)) {
        create(&mut output, state, service, new_task(round, service, slot, "job"));
    }
    output
}

/// Removes tasks of earlier runs of a job.
#[must_use]
pub fn outdated(round: &Round, state: &State, service: &Service) -> LoopOutput {
    let mut output = LoopOutput::default();
    for (_, id) in state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.slots.values())
        .flatten()
    {
        if let Some(task) = state.tasks().get(id)
            && task.spec_version != service.task_version
            && task.desired != TaskState::Remove
        {
            stop(&mut output, task, TaskState::Remove, round.now);
        }
    }
    output
}

/// Whether a job has reached the given number of completions.
#[must_use]
pub fn is_complete(state: &State, service: &Service, completions: usize) -> bool {
    let done = state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.slots.values().flatten())
        .filter(|(_, id)| {
            state.tasks().get(id).is_some_and(|task| {
                task.spec_version == service.task_version && task.status.state == TaskState::Complete
            })
        });
    done.count() >= completions
}
