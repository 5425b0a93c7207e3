//! The leader's node is cut off from the others: they continue without it, and it changes nothing until it is
//! back.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::lab::wait_until;

use crate::{
    Story,
    fixture::{Fixture, HTTP, PATIENCE, UNAVAILABLE},
    several::{QUICK_HEARTBEAT, by_node, leader, some_leader, three_nodes},
};

pub(crate) const STORIES: [Story; 1] = [(
    "a_leader_that_is_cut_off_is_replaced_and_changes_nothing",
    partition,
)];

/// The service's tasks.
const REPLICAS: usize = 6;

fn partition() -> Result<()> {
    let (fixture, _etcd) = three_nodes("orch-cut", QUICK_HEARTBEAT)?;
    let outcome = cut_off(&fixture);
    fixture.end(outcome)
}

fn cut_off(fixture: &Fixture) -> Result<()> {
    fixture.create_web(REPLICAS, "start-first")?;
    let lost = some_leader(fixture, "node1")?;
    let old = fixture.containers(&lost)?;
    ensure!(old.len() == REPLICAS / 3, "{old:?} run on {lost}");
    let others: Vec<&str> = fixture
        .lab
        .nodes()
        .into_iter()
        .filter(|node| *node != lost)
        .collect();
    thread::scope(|scope| {
        let mut refusal = None;
        let mut noticed = Duration::ZERO;
        let report = fixture.under_load(&others, || {
            fixture.lab.cut_off(&lost)?;
            let begin = Instant::now();
            // This may take a while: its etcd member may have been about to commit.
            refusal = Some(scope.spawn(|| changes_nothing(fixture, &lost, &old)));
            until_avoided(fixture, &lost, &others)?;
            noticed = begin.elapsed();
            Ok(())
        })?;
        println!("    the cut was noticed after {:.1} s", noticed.as_secs_f64());
        // It had a third of the replicas.
        ensure!(report.failures() * 2 < report.attempts, "{report:?}");
        fixture.none_fails(&others, || {
            replaced(fixture, &lost, &others)?;
            match refusal.map(ScopedJoinHandle::join) {
                Some(Ok(outcome)) => outcome?,
                Some(Err(_)) | None => bail!("the thread that asked {lost} panicked"),
            }
            fixture.lab.reconnect(&lost)?;
            let begin = Instant::now();
            back(fixture, &lost, &old)?;
            println!("    {lost} was back after {:.1} s", begin.elapsed().as_secs_f64());
            Ok(())
        })
    })?;
    fixture.until_running(REPLICAS)?;
    wait_until("one running task in each slot", PATIENCE, || {
        one_in_each_slot(fixture)
    })
}

/// Every other node avoids it, even before it is reported lost; until then some requests go to its replicas.
fn until_avoided(fixture: &Fixture, lost: &str, others: &[&str]) -> Result<()> {
    for node in others {
        wait_until(&format!("{node} to avoid {lost}"), PATIENCE, || {
            let text = fixture.lab.meshctl(node, &["routes", "--format", "json"])?;
            let answer: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: `{text}`"))?;
            let rows = answer["routes"].as_array().context("no routes")?;
            let there = |row: &&Value| row["backend"]["node"] == lost && row["state"] == "active";
            let active = rows.iter().find(there);
            ensure!(active.is_none(), "new connections go to {active:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The others have another leader and all of the service's tasks.
fn replaced(fixture: &Fixture, lost: &str, others: &[&str]) -> Result<()> {
    for node in others {
        wait_until(&format!("{node} to know another leader"), PATIENCE, || {
            let now = leader(fixture, node)?;
            ensure!(now != lost, "{now} leads");
            Ok(())
        })?;
        wait_until("the lost tasks to run elsewhere", PATIENCE, || {
            let counts = by_node(fixture, node)?;
            ensure!(
                !counts.contains_key(lost) && counts.values().sum::<usize>() == REPLICAS,
                "{counts:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// The node that is cut off refuses changes, and its tasks keep running.
fn changes_nothing(fixture: &Fixture, lost: &str, old: &BTreeSet<String>) -> Result<()> {
    let scale = json!({"replicas": 1});
    let refused = fixture
        .api(lost)?
        .send("POST", "/v1/services/web/scale", Some(&scale))?;
    ensure!(refused.status == UNAVAILABLE, "{refused:?}");
    let now = fixture.containers(lost)?;
    ensure!(now == *old, "{old:?} ran on {lost}, and {now:?} run");
    // Its own replicas still answer its own processes; it may not know yet that it lost the others.
    let url = format!("http://127.0.0.1:{HTTP}/");
    wait_until(
        &format!("the replicas of {lost} to answer there"),
        PATIENCE,
        || {
            let inside = fixture
                .lab
                .fetch_with(lost, &url, REPLICAS, &["--timeout", "300"])?;
            let answered: BTreeSet<_> = inside
                .iter()
                .filter(|reply| reply.outcome == "answered")
                .map(|reply| &reply.task)
                .collect();
            ensure!(answered.len() == old.len(), "{answered:?} answered");
            Ok(())
        },
    )
}

/// It follows the others: its old tasks are stopped, and all nodes agree.
fn back(fixture: &Fixture, lost: &str, old: &BTreeSet<String>) -> Result<()> {
    let nodes = fixture.lab.nodes();
    for node in &nodes {
        wait_until(&format!("{node} to see {lost} again"), PATIENCE, || {
            let status = status_of(fixture, node, lost)?;
            ensure!(status == "ready", "{lost} is {status}");
            Ok(())
        })?;
    }
    wait_until("duplicate tasks to be stopped", PATIENCE, || {
        let now = fixture.containers(lost)?;
        ensure!(now.is_disjoint(old), "{old:?} ran on {lost}, and {now:?} run");
        Ok(())
    })?;
    // It may be the node that is back: another one can lose its lease, and the election is free then.
    wait_until("the nodes to agree on a leader", PATIENCE, || {
        let leaders: BTreeSet<String> = nodes
            .iter()
            .map(|node| leader(fixture, node))
            .collect::<Result<_>>()?;
        ensure!(leaders.len() == 1, "{leaders:?} lead");
        Ok(())
    })
}

/// No slot has two running tasks, in the objects or in the engines.
fn one_in_each_slot(fixture: &Fixture) -> Result<()> {
    let api = fixture.api("node1")?;
    let mode = &api.get("/v1/services/web")?["spec"]["mode"];
    ensure!(mode["replicated"]["replicas"] == REPLICAS, "{mode}");
    let running = api.running("web")?;
    let slots: BTreeSet<String> = running.iter().map(|task| task["slot"].to_string()).collect();
    ensure!(
        running.len() == REPLICAS && slots.len() == REPLICAS,
        "{} tasks run in the slots {slots:?}",
        running.len()
    );
    let known: BTreeSet<String> = running
        .iter()
        .filter_map(|task| task["status"]["container"].as_str())
        .map(str::to_owned)
        .collect();
    let mut found = BTreeMap::new();
    for node in fixture.lab.nodes() {
        for container in fixture.containers(node)? {
            found.insert(container, node);
        }
    }
    ensure!(found.keys().eq(known.iter()), "{found:?} run, and not {known:?}");
    Ok(())
}

/// A node's status as another node reports it.
fn status_of(fixture: &Fixture, node: &str, other: &str) -> Result<String> {
    let nodes = fixture.api(node)?.get("/v1/nodes")?;
    let found = nodes
        .as_array()
        .into_iter()
        .flatten()
        .find(|node| node["hostname"] == other);
    let status = found.map(|node| &node["status"]).and_then(Value::as_str);
    status
        .map(str::to_owned)
        .with_context(|| format!("{other} is not listed: {nodes}"))
}
