//! Replaces a task that has ended on its own: after a delay, as the restart policy allows.
//!
//! The delay is the policy's, and grows while a slot's tasks keep failing: twice as long each time, up to a
//! minute, as the engine does for containers with a restart policy. A task that ran for 10 s begins
//! anew.
//!
//! A task that has run is replaced at once by one that is prepared and held until the delay is over. One that
//! never ran is replaced only then: preparing is what fails.

use std::time::Duration;

use super::{
    LoopOutput, Round, Subject,
    tasks::{stop, successor},
};
use crate::{
    objects::{ObjectChange, Service, Slot, State, Task, TaskState, Timestamp},
    spec::RestartCondition,
};

/// The delay after the second failure in a row; it doubles with each.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay, unless the policy's is longer.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A task that ran for this long has not failed to start.
const LASTING: Duration = Duration::from_secs(10);

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
        if let Some(time) = next.not_before.filter(|time| *time > round.now)
            && task.started_at.is_none()
        {
            output.wake(time, Subject::Slot(service.id.clone(), slot.clone()));
            // It fills the slot until then.
            has_live = true;
            continue;
        }
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
    let ended_at = ended.finished_at.unwrap_or(ended.status.at);
    let has_failed = ended.status.state != TaskState::Complete;
    let lasted = ended
        .started_at
        .is_some_and(|started| ended_at.since(started) >= LASTING);
    next.failures = match has_failed && !lasted {
        true if next.spec_version == ended.spec_version => ended.failures.saturating_add(1),
        true => 1,
        false => 0,
    };
    let due = ended_at + policy.delay.max(back_off(next.failures));
    // A task that failed while it was held does not shorten that.
    next.not_before = Some(ended.not_before.map_or(due, |held| held.max(due)));
    Some(next)
}

/// The least delay after a number of failures in a row.
fn back_off(failures: u32) -> Duration {
    let doublings = match failures {
        0 | 1 => return Duration::ZERO,
        failures => failures - 2,
    };
    2_u32
        .checked_pow(doublings)
        .and_then(|factor| FIRST_DELAY.checked_mul(factor))
        .map_or(LONGEST_DELAY, |delay| delay.min(LONGEST_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute() {
        let delays: Vec<u128> = (1..15).map(|failures| back_off(failures).as_millis()).collect();
        assert_eq!(delays[..5], [0, 100, 200, 400, 800]);
        assert_eq!(delays[10..], [51_200, 60_000, 60_000, 60_000]);
        assert_eq!(back_off(u32::MAX), LONGEST_DELAY);
    }
}
