//! An agent task's states, on a node that may refuse or fail.

use std::sync::Arc;

use mesh_orchestrator::{
    objects::{NodeId, Slot},
    spec::TaskSpec,
};
use proptest::prelude::*;

use super::*;
use crate::orchestrator::testing;

fn task(desired: TaskState) -> Task {
    let spec: TaskSpec =
        serde_json::from_str(r#"{"runtime": "agent", "container_spec": {"image": "mesh-agent:2"}}"#).unwrap();
    Task {
        service_name: "load-balancer".into(),
        slot: Slot::Node(NodeId::from("n1")),
        desired,
        ..testing::task(Arc::new(spec))
    }
}

fn program(digit: char) -> Digest {
    Digest::try_from(digit.to_string().repeat(64)).unwrap()
}

/// A node's agent and one agent task.
struct World {
    task: Task,
    reported: Vec<TaskStatus>,
    own: Digest,
    programs: Option<AgentPrograms>,
    refused: Option<String>,
    failure: Option<String>,
    agent_state: AgentState,
    in_progress: Option<Work>,
}

impl World {
    fn new(own: char, desired: TaskState) -> Self {
        Self {
            task: task(desired),
            reported: vec![TaskStatus::new(TaskState::Assigned, Timestamp(0), "")],
            own: program(own),
            programs: None,
            refused: None,
            failure: None,
            agent_state: AgentState::Proven,
            in_progress: None,
        }
    }

    fn state(&self) -> TaskState {
        self.reported.last().unwrap().state
    }

    fn next(&self) -> Next {
        next(&AgentObservation {
            now: Timestamp(1),
            task: &self.task,
            reported: self.state(),
            in_progress: self.in_progress,
            refused: self.refused.as_deref(),
            programs: self.programs.as_ref(),
            agent_state: self.agent_state,
            failure: self.failure.as_deref(),
        })
    }

    /// Takes every report; returns the first other decision.
    fn settle(&mut self) -> Next {
        for _ in 0..20 {
            match self.next() {
                Next::Report(status) => self.reported.push(status),
                next => return next,
            }
        }
        panic!("it does not settle: {:?}", self.reported);
    }

    fn prepare(&mut self, image: char) {
        assert_eq!(self.settle(), Next::Begin(Work::Prepare));
        self.programs = Some(AgentPrograms {
            own: self.own.clone(),
            wanted: program(image),
        });
    }
}

#[test]
fn the_agent_is_replaced_by_the_new_program_which_reports_running() {
    let mut world = World::new('a', TaskState::Running);
    world.prepare('b');
    assert_eq!(world.settle(), Next::Begin(Work::Start));
    assert_eq!(world.state(), TaskState::Starting);
    world.agent_state = AgentState::Leaving;
    assert_eq!(world.settle(), WAIT);
    // The new program, which has to prepare the task again.
    world.own = program('b');
    world.programs = None;
    world.agent_state = AgentState::Starting;
    world.prepare('b');
    assert_eq!(world.settle(), WAIT);
    assert_eq!(world.state(), TaskState::Starting);
    world.agent_state = AgentState::Proven;
    assert_eq!(world.settle(), WAIT);
    assert_eq!(world.state(), TaskState::Running);
}

#[test]
fn the_program_that_already_runs_is_not_restarted() {
    let mut world = World::new('a', TaskState::Running);
    world.prepare('a');
    assert_eq!(world.settle(), WAIT);
    assert_eq!(world.state(), TaskState::Running);
}

#[test]
fn a_held_task_is_prepared_and_waits() {
    let mut world = World::new('a', TaskState::Ready);
    world.prepare('b');
    assert_eq!(world.settle(), WAIT);
    assert_eq!(world.state(), TaskState::Ready);
}

#[test]
fn a_bad_image_is_rejected_and_a_program_whose_trial_failed_is_a_failed_task() {
    let mut world = World::new('a', TaskState::Running);
    assert_eq!(world.settle(), Next::Begin(Work::Prepare));
    world.refused = Some("no ELF".into());
    assert_eq!(world.settle(), WAIT);
    let last = world.reported.last().unwrap();
    assert_eq!(
        (last.state, last.error.as_deref()),
        (TaskState::Rejected, Some("no ELF"))
    );

    let mut world = World::new('a', TaskState::Running);
    world.prepare('b');
    assert_eq!(world.settle(), Next::Begin(Work::Start));
    // The old program again.
    world.programs = None;
    world.failure = Some("it has ended".into());
    assert_eq!(world.settle(), WAIT);
    let last = world.reported.last().unwrap();
    assert_eq!(
        (last.state, last.error.as_deref()),
        (TaskState::Failed, Some("it has ended"))
    );
}

#[test]
fn a_task_that_is_no_longer_wanted_stops_nothing() {
    for reported in [TaskState::Preparing, TaskState::Starting, TaskState::Running] {
        let mut world = World::new('a', TaskState::Shutdown);
        world.reported.push(TaskStatus::new(reported, Timestamp(1), ""));
        assert_eq!(world.settle(), WAIT);
        assert_eq!(world.state(), TaskState::Shutdown);
    }
    let mut world = World::new('a', TaskState::Shutdown);
    world.in_progress = Some(Work::Prepare);
    assert_eq!(world.next(), Next::Abandon);
}

proptest! {
    /// Whatever happens, states move forward only, and only a wanted task with another program replaces the
    /// agent.
    #[test]
    fn states_move_forward_only(events in proptest::collection::vec(0_u8..8, 1..60)) {
        let mut world = World::new('a', TaskState::Running);
        for event in events {
            match event {
                0 => world.programs = Some(AgentPrograms { own: world.own.clone(), wanted: program('b') }),
                1 => world.programs = None,
                2 => world.own = program('b'),
                3 => world.agent_state = AgentState::Starting,
                4 => world.agent_state = AgentState::Proven,
                5 => world.agent_state = AgentState::Leaving,
                6 => world.task.desired = TaskState::Shutdown,
                _ => world.refused = Some("no".into()),
            }
            let before = world.reported.len();
            if world.settle() == Next::Begin(Work::Start) {
                let programs = world.programs.clone().unwrap();
                prop_assert!(world.task.desired.is_wanted() && programs.own != programs.wanted);
            }
            for pair in world.reported[before - 1..].windows(2) {
                prop_assert!(pair[0].state < pair[1].state, "{:?}", world.reported);
            }
        }
    }
}
