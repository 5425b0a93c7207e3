//! Properties that hold for any sequence of events of a task.

use proptest::prelude::*;

use super::*;

/// Something that happens to a task.
#[derive(Clone, Copy, Debug)]
enum Event {
    Desire(TaskState),
    Finish(bool),
    Exit(i32),
    Vanish,
    Probe(Health),
    Later(u64),
    /// The agent restarts: it knows only what the store and the engine do.
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let desired = vec![TaskState::Running, TaskState::Shutdown, TaskState::Remove];
    let health = vec![Health::Starting, Health::Healthy, Health::Unhealthy];
    let event = prop_oneof![
        1 => prop::sample::select(desired).prop_map(Event::Desire),
        4 => any::<bool>().prop_map(Event::Finish),
        1 => (0..3).prop_map(Event::Exit),
        1 => Just(Event::Vanish),
        1 => prop::sample::select(health).prop_map(Event::Probe),
        2 => (0_u64..12_000).prop_map(Event::Later),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 1..40)
}

proptest! {
    #[test]
    fn states_move_forward_and_nothing_wanted_is_stopped(events in events()) {
        let mut world = World::new(TaskState::Ready);
        for event in events {
            match event {
                Event::Desire(state) => world.task.desired = world.task.desired.max(state),
                Event::Finish(success) => world.finish(success),
                Event::Exit(code) => {
                    if world.container.as_ref().is_some_and(|container| container.phase == Phase::Running) {
                        world.set_phase(exited(code));
                    }
                }
                Event::Vanish => world.container = None,
                Event::Probe(health) => world.probe = health,
                Event::Later(milliseconds) => world.now = world.now + Duration::from_millis(milliseconds),
                Event::Restart => {
                    (world.in_progress, world.refused, world.drain) = (None, None, None);
                    world.ending = Ending::default();
                    world.probe = Health::Unchecked;
                }
            }
            let before = world.begun.len();
            let wanted = world.task.desired.is_wanted();
            world.settle();
            for work in &world.begun[before..] {
                match work {
                    Work::Signal | Work::Kill => {
                        prop_assert!(!wanted || world.state().is_terminal());
                        let drained = world.drain.is_some_and(|drain| drain.is_over(world.now));
                        prop_assert!(drained || world.state() != TaskState::Running);
                    }
                    Work::Prepare => prop_assert!(wanted),
                    Work::Start => prop_assert!(wanted && world.task.desired != TaskState::Ready),
                    Work::Remove => prop_assert!(false, "only orphans are removed"),
                }
            }
        }
        prop_assert!(world.reported.is_sorted_by_key(|status| status.state));
    }

    #[test]
    fn a_task_that_must_stop_stops_after_any_history(events in events()) {
        let mut world = World::new(TaskState::Running);
        for event in events {
            match event {
                Event::Finish(success) => world.finish(success),
                Event::Exit(code) => {
                    if world.container.as_ref().is_some_and(|container| container.phase == Phase::Running) {
                        world.set_phase(exited(code));
                    }
                }
                Event::Vanish => world.container = None,
                Event::Probe(health) => world.probe = health,
                Event::Later(_) | Event::Restart | Event::Desire(_) => {}
            }
            world.settle();
        }
        world.task.desired = TaskState::Shutdown;
        // Connections are counted every 200 ms, for 5 s.
        for _ in 0..60 {
            let until = world.settle();
            world.finish(true);
            world.now = until.unwrap_or(world.now).max(world.now);
        }
        prop_assert!(world.state().is_terminal());
        let runs = world.container.is_some_and(|container| container.phase == Phase::Running);
        prop_assert!(!runs);
    }
}
