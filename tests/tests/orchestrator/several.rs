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
    fixture::{Fixture, PATIENCE},
    managed, peers,
};

pub(crate) const STORIES: [Story; 2] = [
    (
        "three_nodes_share_services_keys_drains_logs_and_updates",
        together,
    ),
    ("lost_nodes_leaders_and_quorums_cost_no_running_task", losses),
];

/// Three nodes with agents, and etcd.
pub(crate) fn three_nodes(name: &str) -> Result<(Fixture, Etcd)> {
    let mut fixture = Fixture::up(name, 3)?;
    let etcd = Etcd::start(&fixture.lab)?;
    for node in ["node1", "node2", "node3"] {
        fixture
            .more
            .insert(node.to_owned(), etcd.arguments(&fixture.lab, node)?);
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
    let (fixture, _etcd) = three_nodes("orch-three")?;
    fixture
        .create_web(6, "stop-first")
        .with_context(|| fixture.evidence())?;
    let counts = by_node(&fixture, "node1")?;
    ensure!(
        counts.len() == 3 && counts.values().all(|count| *count == 2),
        "{counts:?}"
    );
    fixture.without_a_failure(|| fixture.roll("2"))?;
    peers::key(&fixture).context("the key of packets between nodes")?;
    peers::drain(&fixture).context("a drain on another node")?;

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
    let before = all_containers(&fixture)?;
    for node in fixture.lab.nodes() {
        managed::import_agent(&fixture, node, "mesh-agent:2")?;
    }
    fixture.without_a_failure(|| {
        managed::deploy(&fixture, "mesh-agent:2").with_context(|| fixture.evidence())
    })?;
    managed::expect_running(&fixture, 3)?;
    for node in fixture.lab.nodes() {
        let program = managed::executable(&fixture, node)?;
        ensure!(program.contains("/mesh/agent/"), "{program} runs on {node}");
    }
    ensure!(all_containers(&fixture)? == before, "the containers have changed");

    // Drain: the node's tasks move, and nothing is lost.
    let drained = json!({"availability": "drain"});
    fixture.without_a_failure(|| {
        fixture
            .api("node1")?
            .call("PATCH", "/v1/nodes/node3", Some(&drained))?;
        wait_until("node3 to be empty", PATIENCE, || {
            let counts = by_node(&fixture, "node1")?;
            ensure!(
                counts.len() == 2 && counts.values().sum::<usize>() == 6,
                "{counts:?}"
            );
            Ok(())
        })
    })?;
    fixture.lab.down()
}

fn losses() -> Result<()> {
    let (fixture, etcd) = three_nodes("orch-losses")?;
    fixture
        .create_web(6, "start-first")
        .with_context(|| fixture.evidence())?;

    // The leader's agent dies: another one leads, and no request is lost meanwhile.
    let leader = leader(&fixture, "node1")?;
    let other = if leader == "node1" { "node2" } else { "node1" };
    fixture.without_a_failure(|| {
        fixture.lab.kill_agent(&leader)?;
        wait_until("another leader", PATIENCE, || {
            let now = self::leader(&fixture, other)?;
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
        ensure!(refused.status == 503, "{refused:?}");
        for node in ["node2", "node3"] {
            etcd.start_member(&fixture.lab, node)?;
        }
        etcd.wait_for_health(&fixture.lab, "node1")
    })?;
    wait_until("changes to be possible again", PATIENCE, || {
        let scale = json!({"replicas": 6});
        fixture
            .api("node1")?
            .call("POST", "/v1/services/web/scale", Some(&scale))
            .map(drop)
    })?;
    fixture.until_running(6)?;
    ensure!(
        fixture.containers("node1")? == before,
        "the containers of node1 have changed"
    );

    // A node is lost: its tasks run elsewhere.
    let leads = |fixture: &Fixture| wait_until("a leader", PATIENCE, || self::leader(fixture, "node1"));
    let lost = if leads(&fixture)? == "node3" {
        "node2"
    } else {
        "node3"
    };
    fixture.lab.kill_agent(lost)?;
    wait_until(&format!("the tasks of {lost} to run elsewhere"), PATIENCE, || {
        let counts = by_node(&fixture, "node1")?;
        ensure!(
            !counts.contains_key(lost) && counts.values().sum::<usize>() == 6,
            "{counts:?}"
        );
        Ok(())
    })
    .with_context(|| fixture.evidence())?;
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
    .with_context(|| fixture.evidence())?;
    fixture.lab.down()
}

/// The running containers of all nodes.
fn all_containers(fixture: &Fixture) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for node in fixture.lab.nodes() {
        all.extend(fixture.containers(node)?);
    }
    Ok(all)
}

/// The leader's host name, as a node reports it.
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
