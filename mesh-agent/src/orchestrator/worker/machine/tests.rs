//! A task's states, with an engine that may refuse or fail.

use std::sync::Arc;

use mesh_orchestrator::{objects::TaskId, spec::TaskSpec};

use super::*;
use crate::orchestrator::testing;

mod properties;

/// The engine, the store and the worker's memory of one task.
struct World {
    now: Timestamp,
    task: Task,
    reported: Vec<TaskStatus>,
    container: Option<ContainerFacts>,
    in_progress: Option<Work>,
    refused: Option<String>,
    probe: Health,
    drain: Option<Drain>,
    ending: Ending,
    begun: Vec<Work>,
}

fn task(desired: TaskState) -> Task {
    let spec: TaskSpec = serde_json::from_str(r#"{"container_spec": {"image": "a:1"}}"#).unwrap();
    Task {
        desired,
        ..testing::task(Arc::new(spec))
    }
}

fn container(phase: Phase) -> ContainerFacts {
    ContainerFacts {
        id: "c1".into(),
        task: TaskId::from("t1"),
        address: None,
        phase,
        health: Health::Unchecked,
        pid: None,
        reached_at: None,
        stop_signal: "SIGTERM".into(),
        stop_grace: Duration::from_secs(10),
    }
}

fn exited(code: i32) -> Phase {
    Phase::Exited {
        code,
        out_of_memory: false,
        error: String::new(),
    }
}

impl World {
    fn new(desired: TaskState) -> Self {
        Self {
            now: Timestamp(1_000),
            task: task(desired),
            reported: vec![TaskStatus::new(TaskState::Assigned, Timestamp(0), "")],
            container: None,
            in_progress: None,
            refused: None,
            probe: Health::Unchecked,
            drain: None,
            ending: Ending::default(),
            begun: Vec::new(),
        }
    }

    fn state(&self) -> TaskState {
        self.reported.last().unwrap().state
    }

    fn next(&self) -> Next {
        next(&Observation {
            now: self.now,
            task: &self.task,
            reported: self.state(),
            container: self.container.as_ref(),
            in_progress: self.in_progress,
            refused: self.refused.as_deref(),
            probe: self.probe,
            reachable: true,
            drain: self.drain,
            ending: self.ending,
        })
    }

    /// Carries out decisions until there is nothing to do now; returns when to continue.
    fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..20 {
            match self.next() {
                Next::Report(status) => self.reported.push(status),
                Next::Begin(work) => {
                    match work {
                        Work::Signal => self.ending.signalled = Some(self.now),
                        Work::Kill => self.ending.killed = Some(self.now),
                        Work::Prepare | Work::Start | Work::Remove => {}
                    }
                    self.begun.push(work);
                    self.in_progress = Some(work);
                }
                Next::Abandon => self.in_progress = None,
                Next::BeginDrain => {
                    self.drain = Some(Drain {
                        since: self.now,
                        limit: Duration::from_secs(5),
                        busy: true,
                    });
                }
                Next::Wait(until) => return until,
            }
        }
        panic!("it never waits: {:?}", self.next());
    }

    /// Ends the work in progress: the engine did it, or refused.
    fn finish(&mut self, success: bool) {
        match self.in_progress.take() {
            Some(Work::Prepare) if success => self.container = Some(container(Phase::Created)),
            Some(Work::Start) if success => self.set_phase(Phase::Running),
            Some(Work::Prepare | Work::Start) => self.refused = Some("no".into()),
            Some(Work::Kill) => self.set_phase(exited(137)),
            Some(Work::Remove) => self.container = None,
            Some(Work::Signal) | None => {}
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(container) = &mut self.container {
            container.phase = phase;
        }
    }

    fn run_to(&mut self, state: TaskState) {
        for _ in 0..10 {
            self.settle();
            if self.state() == state {
                return;
            }
            self.finish(true);
        }
        panic!("it never reaches {state}: {:?}", self.reported);
    }
}

#[test]
fn a_task_goes_through_every_state_and_runs() {
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Running);
    let states: Vec<_> = world
        .reported
        .iter()
        .map(|status| status.state.to_string())
        .collect();
    assert_eq!(
        states,
        [
            "assigned",
            "accepted",
            "preparing",
            "ready",
            "starting",
            "running"
        ]
    );
    assert_eq!(world.begun, [Work::Prepare, Work::Start]);
}

#[test]
fn a_task_with_desired_state_ready_is_prepared_but_not_started() {
    let mut world = World::new(TaskState::Ready);
    world.run_to(TaskState::Ready);
    assert_eq!(world.next(), WAIT);
    world.task.desired = TaskState::Running;
    world.run_to(TaskState::Running);
}

#[test]
fn a_container_that_cannot_be_created_is_rejected_and_one_that_cannot_start_has_failed() {
    let mut world = World::new(TaskState::Running);
    world.settle();
    world.finish(false);
    world.settle();
    assert_eq!(world.state(), TaskState::Rejected);
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Starting);
    world.finish(false);
    world.settle();
    assert_eq!(world.state(), TaskState::Failed);
    assert_eq!(world.reported.last().unwrap().error.as_deref(), Some("no"));
}

#[test]
fn a_probed_container_runs_once_healthy_and_fails_once_unhealthy() {
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Starting);
    world.finish(true);
    world.probe = Health::Starting;
    world.settle();
    assert_eq!(world.state(), TaskState::Starting);
    world.probe = Health::Healthy;
    world.settle();
    assert_eq!(world.state(), TaskState::Running);
    world.probe = Health::Unhealthy;
    world.settle();
    assert_eq!(world.state(), TaskState::Failed);
    assert_eq!(
        world.begun.last(),
        Some(&Work::Signal),
        "a failed container must not keep running"
    );
}

#[test]
fn an_exit_reports_its_code_and_whether_memory_ran_out() {
    for (code, out_of_memory, state, part) in [
        (0, false, TaskState::Complete, ""),
        (3, false, TaskState::Failed, "(3)"),
        (137, true, TaskState::Failed, "memory"),
    ] {
        let mut world = World::new(TaskState::Running);
        world.run_to(TaskState::Running);
        world.set_phase(Phase::Exited {
            code,
            out_of_memory,
            error: String::new(),
        });
        world.settle();
        let last = world.reported.last().unwrap();
        assert_eq!((last.state, last.exit_code), (state, Some(code)));
        assert!(
            last.error.as_deref().unwrap_or_default().contains(part),
            "{last:?}"
        );
    }
}

#[test]
fn a_stop_drains_then_signals_then_kills() {
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Running);
    world.task.desired = TaskState::Shutdown;
    let began = world.now;
    assert_eq!(world.settle(), Some(began + SETTLE));
    world.now = began + SETTLE;
    assert_eq!(
        world.settle(),
        Some(world.now + COUNT),
        "it still has connections"
    );
    world.now = began + SETTLE + Duration::from_secs(5);
    assert_eq!(world.settle(), None);
    assert_eq!(world.begun.last(), Some(&Work::Signal));
    world.finish(true);
    let signalled = world.now;
    assert_eq!(world.settle(), Some(signalled + Duration::from_secs(10)));
    world.now = signalled + Duration::from_secs(10);
    world.settle();
    assert_eq!(world.begun.last(), Some(&Work::Kill));
    world.finish(true);
    world.settle();
    let last = world.reported.last().unwrap();
    assert_eq!((last.state, last.exit_code), (TaskState::Shutdown, Some(137)));
}

#[test]
fn a_replica_without_connections_is_stopped_at_once() {
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Running);
    world.task.desired = TaskState::Shutdown;
    world.settle();
    world.drain.as_mut().unwrap().busy = false;
    world.now = world.now + SETTLE;
    world.settle();
    assert_eq!(world.begun.last(), Some(&Work::Signal));
}

#[test]
fn preparing_is_abandoned_when_the_task_is_no_longer_wanted() {
    let mut world = World::new(TaskState::Running);
    world.settle();
    assert_eq!(world.in_progress, Some(Work::Prepare));
    world.task.desired = TaskState::Remove;
    world.settle();
    assert_eq!((world.in_progress, world.state()), (None, TaskState::Shutdown));
}

#[test]
fn a_container_removed_from_outside_is_a_failure() {
    let mut world = World::new(TaskState::Running);
    world.run_to(TaskState::Running);
    world.container = None;
    world.settle();
    assert_eq!(world.state(), TaskState::Failed);
}

#[test]
fn an_orphan_is_stopped_and_removed() {
    let running = container(Phase::Running);
    let now = Timestamp(5_000);
    assert_eq!(
        leftover(now, &running, false, None, Ending::default()),
        Next::Begin(Work::Signal)
    );
    assert_eq!(
        leftover(now, &running, false, Some(Work::Signal), Ending::default()),
        WAIT
    );
    let stopped = container(exited(0));
    assert_eq!(
        leftover(now, &stopped, false, None, Ending::default()),
        Next::Begin(Work::Remove)
    );
}

#[test]
fn an_ended_container_is_kept_while_its_task_is_in_the_history() {
    let now = Timestamp(1000);
    let stopped = container(exited(3));
    assert_eq!(leftover(now, &stopped, true, None, Ending::default()), WAIT);
    // One that never ran has no output, and one that still runs must end first.
    let created = container(Phase::Created);
    assert_eq!(
        leftover(now, &created, true, None, Ending::default()),
        Next::Begin(Work::Remove)
    );
    let running = container(Phase::Running);
    assert_eq!(
        leftover(now, &running, true, None, Ending::default()),
        Next::Begin(Work::Signal)
    );
}
