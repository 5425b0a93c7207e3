//! Three nodes, with their objects in a three-member etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::lab::wait_until;

use crate::{
    Story,
    etcd::Etcd,
    fixture::{Fixture, PATIENCE, UNAVAILABLE},
    managed, peers,
};

pub(crate) const STORIES: [Story; 2] = [
    (
        "three_nodes_share_services_keys_drains_logs_and_updates",
        together,
    ),
    ("lost_nodes_leaders_and_quorums_cost_no_running_task", losses),
];

/// The agents' heartbeat where no node may be lost: the default, so that a slow machine loses none.
const HEARTBEAT: &str = "5s";
/// The agents' heartbeat in stories that wait for the loss of a node. Three may be missed: etcd elects a
/// leader in that time, also on a slow machine.
pub(crate) const QUICK_HEARTBEAT: &str = "2s";

/// Three nodes with agents, and etcd.
pub(crate) fn three_nodes(name: &str, heartbeat: &str) -> Result<(Fixture, Etcd)> {
    let mut fixture = Fixture::up(name, 3)?;
    let etcd = Etcd::start(&fixture.lab)?;
    for node in ["node1", "node2", "node3"] {
        let mut arguments = etcd.arguments(&fixture.lab, node)?;
        arguments.extend(["--heartbeat", heartbeat].map(str::to_owned));
        fixture.more.insert(node.to_owned(), arguments);
    }
    fixture.start_agent("node1")?;
    // All nodes have the same key of the cluster's secrets; the first one has made it.
    let key = |node: &str| fixture.lab.state().data.join(node).join("mesh/secrets.key");
    for node in ["node2", "node3"] {
        let to = key(node);
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(key("node1"), &to)?;
        fixture.start_agent(node)?;
    }
    Ok((fixture, etcd))
}

fn together() -> Result<()> {
    let (fixture, _etcd) = three_nodes("orch-three", HEARTBEAT)?;
    let outcome = share(&fixture);
    fixture.end(outcome)
}

fn share(fixture: &Fixture) -> Result<()> {
    fixture.create_web(6, "stop-first")?;
    wait_until("two tasks on each node", PATIENCE, || {
        let counts = by_node(fixture, "node1")?;
        ensure!(
            counts.len() == 3 && counts.values().all(|count| *count == 2),
            "{counts:?}"
        );
        Ok(())
    })?;
    fixture.without_a_failure(|| fixture.roll("2"))?;
    peers::key(fixture).context("the key of packets between nodes")?;
    peers::drain(fixture).context("a drain on another node")?;

    let logs = fixture.api("node2")?.send("GET", "/v1/services/web/logs", None)?;
    let nodes: BTreeSet<String> = logs
        .body
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| line["node"].as_str().map(str::to_owned))
        .collect();
    ensure!(!logs.body.contains("certificate"), "{}", logs.body);
    println!("    logs of {nodes:?}");

    // Every node's agent is replaced by another one, also the leader's.
    let before = all_containers(fixture)?;
    for node in fixture.lab.nodes() {
        managed::import_agent(fixture, node, "mesh-agent:2")?;
    }
    fixture.without_a_failure(|| managed::deploy(fixture, "mesh-agent:2"))?;
    managed::expect_running(fixture, 3)?;
    for node in fixture.lab.nodes() {
        let program = managed::executable(fixture, node)?;
        ensure!(program.contains("/mesh/agent/"), "{program} runs on {node}");
    }
    let after = all_containers(fixture)?;
    if after != before {
        let why = fixture.meshctl("node1", &["service", "ps", "web", "--no-trunc"])?;
        bail!("the containers were {before:?} and are {after:?}:\n{why}");
    }

    // Drain: the node's tasks move, and nothing is lost.
    let drained = json!({"availability": "drain"});
    fixture.without_a_failure(|| {
        fixture.change("node1", "PATCH", "/v1/nodes/node3", &drained)?;
        wait_until("node3 to be empty", PATIENCE, || {
            let counts = by_node(fixture, "node1")?;
            ensure!(
                counts.len() == 2 && counts.values().sum::<usize>() == 6,
                "{counts:?}"
            );
            Ok(())
        })
    })
}

fn losses() -> Result<()> {
    let (fixture, etcd) = three_nodes("orch-losses", QUICK_HEARTBEAT)?;
    let outcome = lose(&fixture, &etcd);
    fixture.end(outcome)
}

fn lose(fixture: &Fixture, etcd: &Etcd) -> Result<()> {
    fixture.create_web(6, "start-first")?;

    // The leader's agent dies: another one leads, and no request is lost meanwhile.
    let leader = some_leader(fixture, "node1")?;
    let other = if leader == "node1" { "node2" } else { "node1" };
    fixture.without_a_failure(|| {
        fixture.lab.kill_agent(&leader)?;
        wait_until("another leader", PATIENCE, || {
            let now = self::leader(fixture, other)?;
            ensure!(now != leader, "{now} leads");
            Ok(())
        })?;
        fixture.start_agent(&leader)
    })?;
    fixture.until_running(6)?;

    // Without a quorum nothing changes, and everything runs.
    let before = fixture.containers("node1")?;
    fixture.without_a_failure(|| {
        for node in ["node2", "node3"] {
            etcd.kill_member(&fixture.lab, node)?;
        }
        let scale = json!({"replicas": 7});
        let refused = fixture
            .api("node1")?
            .send("POST", "/v1/services/web/scale", Some(&scale))?;
        ensure!(refused.status == UNAVAILABLE, "{refused:?}");
        for node in ["node2", "node3"] {
            etcd.start_member(&fixture.lab, node)?;
        }
        etcd.wait_for_health(&fixture.lab, "node1")
    })?;
    let scale = json!({"replicas": 6});
    fixture.change("node1", "POST", "/v1/services/web/scale", &scale)?;
    fixture.until_running(6)?;
    let after = fixture.containers("node1")?;
    ensure!(
        after == before,
        "the containers of node1 were {before:?} and are {after:?}"
    );

    // A node is lost: its tasks run elsewhere.
    let lost = match some_leader(fixture, "node1")?.as_str() {
        "node3" => "node2",
        _ => "node3",
    };
    fixture.lab.kill_agent(lost)?;
    wait_until(&format!("the tasks of {lost} to run elsewhere"), PATIENCE, || {
        let counts = by_node(fixture, "node1")?;
        ensure!(
            !counts.contains_key(lost) && counts.values().sum::<usize>() == 6,
            "{counts:?}"
        );
        Ok(())
    })?;
    // It comes back, and its old tasks are stopped.
    fixture.start_agent(lost)?;
    wait_until("duplicate tasks to be stopped", PATIENCE, || {
        let mut containers = 0;
        for node in fixture.lab.nodes() {
            containers += fixture.containers(node)?.len();
        }
        ensure!(containers == 6, "{containers} containers run");
        Ok(())
    })
}

/// The running containers of all nodes.
fn all_containers(fixture: &Fixture) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for node in fixture.lab.nodes() {
        all.extend(fixture.containers(node)?);
    }
    Ok(all)
}

/// The leader's host name, as a node reports it, once there is one: leadership may move at any time.
pub(crate) fn some_leader(fixture: &Fixture, node: &str) -> Result<String> {
    wait_until("a leader", PATIENCE, || leader(fixture, node))
}

/// The leader's host name, as a node reports it now.
pub(crate) fn leader(fixture: &Fixture, node: &str) -> Result<String> {
    let nodes = fixture.api(node)?.get("/v1/nodes")?;
    let leader = nodes
        .as_array()
        .into_iter()
        .flatten()
        .find(|node| node["leader"] == true);
    match leader.and_then(|node| node["hostname"].as_str()) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("there is no leader: {nodes}"),
    }
}

/// How many tasks run on each node, as one of them reports it.
pub(crate) fn by_node(fixture: &Fixture, node: &str) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for task in fixture.api(node)?.running("web")? {
        let node = task["node_hostname"].as_str().unwrap_or_default().to_owned();
        *counts.entry(node).or_insert(0) += 1;
    }
    Ok(counts)
}
