//! Replicas, restarts, jobs, dependencies and rebalancing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::running_on;
use crate::{
    commands,
    loops::{
        reaper::HISTORY,
        testing::{Cluster, node, replicas, spec},
    },
    objects::{ObjectChange, Slot, TaskState, TaskStatus},
};

fn numbers(slots: &[Slot]) -> Vec<u32> {
    slots
        .iter()
        .filter_map(|slot| {
            if let Slot::Number(number) = slot {
                Some(*number)
            } else {
                None
            }
        })
        .collect()
}

fn restart_policy(policy: serde_json::Value) -> impl FnOnce(&mut serde_json::Value) {
    move |json| json["task_template"]["restart_policy"] = policy
}

#[test]
fn the_lowest_free_slots_are_filled() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(4)));
    cluster.step();
    cluster.settle();
    // Leave a gap in the slot numbers.
    let second = cluster.slot("web", 2)[0].id.clone();
    cluster.make(vec![ObjectChange::SetDesired {
        task: second,
        desired: TaskState::Remove,
    }]);
    cluster.step();
    cluster.settle();
    assert_eq!(numbers(&cluster.running("web")), [1, 2, 3, 4]);
}

#[test]
fn scaling_down_takes_from_the_fullest_node() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", replicas(4)));
    cluster.step();
    cluster.settle();
    cluster.put_node(node(2));
    cluster.scale("web", 6);
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster),
        BTreeMap::from([("node1".into(), 4), ("node2".into(), 2)])
    );
    cluster.scale("web", 4);
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster),
        BTreeMap::from([("node1".into(), 2), ("node2".into(), 2)])
    );
    cluster.scale("web", 0);
    cluster.step();
    cluster.settle();
    assert!(
        cluster.state().tasks().is_empty(),
        "{:?}",
        cluster.state().tasks()
    );
}

#[test]
fn a_failed_task_is_replaced_after_the_delay() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", |_| {}));
    cluster.step();
    cluster.settle();
    cluster.fail_all();
    cluster.pass(4);
    cluster.run_all();
    assert!(cluster.running("web").is_empty());
    assert_eq!(
        cluster.controller.wake_at(),
        Some(cluster.now + std::time::Duration::from_secs(1))
    );
    cluster.pass(1);
    cluster.run_all();
    assert_eq!(numbers(&cluster.running("web")), [1]);
}

#[test]
fn restarts_are_counted_within_the_window() {
    let mut cluster = Cluster::of(1);
    let policy = serde_json::json!({ "delay": "0", "max_attempts": 2, "window": "60s" });
    cluster.create(spec("web", restart_policy(policy)));
    cluster.step();
    for pause in [10, 61, 10] {
        cluster.fail_all();
        cluster.settle();
        cluster.pass(pause);
        assert_eq!(numbers(&cluster.running("web")), [1]);
    }
    cluster.fail_all();
    cluster.settle();
    cluster.fail_all();
    cluster.settle();
    let tasks = cluster.slot("web", 1);
    assert!(tasks.iter().any(|task| task.given_up), "{tasks:#?}");
    assert!(cluster.running("web").is_empty());
}

#[test]
fn a_task_is_replaced_if_the_restart_condition_says_so() {
    for (condition, end, restarts) in [
        ("none", TaskState::Failed, false),
        ("on-failure", TaskState::Complete, false),
        ("on-failure", TaskState::Failed, true),
        ("any", TaskState::Complete, true),
    ] {
        let mut cluster = Cluster::of(1);
        cluster.create(spec(
            "web",
            restart_policy(serde_json::json!({ "delay": "0", "condition": condition })),
        ));
        cluster.step();
        cluster.settle();
        let task = cluster.slot("web", 1)[0].id.clone();
        cluster.observe(&task, end);
        cluster.step();
        cluster.settle();
        assert_eq!(!cluster.running("web").is_empty(), restarts, "{condition} {end}");
    }
}

#[test]
fn a_slot_keeps_only_its_last_tasks() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", restart_policy(serde_json::json!({ "delay": "0" }))));
    cluster.step();
    for _ in 0..HISTORY + 4 {
        cluster.pass(1);
        cluster.settle();
        cluster.fail_all();
    }
    cluster.settle();
    assert_eq!(cluster.slot("web", 1).len(), HISTORY + 1);
}

#[test]
fn a_job_runs_its_maximum_at_a_time_until_all_are_complete() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("job", |json| {
        json["mode"] =
            serde_json::json!({ "replicated_job": { "max_concurrent": 2, "total_completions": 5 } });
        json["task_template"]["restart_policy"] = serde_json::json!({ "delay": "0" });
    }));
    cluster.step();
    cluster.settle();
    cluster.fail_all();
    for expected in [2, 2, 1] {
        cluster.settle();
        let running: Vec<_> = cluster
            .state()
            .tasks()
            .values()
            .filter(|task| task.is_running())
            .map(|task| task.id.clone())
            .collect();
        assert_eq!(running.len(), expected);
        for task in running {
            cluster.observe(&task, TaskState::Complete);
        }
        cluster.step();
    }
    cluster.settle();
    let complete = cluster
        .state()
        .tasks()
        .values()
        .filter(|task| task.status.state == TaskState::Complete)
        .count();
    assert_eq!((complete, running_on(&cluster).len()), (5, 0));
}

#[test]
fn a_service_waits_for_its_dependencies_only_once() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", |json| json["depends_on"] = serde_json::json!(["db"])));
    cluster.step();
    let status = cluster.slot("web", 1)[0].status.clone();
    assert_eq!(
        (status.state, status.message.as_str()),
        (TaskState::New, "waiting for db")
    );
    cluster.create(spec("db", |_| {}));
    cluster.step();
    assert_eq!(cluster.slot("web", 1)[0].status.state, TaskState::New);
    cluster.settle();
    assert_eq!(running_on(&cluster)["node1"], 2);
    cluster.scale("db", 0);
    cluster.step();
    let web = cluster.slot("web", 1)[0].id.clone();
    cluster.observe(&web, TaskState::Failed);
    cluster.pass(0);
    cluster.pass(5);
    cluster.settle();
    assert_eq!(numbers(&cluster.running("web")), [1]);
}

#[test]
fn a_cycle_of_dependencies_is_refused() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", |json| json["depends_on"] = serde_json::json!(["db"])));
    let db = spec("db", |json| json["depends_on"] = serde_json::json!(["web"]));
    let error = commands::create_service(cluster.state(), "db".into(), db, cluster.now).unwrap_err();
    assert!(
        matches!(
            error,
            commands::CommandError::Spec(crate::spec::SpecError::DependencyCycle { .. })
        ),
        "{error:?}"
    );
}

#[test]
fn rebalancing_moves_tasks_to_a_node_that_has_joined() {
    for order in ["stop-first", "start-first"] {
        let mut cluster = Cluster::of(1);
        cluster.create(spec("web", |json| {
            replicas(6)(json);
            json["update_config"] = serde_json::json!({ "order": order });
        }));
        cluster.step();
        cluster.settle();
        cluster.put_node(node(2));
        cluster.pass(1);
        cluster.settle();
        assert_eq!(running_on(&cluster).len(), 1, "rebalancing must be requested");
        let id = cluster.service("web").id.clone();
        cluster.make(commands::rebalance_service(cluster.state(), &id, cluster.now).unwrap());
        cluster.step();
        let moving = cluster
            .state()
            .tasks()
            .values()
            .filter(|task| task.desired == TaskState::Ready)
            .count();
        assert!(moving <= 1, "one at a time");
        cluster.settle();
        assert_eq!(
            running_on(&cluster),
            BTreeMap::from([("node1".into(), 3), ("node2".into(), 3)]),
            "{order}"
        );
        assert_eq!(cluster.service("web").rebalance, None);
    }
}

#[test]
fn automatic_rebalancing_is_bounded() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", |json| {
        replicas(10)(json);
        json["rebalance_config"] = serde_json::json!({ "automatic": true, "max_moves": 2, "settle": "60s" });
    }));
    cluster.step();
    cluster.settle();
    cluster.put_node(node(2));
    cluster.step();
    cluster.settle();
    assert_eq!(running_on(&cluster).len(), 1, "the node must settle first");
    cluster.pass(60);
    cluster.settle();
    assert_eq!(
        running_on(&cluster),
        BTreeMap::from([("node1".into(), 8), ("node2".into(), 2)])
    );
}

#[test]
fn tasks_of_a_removed_service_stop_and_are_removed() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(3)));
    cluster.step();
    cluster.settle();
    let id = cluster.service("web").id.clone();
    cluster.make(commands::remove_service(cluster.state(), &id).unwrap());
    cluster.step();
    assert!(
        cluster
            .state()
            .tasks()
            .values()
            .all(|task| task.desired == TaskState::Remove)
    );
    cluster.settle();
    assert!(cluster.state().tasks().is_empty());
}

#[test]
fn a_task_does_not_return_to_an_earlier_state() {
    let mut cluster = Cluster::of(1);
    cluster.create(spec("web", |_| {}));
    cluster.step();
    cluster.settle();
    let task = cluster.slot("web", 1)[0].id.clone();
    let late = ObjectChange::Observe {
        task: task.clone(),
        status: TaskStatus::new(TaskState::Starting, cluster.now, "late"),
    };
    let before = cluster.state().tasks().clone();
    assert!(cluster.controller.apply(&late).is_err());
    assert!(
        cluster
            .controller
            .apply(&ObjectChange::SetDesired {
                task,
                desired: TaskState::Ready
            })
            .is_err()
    );
    assert_eq!(*cluster.state().tasks(), before);
    assert!(cluster.state().indexes_are_sound());
}

proptest! {
    #[test]
    fn there_are_as_many_slots_as_replicas_after_any_scaling(
        scales in proptest::collection::vec((0_u32..12, any::<bool>()), 1..12),
        nodes in 1_u32..5,
    ) {
        let mut cluster = Cluster::of(nodes);
        cluster.create(spec("web", replicas(3)));
        let mut last = 3;
        for (count, rests) in scales {
            cluster.scale("web", count);
            cluster.step();
            last = count;
            if rests {
                cluster.settle();
            }
        }
        cluster.settle();
        let slots: BTreeSet<Slot> = cluster.running("web").into_iter().collect();
        prop_assert_eq!(slots.len(), last as usize);
        let counts = running_on(&cluster);
        prop_assert_eq!(counts.values().sum::<usize>(), last as usize);
        prop_assert!(cluster.state().indexes_are_sound());
    }
}

#[test]
fn only_one_service_manages_the_nodes_agents_and_its_runtime_cannot_change() {
    let agents = |name: &str| {
        spec(name, |json| {
            json["mode"] = serde_json::json!({"global": {}});
            json["task_template"]["runtime"] = "agent".into();
        })
    };
    let mut cluster = Cluster::of(2);
    cluster.create(agents("load-balancer"));
    cluster.step();
    cluster.settle();
    assert_eq!(running_on(&cluster).len(), 2);
    let error = commands::create_service(cluster.state(), "other".into(), agents("other"), cluster.now);
    let error = format!("{:?}", error.unwrap_err());
    assert!(
        error.contains("service load-balancer already manages the nodes' agents"),
        "{error}"
    );
    // Its own next revision is no second service of agents.
    cluster.update("load-balancer", |json| {
        json["task_template"]["force_update"] = 1.into();
    });
    cluster.step();
    cluster.settle();

    let service = cluster.service("load-balancer").clone();
    let containers = spec("load-balancer", |json| {
        json["mode"] = serde_json::json!({"global": {}});
    });
    let version = service.version;
    let error = commands::update_service(cluster.state(), &service.id, version, containers, cluster.now);
    let error = format!("{:?}", error.unwrap_err());
    assert!(error.contains("cannot change"), "{error}");
}
