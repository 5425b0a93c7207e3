//! Replaces a task that has ended on its own: after a delay, as the restart policy allows.

use super::{
    LoopOutput, Round,
    tasks::{stop, successor},
};
use crate::{
    objects::{ObjectChange, Service, Slot, State, Task, TaskState, Timestamp},
    spec::RestartCondition,
};

/// Replaces or gives up each ended task of a slot.
#[must_use]
pub fn restart(round: &Round, state: &State, service: &Service, slot: &Slot) -> LoopOutput {
    let mut output = LoopOutput::default();
    let mut has_live = state.slot(&service.id, slot).any(Task::is_live);
    for task in state.slot(&service.id, slot).filter(|task| task.is_dead()) {
        if has_live {
            // Another task fills the slot, or is about to.
            stop(&mut output, task, TaskState::Shutdown, round.now);
            continue;
        }
        let Some(next) = follow(round, service, task) else {
            output.push(ObjectChange::GiveUp(task.id.clone()));
            continue;
        };
        stop(&mut output, task, TaskState::Shutdown, round.now);
        output.push(ObjectChange::CreateTask(Box::new(next)));
        has_live = true;
    }
    output
}

/// The task that follows, if the policy allows one.
fn follow(round: &Round, service: &Service, ended: &Task) -> Option<Task> {
    let mut next = successor(round, service, ended, "restart");
    if ended.status.state == TaskState::Orphaned {
        // It has not failed: replace it at once, and do not count that as a restart.
        return Some(next);
    }
    let policy = &ended.spec.restart_policy;
    let is_job = service.spec.mode.is_job();
    let default = if is_job {
        RestartCondition::OnFailure
    } else {
        RestartCondition::Any
    };
    let wanted = match policy.condition.unwrap_or(default) {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended.status.state != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !wanted {
        return None;
    }
    if policy.max_attempts > 0 {
        let counts = |time: &Timestamp| policy.window.is_zero() || round.now.since(*time) < policy.window;
        next.restarts.retain(counts);
        if next.spec_version == ended.spec_version && next.restarts.len() >= policy.max_attempts as usize {
            return None;
        }
        next.restarts.push(round.now);
    } else {
        next.restarts.clear();
    }
    next.not_before = Some(ended.finished_at.unwrap_or(round.now) + policy.delay);
    Some(next)
}
