//! Replaces a service's tasks after a change, a number of slots at a time, and monitors the new ones.
//!
//! Unlike in Swarm, a slot whose new task does not run within the progress deadline has failed, and a
//! start-first slot whose new task fails keeps its old one.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    LoopOutput, Round, Subject,
    replicated::is_taken,
    tasks::{new_task, stop},
};
use crate::{
    commands,
    objects::{ObjectChange, Service, Slot, State, Task, TaskState, Timestamp, UpdateState, UpdateStatus},
    spec::{FailureAction, RestartCondition, UpdateConfig, UpdateOrder},
};

/// How far the replacement of one slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Not started.
    Outdated {
        /// Whether its old task runs.
        runs: bool,
    },
    /// In progress: counts against the parallelism, until this time at the latest.
    Busy(Option<Timestamp>),
    /// Failed.
    Failed,
    /// Replaced, and monitored until this time.
    Done(Option<Timestamp>),
}

/// Takes the update of a service one step further.
#[must_use]
pub fn update(round: &Round, state: &State, service: &Arc<Service>) -> LoopOutput {
    let mut output = LoopOutput::default();
    let Some(status) = service
        .update_status
        .as_ref()
        .filter(|status| status.state.is_active())
    else {
        return output;
    };
    let config = service.update_config();
    let mut failed = status.failed.clone();
    let mut reason = None;
    let mut outdated: Vec<(bool, Slot)> = Vec::new();
    let mut busy = 0_usize;
    let mut watched = false;
    let mut wake: Option<Timestamp> = None;
    let mut wait_until = |time: Option<Timestamp>| {
        if let Some(time) = time {
            wake = Some(wake.map_or(time, |wake| wake.min(time)));
        }
    };
    for slot in slots(state, service) {
        match progress(round, state, service, status, config, &slot, &mut reason) {
            Progress::Outdated { runs } => outdated.push((runs, slot)),
            Progress::Busy(until) => {
                busy += 1;
                wait_until(until);
            }
            Progress::Failed => drop(failed.insert(slot)),
            Progress::Done(until) => {
                watched |= until.is_some();
                wait_until(until);
            }
        }
    }
    if let Some(time) = wake {
        output.wake(time, Subject::Service(service.id.clone()));
    }
    let status = UpdateStatus {
        failed,
        ..status.clone()
    };
    let has_changed = Some(&status) != service.update_status.as_ref();
    let exceeds = has_changed && ratio(&status) > config.max_failure_ratio;
    if exceeds && config.failure_action != FailureAction::Continue {
        let reason = reason.unwrap_or_else(|| "too many tasks failed".into());
        fail(&mut output, round, state, service, status, config, &reason);
        return output;
    }
    if outdated.is_empty() && busy == 0 && !watched {
        output.push(put(service, complete(status, round.now)));
        return output;
    }
    if has_changed {
        output.push(put(service, status));
    }
    // Slots without a running task first: replacing them takes nothing down.
    outdated.sort();
    let limit = if config.parallelism == 0 {
        usize::MAX
    } else {
        config.parallelism as usize
    };
    for (_, slot) in outdated.into_iter().take(limit.saturating_sub(busy)) {
        replace(
            &mut output,
            round,
            state,
            service,
            &slot,
            config.order,
            "update",
            Some(round.now),
        );
    }
    output
}

/// Creates a new task in a slot; the old one stops now, or once the new one runs.
#[expect(
    clippy::too_many_arguments,
    reason = "each is an independent input of the replacement, which two loops use"
)]
pub(super) fn replace(
    output: &mut LoopOutput,
    round: &Round,
    state: &State,
    service: &Service,
    slot: &Slot,
    order: UpdateOrder,
    purpose: &str,
    update_began: Option<Timestamp>,
) {
    for task in state.slot(&service.id, slot) {
        // A task that does not run need not stay until the new one runs.
        let stays = order == UpdateOrder::StartFirst && task.is_running();
        if task.desired.is_wanted() && !stays {
            stop(output, task, TaskState::Shutdown, round.now);
        }
    }
    let mut task = new_task(round, service, slot.clone(), purpose);
    task.update_began = update_began;
    output.push(ObjectChange::CreateTask(Box::new(task)));
}

fn slots(state: &State, service: &Service) -> BTreeSet<Slot> {
    state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.wanted.keys().chain(index.given_up.keys()))
        .cloned()
        .collect()
}

fn progress(
    round: &Round,
    state: &State,
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    slot: &Slot,
    reason: &mut Option<String>,
) -> Progress {
    let current = || {
        state
            .slot(&service.id, slot)
            .filter(|task| task.spec_version == service.task_version)
    };
    if status.failed.contains(slot) {
        return Progress::Failed;
    }
    let ours = |task: &&Task| task.update_began.is_some_and(|began| began >= status.started_at);
    if let Some(task) = current().filter(ours).find(|task| has_failed(task, config)) {
        let cause = task.status.error.as_deref().unwrap_or(&task.status.message);
        *reason = Some(format!("{cause} (task {} of {})", task.id, task.name()));
        return Progress::Failed;
    }
    // A slot that was given up counts as such only while no wanted task is in it.
    let wanted = |task: &Task| task.desired.is_wanted();
    let is_empty = !state.slot(&service.id, slot).any(wanted);
    let counts = |task: &&Task| wanted(task) || (is_empty && is_taken(task));
    let Some(newest) = current().rfind(counts) else {
        let runs = state.slot(&service.id, slot).any(Task::is_running);
        return Progress::Outdated { runs };
    };
    let Some(began) = newest.update_began.map(|began| began.max(status.started_at)) else {
        // Another loop created it, or the slot was current all along, so its start is not monitored. The task
        // that it replaces may still run.
        let others = state
            .slot(&service.id, slot)
            .any(|task| task.id != newest.id && task.is_live());
        return if others {
            Progress::Busy(None)
        } else {
            Progress::Done(None)
        };
    };
    let Some(started) = newest.started_at else {
        let deadline = (!config.progress_deadline.is_zero()).then(|| began + config.progress_deadline);
        if deadline.is_some_and(|deadline| deadline <= round.now) {
            let limit = crate::spec::duration::format(config.progress_deadline);
            let message = &newest.status.message;
            *reason = Some(format!(
                "{message} ({} did not run within {limit})",
                newest.name()
            ));
            return Progress::Failed;
        }
        return Progress::Busy(deadline);
    };
    let others = state
        .slot(&service.id, slot)
        .any(|task| task.id != newest.id && (task.is_live() || task.is_stopping()));
    let later = |time: Timestamp| (time > round.now).then_some(time);
    match later(started + config.delay) {
        Some(time) => Progress::Busy(Some(time)),
        None if others && newest.is_live() => Progress::Busy(None),
        None => Progress::Done(later(started + config.monitor)),
    }
}

/// Whether a new task ended on its own within the monitoring time, which tasks of its service should not.
fn has_failed(task: &Task, config: &UpdateConfig) -> bool {
    let is_bad = match task.status.state {
        TaskState::Failed | TaskState::Rejected => true,
        TaskState::Complete => task
            .spec
            .restart_policy
            .condition
            .is_none_or(|condition| condition == RestartCondition::Any),
        _ => false,
    };
    let ended = task.finished_at.unwrap_or(task.status.at);
    is_bad
        && task
            .started_at
            .is_none_or(|started| ended.since(started) <= config.monitor)
}

fn ratio(status: &UpdateStatus) -> f64 {
    let failed = u32::try_from(status.failed.len()).unwrap_or(u32::MAX);
    f64::from(failed) / f64::from(status.total.max(1))
}

/// Pauses the update or rolls it back, because more slots have failed than the policy allows.
fn fail(
    output: &mut LoopOutput,
    round: &Round,
    state: &State,
    service: &Arc<Service>,
    mut status: UpdateStatus,
    config: &UpdateConfig,
    reason: &str,
) {
    if config.failure_action == FailureAction::Rollback && service.previous.is_some() {
        let message = format!("update rolled back: {reason}");
        output
            .changes
            .extend(commands::roll_back(state, service, round.now, message));
        return;
    }
    let (paused, what) = if status.state.is_rollback() {
        (UpdateState::RollbackPaused, "rollback")
    } else {
        (UpdateState::Paused, "update")
    };
    status.state = paused;
    status.message = format!("{what} paused: {reason}");
    output.push(put(service, status));
}

fn complete(mut status: UpdateStatus, now: Timestamp) -> UpdateStatus {
    let (state, what) = if status.state.is_rollback() {
        (UpdateState::RollbackCompleted, "rollback")
    } else {
        (UpdateState::Completed, "update")
    };
    status.state = state;
    status.completed_at = Some(now);
    status.message = match status.failed.len() {
        0 => format!("{what} completed"),
        failed => format!("{what} completed; {failed} of {} failed", status.total),
    };
    status
}

fn put(service: &Arc<Service>, status: UpdateStatus) -> ObjectChange {
    ObjectChange::PutService(Arc::new(Service {
        update_status: Some(status),
        ..(**service).clone()
    }))
}
