//! Whether a service is as it was asked to be, from what the API answers, as docker's progress display has
//! it. Pure: the time is passed in.

use std::{collections::BTreeMap, time::Duration};

use mesh_orchestrator::{
    api::types::{ServiceView, TaskView},
    objects::{Slot, TaskState, UpdateState, UpdateStatus},
    spec::ServiceMode,
};

/// Most tasks that have a line of their own.
const MAX_LINES: usize = 20;

/// How often in a row a task must fail before it ran, to call that its end: it is tried again, but what
/// refuses it is unlikely to change by itself.
const ATTEMPTS: u32 = 3;

/// How long tasks are waited for that shall stop, beyond the time that they have for it: those of a node that
/// is down are only known to have stopped when it is back.
const STOPPING: Duration = Duration::from_secs(30);

/// Time that a task has to stop unless its specification says otherwise.
const GRACE: Duration = Duration::from_secs(10);

/// What is to be seen of a service on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    /// The update is on its way back.
    pub(crate) rollback: bool,
    /// Tasks that are as they shall be.
    pub(crate) done: u32,
    /// Tasks that shall be.
    pub(crate) total: u32,
    /// Tasks beyond these whose containers have not stopped yet.
    pub(crate) surplus: u32,
    /// One line for each task, if they are not too many.
    pub(crate) lines: Vec<Line>,
    /// Why tasks do not run yet.
    pub(crate) waiting: Vec<String>,
    /// Why a task cannot start, after several attempts.
    pub(crate) refused: Option<String>,
}

/// A task on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// `2/3`, or a node's name.
    pub(crate) label: String,
    /// How far it has come, if there is one.
    pub(crate) state: Option<TaskState>,
    /// Why the last one failed.
    pub(crate) error: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again.
    Wait,
    /// All run: look for so many seconds more whether they stay.
    Verify(u64),
    /// A task has failed while it was looked whether all stay.
    Unstable,
    /// It has ended.
    End(Outcome),
}

/// How a change of a service ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As asked for.
    Converged,
    /// A job's tasks have all completed.
    JobComplete,
    /// The update failed, and the service is what it was before.
    RolledBack(String),
    /// The update, or the way back, has stopped.
    Paused(String),
    /// Tasks have ended and are not replaced, or cannot start.
    GivenUp(String),
}

/// Follows one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Convergence {
    /// Since when all run.
    since: Option<Duration>,
    /// Since when all run, and others still have to stop.
    stopping_since: Option<Duration>,
    /// A message of the update that has to be told at the end.
    rolled_back: Option<String>,
}

impl Convergence {
    /// What is to be seen now, and what to do next. `now` is any clock that only goes forward.
    pub(crate) fn observe(
        &mut self,
        service: &ServiceView,
        tasks: &[TaskView],
        now: Duration,
    ) -> (Picture, Step) {
        let (picture, given_up) = picture(service, tasks);
        let step = self.step(service, &picture, given_up, now);
        (picture, step)
    }

    fn step(
        &mut self,
        service: &ServiceView,
        picture: &Picture,
        given_up: Option<String>,
        now: Duration,
    ) -> Step {
        let mut is_active = false;
        if let Some(status) = current_update(service) {
            match status.state {
                UpdateState::Updating | UpdateState::RollbackStarted => is_active = true,
                UpdateState::Paused => {
                    return Step::End(Outcome::Paused(format!(
                        "service update paused: {}",
                        status.message
                    )));
                }
                UpdateState::RollbackPaused => {
                    return Step::End(Outcome::Paused(format!(
                        "service rollback paused: {}",
                        status.message
                    )));
                }
                UpdateState::Completed => {}
                UpdateState::RollbackCompleted => self.rolled_back = Some(status.message.clone()),
            }
        }
        if let Some(error) = given_up {
            return Step::End(Outcome::GivenUp(error));
        }
        // An update judges its tasks itself.
        if let Some(error) = picture.refused.as_ref().filter(|_| !is_active) {
            return Step::End(Outcome::GivenUp(error.clone()));
        }
        if picture.done < picture.total {
            return match self.since.take() {
                Some(_) => Step::Unstable,
                None => Step::Wait,
            };
        }
        if service.spec.mode.is_job() {
            return Step::End(Outcome::JobComplete);
        }
        if picture.surplus > 0 {
            let since = *self.stopping_since.get_or_insert(now);
            let grace = service.spec.task_template.container_spec.stop_grace_period;
            if now.saturating_sub(since) < grace.unwrap_or(GRACE) + STOPPING {
                return Step::Wait;
            }
        }
        let since = *self.since.get_or_insert(now);
        // Nothing that could fail within the time.
        let monitor = if picture.total == 0 {
            Duration::ZERO
        } else {
            service.spec.update_config.monitor
        };
        match monitor.checked_sub(now.saturating_sub(since)) {
            Some(left) if !left.is_zero() => {
                Step::Verify(left.as_secs() + u64::from(left.subsec_nanos() > 0))
            }
            _ if is_active => Step::Verify(1),
            _ => Step::End(match self.rolled_back.take() {
                Some(message) => Outcome::RolledBack(message),
                None => Outcome::Converged,
            }),
        }
    }
}

/// The update that came of the last change; an older one says nothing about it.
fn current_update(service: &ServiceView) -> Option<&UpdateStatus> {
    let status = service.update_status.as_ref();
    status.filter(|status| status.started_at >= service.updated_at)
}

/// The picture, and the error of a task that has ended and is not replaced.
fn picture(service: &ServiceView, tasks: &[TaskView]) -> (Picture, Option<String>) {
    let mut slots: BTreeMap<&Slot, &TaskView> = BTreeMap::new();
    for view in tasks {
        if view.task.spec_version != service.task_version || view.task.desired == TaskState::Remove {
            continue;
        }
        let newest = slots.entry(&view.task.slot).or_insert(view);
        if rank(view) > rank(newest) {
            *newest = view;
        }
    }
    let mode = service.spec.mode;
    let wanted = |view: &&TaskView| view.task.desired.is_wanted();
    let count = |state: TaskState| {
        let reached = slots
            .values()
            .filter(|view| view.task.desired.is_wanted() && view.task.status.state == state);
        u32::try_from(reached.count()).unwrap_or(u32::MAX)
    };
    let (done, total) = match mode {
        ServiceMode::Replicated(settings) => (count(TaskState::Running), settings.replicas),
        ServiceMode::Global(_) => (count(TaskState::Running), service.desired),
        ServiceMode::ReplicatedJob(job) => (service.completed.unwrap_or(0), job.total_completions),
        ServiceMode::GlobalJob(_) => {
            let completed = service.completed.unwrap_or(0);
            (completed, completed + service.desired)
        }
    };
    let given_up = slots
        .values()
        .find(|view| view.task.given_up && view.task.status.state != TaskState::Complete)
        .map(|view| {
            let error = view.task.status.error.as_deref().unwrap_or("it has ended");
            format!("{error} (task {}, which is not restarted)", view.name)
        });
    let refused = slots.values().copied().filter(wanted).find_map(refused);
    let status = current_update(service);
    let picture = Picture {
        rollback: status.is_some_and(|status| status.state.is_rollback() && status.completed_at.is_none()),
        done: done.min(total),
        total,
        surplus: if mode.is_job() {
            0
        } else {
            let alive = tasks
                .iter()
                .filter(|view| view.task.status.state.holds_resources());
            u32::try_from(alive.count())
                .unwrap_or(u32::MAX)
                .saturating_sub(total)
        },
        lines: if usize::try_from(total).is_ok_and(|total| total <= MAX_LINES) {
            lines(mode, total, slots.values().copied().filter(wanted))
        } else {
            Vec::new()
        },
        waiting: service.waiting.clone(),
        refused,
    };
    (picture, given_up)
}

/// Why a task cannot start, if it and those before it have failed often enough before they ran.
fn refused(view: &TaskView) -> Option<String> {
    let task = &view.task;
    let attempts = task.failures + 1;
    let never_ran =
        task.started_at.is_none() && matches!(task.status.state, TaskState::Rejected | TaskState::Failed);
    let error = task
        .status
        .error
        .as_deref()
        .filter(|_| never_ran && attempts >= ATTEMPTS)?;
    Some(format!(
        "{error} (task {} after {attempts} attempts; more follow, as its restart policy says)",
        view.name
    ))
}

/// The task that counts in its slot: one that is meant to run, the newest.
fn rank(view: &TaskView) -> (bool, u64, &str) {
    let task = &view.task;
    (task.desired.is_wanted(), task.created_at.0, task.id.as_str())
}

fn lines<'a>(mode: ServiceMode, total: u32, tasks: impl Iterator<Item = &'a TaskView>) -> Vec<Line> {
    let mut tasks: Vec<&TaskView> = tasks.collect();
    tasks.sort_by_key(|view| &view.task.slot);
    let of_task = |label: String, view: &TaskView| Line {
        label,
        state: Some(view.task.status.state),
        error: one_line(view.task.status.error.as_deref().unwrap_or_default()),
    };
    if mode.is_global() {
        return tasks
            .into_iter()
            .map(|view| {
                let node = view.task.node.as_ref().map_or("", |node| node.as_str());
                of_task(view.node_hostname.as_deref().unwrap_or(node).to_owned(), view)
            })
            .collect();
    }
    // Slots need not be in a row; lines are.
    let mut tasks = tasks.into_iter();
    (1..=total)
        .map(|number| {
            let label = format!("{number}/{total}");
            match tasks.next() {
                Some(view) => of_task(label, view),
                None => Line {
                    label,
                    state: None,
                    error: String::new(),
                },
            }
        })
        .collect()
}

fn one_line(error: &str) -> String {
    error.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use mesh_orchestrator::{objects::Timestamp, spec::ReplicatedJob};

    use super::*;
    use crate::meshctl::views::testing::{NOW, service, spec_of, task};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn both_run() -> Vec<TaskView> {
        vec![
            task("a", "web", 1, TaskState::Running),
            task("b", "web", 4, TaskState::Running),
        ]
    }

    fn status(state: UpdateState, message: &str) -> Option<UpdateStatus> {
        Some(UpdateStatus {
            state,
            started_at: NOW,
            completed_at: (!state.is_active()).then_some(NOW),
            message: message.into(),
            total: 2,
            failed: Default::default(),
        })
    }

    #[test]
    fn a_service_converges_when_its_tasks_stay() {
        let view = service("web");
        let mut convergence = Convergence::default();
        let starting = vec![
            task("a", "web", 1, TaskState::Running),
            task("b", "web", 4, TaskState::Preparing),
        ];
        let (picture, step) = convergence.observe(&view, &starting, at(0));
        assert_eq!((picture.done, picture.total, step), (1, 2, Step::Wait));
        let labels: Vec<&str> = picture.lines.iter().map(|line| line.label.as_str()).collect();
        assert_eq!(labels, ["1/2", "2/2"]);
        assert_eq!(picture.lines[1].state, Some(TaskState::Preparing));
        assert_eq!(convergence.observe(&view, &both_run(), at(1)).1, Step::Verify(5));
        assert_eq!(convergence.observe(&view, &both_run(), at(4)).1, Step::Verify(2));
        assert_eq!(convergence.observe(&view, &starting, at(5)).1, Step::Unstable);
        assert_eq!(convergence.observe(&view, &both_run(), at(6)).1, Step::Verify(5));
        assert_eq!(
            convergence.observe(&view, &both_run(), at(11)).1,
            Step::End(Outcome::Converged)
        );
    }

    #[test]
    fn tasks_of_an_older_specification_do_not_count() {
        let mut view = service("web");
        view.task_version = 2;
        let (picture, step) = Convergence::default().observe(&view, &both_run(), at(0));
        assert_eq!((picture.done, step), (0, Step::Wait));
    }

    #[test]
    fn an_update_under_way_is_waited_for_though_all_run() {
        let mut view = service("web");
        view.update_status = status(UpdateState::Updating, "");
        let mut convergence = Convergence::default();
        convergence.observe(&view, &both_run(), at(0));
        assert_eq!(convergence.observe(&view, &both_run(), at(60)).1, Step::Verify(1));
        view.update_status = status(UpdateState::Completed, "");
        assert_eq!(
            convergence.observe(&view, &both_run(), at(61)).1,
            Step::End(Outcome::Converged)
        );
    }

    #[test]
    fn a_paused_update_ends_the_waiting_and_a_rollback_is_told() {
        let mut view = service("web");
        view.update_status = status(UpdateState::Paused, "1 of 2 failed");
        let (_, step) = Convergence::default().observe(&view, &[], at(0));
        assert_eq!(
            step,
            Step::End(Outcome::Paused("service update paused: 1 of 2 failed".into()))
        );
        view.update_status = status(UpdateState::RollbackStarted, "");
        let mut convergence = Convergence::default();
        assert!(convergence.observe(&view, &[], at(0)).0.rollback);
        view.update_status = status(UpdateState::RollbackCompleted, "back again");
        convergence.observe(&view, &both_run(), at(1));
        assert_eq!(
            convergence.observe(&view, &both_run(), at(9)).1,
            Step::End(Outcome::RolledBack("back again".into()))
        );
    }

    #[test]
    fn an_update_before_the_last_change_says_nothing() {
        let mut view = service("web");
        view.update_status = status(UpdateState::RollbackCompleted, "long ago");
        view.updated_at = Timestamp(NOW.0 + 1);
        let mut convergence = Convergence::default();
        convergence.observe(&view, &both_run(), at(0));
        let (_, step) = convergence.observe(&view, &both_run(), at(5));
        assert_eq!(step, Step::End(Outcome::Converged));
    }

    #[test]
    fn nothing_to_run_needs_no_verification() {
        let mut view = service("web");
        spec_of(&mut view).mode =
            ServiceMode::Replicated(mesh_orchestrator::spec::Replicated { replicas: 0 });
        assert_eq!(
            Convergence::default().observe(&view, &[], at(0)).1,
            Step::End(Outcome::Converged)
        );
    }

    #[test]
    fn tasks_that_shall_stop_are_waited_for_but_not_for_ever() {
        let mut view = service("web");
        spec_of(&mut view).mode =
            ServiceMode::Replicated(mesh_orchestrator::spec::Replicated { replicas: 0 });
        let mut convergence = Convergence::default();
        let (picture, step) = convergence.observe(&view, &both_run(), at(0));
        assert_eq!((picture.surplus, step), (2, Step::Wait));
        assert_eq!(convergence.observe(&view, &both_run(), at(39)).1, Step::Wait);
        assert_eq!(
            convergence.observe(&view, &both_run(), at(40)).1,
            Step::End(Outcome::Converged)
        );
        assert_eq!(
            Convergence::default().observe(&view, &[], at(1)).1,
            Step::End(Outcome::Converged)
        );
    }

    #[test]
    fn a_job_ends_when_it_has_completed() {
        let mut view = service("job");
        spec_of(&mut view).mode = ServiceMode::ReplicatedJob(ReplicatedJob {
            max_concurrent: 2,
            total_completions: 3,
        });
        view.completed = Some(2);
        let mut convergence = Convergence::default();
        assert_eq!(convergence.observe(&view, &[], at(0)).1, Step::Wait);
        view.completed = Some(3);
        assert_eq!(
            convergence.observe(&view, &[], at(0)).1,
            Step::End(Outcome::JobComplete)
        );
    }

    #[test]
    fn a_slot_that_was_given_up_ends_the_waiting_with_its_error() {
        let mut failed = task("a", "web", 1, TaskState::Failed);
        failed.task.desired = TaskState::Running;
        failed.task.given_up = true;
        failed.task.status.error = Some("task: non-zero exit (1)".into());
        let (_, step) = Convergence::default().observe(&service("web"), &[failed], at(0));
        assert_eq!(
            step,
            Step::End(Outcome::GivenUp(
                "task: non-zero exit (1) (task web.1, which is not restarted)".into()
            ))
        );
    }

    #[test]
    fn a_task_that_cannot_start_ends_the_waiting_with_the_engines_own_reason() {
        let reason = "failed to create task for container: failed to create shim task: OCI runtime create \
                      failed: exec: \"nosuchcommand\": executable file not found in $PATH: unknown";
        for state in [TaskState::Rejected, TaskState::Failed] {
            let mut refused = task("a", "web", 1, state);
            refused.task.desired = TaskState::Running;
            refused.task.started_at = None;
            refused.task.status.error = Some(reason.into());
            refused.task.failures = 1;
            let (picture, step) = Convergence::default().observe(&service("web"), &[refused.clone()], at(0));
            assert_eq!(step, Step::Wait, "a second attempt may succeed");
            assert_eq!(picture.lines[0].error, reason, "in full");
            refused.task.failures = 2;
            let (_, step) = Convergence::default().observe(&service("web"), &[refused.clone()], at(0));
            assert!(
                matches!(&step, Step::End(Outcome::GivenUp(message)) if message.starts_with(reason)),
                "{step:?}"
            );
            // A program that ran may do better when what it needs is there.
            refused.task.started_at = Some(NOW);
            let (_, step) = Convergence::default().observe(&service("web"), &[refused], at(0));
            assert_eq!(step, Step::Wait);
        }
    }

    #[test]
    fn more_than_twenty_tasks_have_no_lines() {
        let mut view = service("web");
        spec_of(&mut view).mode =
            ServiceMode::Replicated(mesh_orchestrator::spec::Replicated { replicas: 21 });
        let (picture, _) = Convergence::default().observe(&view, &both_run(), at(0));
        assert_eq!((picture.done, picture.total, picture.lines.len()), (2, 21, 0));
    }
}
