//! Tasks that keep failing: each way to fail waits as the restart policy says, and longer as it goes on.

use std::time::Duration;

use crate::{
    commands,
    loops::{
        reaper::HISTORY,
        testing::{Cluster, spec},
    },
    objects::{Slot, Task, TaskState},
};

/// A state in which each new task of a service ends, and whether it runs before.
type Fault = (&'static str, fn(&Task) -> bool, TaskState);

/// Preparing is what a held task does, too; it starts only when it may.
const FAULTS: [Fault; 4] = [
    ("preparing", |_| true, TaskState::Rejected),
    (
        "starting",
        |task| task.desired != TaskState::Ready,
        TaskState::Failed,
    ),
    (
        "running",
        |task| task.desired != TaskState::Ready,
        TaskState::Failed,
    ),
    (
        "completing",
        |task| task.desired != TaskState::Ready,
        TaskState::Complete,
    ),
];

/// Lets each task fail as soon as it can, for some time. Returns when tasks were created, in milliseconds.
fn fail_for(cluster: &mut Cluster, seconds: u64, (name, may_fail, end): Fault) -> Vec<u64> {
    let start = cluster.now;
    let mut created = Vec::new();
    while cluster.now.since(start) < Duration::from_secs(seconds) {
        cluster.step();
        let live: Vec<Task> = cluster
            .state()
            .tasks()
            .values()
            .filter(|task| task.is_live())
            .cloned()
            .collect();
        for task in live {
            let since = u64::try_from(task.created_at.since(start).as_millis()).unwrap();
            if created.last() != Some(&since) {
                created.push(since);
            }
            if may_fail(&task) && task.status.state.holds_resources() {
                if matches!(name, "running" | "completing") {
                    cluster.observe(&task.id, TaskState::Running);
                }
                cluster.observe(&task.id, end);
            }
        }
        cluster.now = cluster.now + Duration::from_millis(100);
    }
    created
}

fn with(policy: serde_json::Value) -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.create(spec("web", |json| {
        json["task_template"]["restart_policy"] = policy;
    }));
    cluster.step();
    cluster
}

#[test]
fn every_way_to_fail_waits_as_the_policy_says() {
    for fault in FAULTS {
        let mut cluster = with(serde_json::json!({ "delay": "5s" }));
        let created = fail_for(&mut cluster, 26, fault);
        // A task that has run is followed by one that is held; nothing else comes before its delay is over.
        assert!((5..=7).contains(&created.len()), "{}: {created:?}", fault.0);
        assert!(cluster.slot("web", 1).len() <= HISTORY + 2, "{}", fault.0);
    }
}

#[test]
fn failures_in_a_row_are_repeated_ever_more_slowly() {
    for fault in FAULTS {
        let mut cluster = with(serde_json::json!({ "delay": "0s" }));
        let created = fail_for(&mut cluster, 600, fault);
        if fault.2 == TaskState::Complete {
            // It has not failed: the policy's delay is enough.
            assert!(created.len() > 1000, "{}: {}", fault.0, created.len());
            continue;
        }
        assert!((15..=25).contains(&created.len()), "{}: {created:?}", fault.0);
        let last = created.last_chunk::<2>().unwrap();
        assert!(
            (60_000..=60_300).contains(&(last[1] - last[0])),
            "{}: {last:?}",
            fault.0
        );
    }
}

#[test]
fn a_task_that_ran_for_some_time_begins_anew() {
    let mut cluster = with(serde_json::json!({ "delay": "0s" }));
    fail_for(&mut cluster, 100, FAULTS[0]);
    cluster.pass(60);
    cluster.settle();
    assert_eq!(cluster.running("web"), [Slot::Number(1)]);
    cluster.pass(10);
    cluster.fail_all();
    cluster.settle();
    assert_eq!(cluster.running("web"), [Slot::Number(1)], "its first failure");
}

#[test]
fn attempts_that_never_ran_are_counted() {
    for fault in FAULTS {
        let mut cluster = with(serde_json::json!({ "delay": "1s", "max_attempts": 3 }));
        let created = fail_for(&mut cluster, 60, fault);
        assert_eq!(created.len(), 4, "{}: {created:?}", fault.0);
        assert!(
            cluster.slot("web", 1).iter().any(|task| task.given_up),
            "{}",
            fault.0
        );
    }
}

#[test]
fn a_change_of_the_service_does_not_wait_for_the_delay() {
    let mut cluster = with(serde_json::json!({ "delay": "1h" }));
    fail_for(&mut cluster, 5, FAULTS[0]);
    assert!(cluster.running("web").is_empty());
    cluster.update("web", |json| {
        json["task_template"]["container_spec"]["image"] = "nginx:2".into();
    });
    cluster.step();
    cluster.settle();
    assert_eq!(cluster.running("web"), [Slot::Number(1)]);
}

#[test]
fn a_removed_service_does_not_wait_for_the_delay() {
    let mut cluster = with(serde_json::json!({ "delay": "1h" }));
    fail_for(&mut cluster, 5, FAULTS[0]);
    let id = cluster.service("web").id.clone();
    cluster.make(commands::remove_service(cluster.state(), &id).unwrap());
    cluster.step();
    assert!(cluster.state().tasks().is_empty());
}
