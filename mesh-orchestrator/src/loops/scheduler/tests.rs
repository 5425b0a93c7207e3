//! The scheduler on its own: filters, spreading, explanations.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::loops::testing::{Cluster, node, spec};
use crate::objects::{Availability, NodeStatus};

fn message(cluster: &Cluster) -> String {
    let pending = |task: &&Task| task.status.state == TaskState::Pending;
    cluster
        .state()
        .tasks()
        .values()
        .find(pending)
        .map(|task| task.status.message.clone())
        .unwrap_or_default()
}

fn per_node(cluster: &Cluster) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for task in cluster.state().tasks().values().filter(|task| task.is_live()) {
        if let Some(node) = &task.node {
            *counts.entry(node.to_string()).or_insert(0) += 1;
        }
    }
    counts
}

#[test]
fn a_task_without_a_node_reports_why() {
    let mut cluster = Cluster::default();
    for number in 1..=2 {
        let mut small = node(number);
        small.resources.memory_bytes = 1 << 20;
        cluster.put_node(small);
    }
    let mut other = node(3);
    other.labels.insert("disk".into(), "hdd".into());
    cluster.put_node(other);
    cluster.create(spec("web", |json| {
        json["task_template"]["resources"] =
            serde_json::json!({ "reservations": { "memory_bytes": 1 << 21 } });
        json["task_template"]["placement"] = serde_json::json!({ "constraints": ["node.labels.disk!=hdd"] });
    }));
    cluster.step();
    assert_eq!(
        message(&cluster),
        "no suitable node (insufficient memory on 2 nodes; constraint not met on 1)"
    );
}

#[test]
fn without_nodes_tasks_stay_pending_until_one_joins() {
    let mut cluster = Cluster::default();
    cluster.create(spec("web", |_| {}));
    cluster.step();
    assert_eq!(message(&cluster), "no suitable node (there are no nodes)");
    cluster.put_node(node(1));
    cluster.step();
    assert_eq!(per_node(&cluster), BTreeMap::from([("node1".into(), 1)]));
}

#[test]
fn paused_drained_and_unready_nodes_take_no_tasks() {
    let mut cluster = Cluster::default();
    for (number, availability, status) in [
        (1, Availability::Pause, NodeStatus::Ready),
        (2, Availability::Drain, NodeStatus::Ready),
        (3, Availability::Active, NodeStatus::Down),
        (4, Availability::Active, NodeStatus::Unknown),
    ] {
        let mut node = node(number);
        (node.availability, node.status) = (availability, status);
        cluster.put_node(node);
    }
    cluster.create(spec("web", |_| {}));
    cluster.step();
    assert_eq!(
        message(&cluster),
        "no suitable node (node not ready on 2 nodes; node paused or drained on 2)"
    );
}

#[test]
fn spreads_over_the_values_of_a_preference_first() {
    let mut cluster = Cluster::default();
    for number in 1..=4 {
        let mut node = node(number);
        node.labels
            .insert("zone".into(), if number == 1 { "a" } else { "b" }.into());
        cluster.put_node(node);
    }
    cluster.create(spec("web", |json| {
        json["mode"] = serde_json::json!({ "replicated": { "replicas": 6 } });
        json["task_template"]["placement"] =
            serde_json::json!({ "preferences": [{ "spread": "node.labels.zone" }] });
    }));
    cluster.step();
    let counts = per_node(&cluster);
    assert_eq!(counts.get("node1"), Some(&3), "{counts:?}");
    assert!(
        (2..=4).all(|number| counts.get(&format!("node{number}")) == Some(&1)),
        "{counts:?}"
    );
}

#[test]
fn a_node_that_has_become_ready_again_does_not_take_every_task() {
    let mut cluster = Cluster::default();
    for number in 1..=3 {
        let mut node = node(number);
        if number == 3 {
            node.availability = Availability::Pause;
        }
        cluster.put_node(node);
    }
    for service in 0..20 {
        cluster.create(spec(&format!("s{service}"), |_| {}));
    }
    cluster.step();
    cluster.run_all();
    cluster.set_availability("node3", Availability::Active);
    // None of these has a task on the third node, so its own spread alone would choose that node.
    for service in 0..20 {
        cluster.scale(&format!("s{service}"), 3);
        cluster.step();
    }
    let counts = per_node(&cluster);
    assert_eq!(counts.values().sum::<u32>(), 60);
    assert!(counts["node3"] <= 21, "{counts:?}");
}

#[test]
fn a_node_where_the_service_keeps_failing_is_avoided() {
    let mut cluster = Cluster::default();
    cluster.put_node(node(1));
    cluster.create(spec("web", |json| {
        json["task_template"]["restart_policy"] = serde_json::json!({ "delay": "0" });
    }));
    cluster.step();
    for _ in 0..4 {
        cluster.fail_all();
        // Failures in a row are followed by ever longer delays.
        cluster.pass(2);
    }
    // The other node is fuller, but has not failed.
    cluster.put_node(node(2));
    cluster.create(spec("other", |json| {
        json["task_template"]["placement"] = serde_json::json!({ "constraints": ["node.id==node2"] });
    }));
    cluster.step();
    assert_eq!(
        per_node(&cluster),
        BTreeMap::from([("node1".into(), 1), ("node2".into(), 1)])
    );
    let last = cluster
        .slot("web", 1)
        .into_iter()
        .find(|task| task.is_live())
        .unwrap()
        .id
        .clone();
    cluster.observe(&last, TaskState::Failed);
    cluster.pass(2);
    assert_eq!(per_node(&cluster), BTreeMap::from([("node2".into(), 2)]));
}

proptest! {
    #[test]
    fn tasks_of_a_service_are_spread_evenly_over_identical_nodes(nodes in 1_u32..9, replicas in 0_u32..40) {
        let mut cluster = Cluster::default();
        (1..=nodes).for_each(|number| cluster.put_node(node(number)));
        cluster.create(spec("web", |json| json["mode"] = serde_json::json!({ "replicated": { "replicas": replicas } })));
        cluster.step();
        let counts = per_node(&cluster);
        prop_assert_eq!(counts.values().sum::<u32>(), replicas);
        let least = if counts.len() == nodes as usize { counts.values().min().copied().unwrap_or(0) } else { 0 };
        prop_assert!(counts.values().max().copied().unwrap_or(0) <= least + 1);
    }

    #[test]
    fn as_many_tasks_are_placed_as_reservations_allow(
        memory in proptest::collection::vec(0_u64..10, 1..6),
        reserve in 1_u64..4,
        replicas in 0_u32..30,
    ) {
        let mut cluster = Cluster::default();
        for (number, memory) in (1..).zip(&memory) {
            let mut node = node(number);
            node.resources.memory_bytes = *memory;
            cluster.put_node(node);
        }
        cluster.create(spec("web", |json| {
            json["mode"] = serde_json::json!({ "replicated": { "replicas": replicas } });
            json["task_template"]["resources"] = serde_json::json!({ "reservations": { "memory_bytes": reserve } });
        }));
        cluster.step();
        let room: u64 = memory.iter().map(|memory| memory / reserve).sum();
        let placed: u32 = per_node(&cluster).values().sum();
        prop_assert_eq!(u64::from(placed), room.min(u64::from(replicas)));
    }

    #[test]
    fn the_explanation_counts_every_node(reasons in proptest::collection::vec(0_usize..4, 1..20)) {
        let all = [Reason::Cpu, Reason::Memory, Reason::Constraint, Reason::NotReady];
        let mut refused = BTreeMap::new();
        for reason in &reasons {
            *refused.entry(all[*reason]).or_insert(0) += 1;
        }
        let text = explain(&refused);
        let sum: usize = text
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|number| number.parse::<usize>().ok())
            .sum();
        prop_assert_eq!(sum, reasons.len());
        let distinct: BTreeSet<_> = reasons.iter().collect();
        prop_assert_eq!(text.matches(';').count(), distinct.len() - 1);
    }
}
