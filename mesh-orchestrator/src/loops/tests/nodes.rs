//! Tasks of nodes that are drained, paused, go down, are removed and become ready again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::running_on;
use crate::{
    loops::testing::{Cluster, node, replicas, spec},
    objects::{Availability, NodeStatus, ObjectChange, TaskState},
};

#[test]
fn tasks_of_a_drained_node_stop_before_they_start_elsewhere() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(2)));
    cluster.step();
    cluster.settle();
    cluster.set_availability("node1", Availability::Drain);
    cluster.step();
    let held = cluster
        .state()
        .tasks()
        .values()
        .filter(|task| task.desired == TaskState::Ready)
        .count();
    assert_eq!(held, 1);
    cluster.settle();
    assert_eq!(running_on(&cluster), BTreeMap::from([("node2".into(), 2)]));
}

#[test]
fn tasks_of_a_node_that_is_down_are_replaced_at_once() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(2)));
    cluster.step();
    cluster.settle();
    cluster.set_status("node1", NodeStatus::Down);
    cluster.step();
    let wanted = |task: &&crate::objects::Task| task.desired == TaskState::Running;
    let nodes: Vec<_> = cluster
        .state()
        .tasks()
        .values()
        .filter(wanted)
        .map(|task| task.node.clone())
        .collect();
    assert_eq!(nodes, [Some("node2".into()), Some("node2".into())]);
    // The fate of the old task is unknown until it counts as orphaned after a day.
    let count = |cluster: &Cluster, state| {
        cluster
            .state()
            .tasks()
            .values()
            .filter(|task| task.status.state == state)
            .count()
    };
    assert_eq!(count(&cluster, TaskState::Orphaned), 0);
    cluster.pass(24 * 3600);
    assert_eq!(count(&cluster, TaskState::Orphaned), 1);
}

#[test]
fn an_unknown_node_keeps_its_tasks() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(2)));
    cluster.step();
    cluster.settle();
    let before = cluster.state().tasks().clone();
    cluster.set_status("node1", NodeStatus::Unknown);
    cluster.step();
    assert_eq!(*cluster.state().tasks(), before);
}

#[test]
fn tasks_of_a_removed_node_are_orphaned_and_replaced_at_once() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", replicas(2)));
    cluster.step();
    cluster.settle();
    cluster.make(vec![ObjectChange::RemoveNode("node1".into())]);
    cluster.step();
    cluster.settle();
    assert_eq!(running_on(&cluster), BTreeMap::from([("node2".into(), 2)]));
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("agent", |json| {
        json["mode"] = serde_json::json!({ "global": {} });
        json["task_template"]["placement"] = serde_json::json!({ "constraints": ["node.labels.off!=yes"] });
    }));
    cluster.step();
    cluster.settle();
    assert_eq!(running_on(&cluster).len(), 2);
    cluster.set_availability("node1", Availability::Pause);
    let mut third = node(3);
    third.availability = Availability::Pause;
    cluster.put_node(third);
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster).into_keys().collect::<Vec<_>>(),
        ["node1", "node2"]
    );
    cluster.set_availability("node3", Availability::Active);
    cluster.set_availability("node1", Availability::Drain);
    let mut second = node(2);
    second.labels.insert("off".into(), "yes".into());
    cluster.put_node(second);
    cluster.step();
    cluster.settle();
    assert_eq!(running_on(&cluster).into_keys().collect::<Vec<_>>(), ["node3"]);
    cluster.set_availability("node1", Availability::Active);
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster).into_keys().collect::<Vec<_>>(),
        ["node1", "node3"]
    );
}

#[test]
fn tasks_leave_a_node_whose_labels_no_longer_suit_them() {
    let labelled = |number, zone: &str| {
        let mut node = node(number);
        node.labels.insert("zone".into(), zone.into());
        node
    };
    let mut cluster = Cluster::of(0);
    (1..=2).for_each(|number| cluster.put_node(labelled(number, "a")));
    cluster.create(spec("web", |json| {
        replicas(2)(json);
        json["task_template"]["placement"] = serde_json::json!({ "constraints": ["node.labels.zone==a"] });
    }));
    cluster.create(spec("any", replicas(2)));
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster),
        BTreeMap::from([("node1".into(), 2), ("node2".into(), 2)])
    );
    cluster.put_node(labelled(1, "b"));
    cluster.step();
    cluster.settle();
    assert_eq!(
        running_on(&cluster),
        BTreeMap::from([("node1".into(), 1), ("node2".into(), 3)])
    );
    // No node suits any more: nothing runs against its constraint.
    cluster.put_node(labelled(2, "b"));
    cluster.step();
    cluster.settle();
    assert!(cluster.running("web").is_empty());
    assert_eq!(cluster.running("any").len(), 2);
}

#[test]
fn tasks_leave_a_node_that_has_less_than_they_reserve() {
    let mut cluster = Cluster::of(2);
    cluster.create(spec("web", |json| {
        replicas(4)(json);
        json["task_template"]["resources"] =
            serde_json::json!({ "reservations": { "memory_bytes": 3_u64 << 30 } });
    }));
    cluster.create(spec("free", replicas(2)));
    cluster.step();
    cluster.settle();
    assert_eq!(cluster.running("web").len(), 4);
    let mut smaller = node(1);
    smaller.resources.memory_bytes = 4 << 30;
    cluster.put_node(smaller);
    cluster.step();
    cluster.settle();
    assert_eq!(
        (cluster.running("web").len(), cluster.running("free").len()),
        (3, 2)
    );
}

proptest! {
    #[test]
    fn a_global_service_runs_once_on_each_active_node(
        moves in proptest::collection::vec((1_u32..5, 0_u8..3), 0..20),
    ) {
        let mut cluster = Cluster::of(4);
        cluster.create(spec("agent", |json| json["mode"] = serde_json::json!({ "global": {} })));
        cluster.step();
        cluster.settle();
        for (number, availability) in moves {
            let availability = [Availability::Active, Availability::Pause, Availability::Drain][usize::from(availability)];
            cluster.set_availability(&format!("node{number}"), availability);
            cluster.step();
            cluster.settle();
        }
        let counts = running_on(&cluster);
        for (id, node) in cluster.state().nodes() {
            let count = counts.get(id.as_str()).copied().unwrap_or(0);
            match node.availability {
                Availability::Active => prop_assert_eq!(count, 1),
                Availability::Pause => prop_assert!(count <= 1),
                Availability::Drain => prop_assert_eq!(count, 0),
            }
        }
    }
}
