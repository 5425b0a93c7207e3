//! What nodes accept from each other: packets with the cluster's key, and a manager's requests to drain.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{forge::Received, wait_until};

use crate::fixture::{Fixture, PATIENCE, answered};

const MANAGER: &str = "node1";
const NODE: &str = "node2";

/// A packet in a peer's name is dropped without the key, and a rotation of the key loses no request.
pub(crate) fn key(fixture: &Fixture) -> Result<()> {
    let is_required = |node: &str| {
        let received = fixture.lab.send_as_peer(node, MANAGER, None)?;
        ensure!(received == Received::WithoutKey, "{node} accepted it");
        Ok(())
    };
    for node in [NODE, "node3"] {
        // From the first probe on that has the key.
        wait_until("packets without a key to be dropped", PATIENCE, || {
            is_required(node)
        })?;
    }
    let first = wait_until("all nodes to take one key", PATIENCE, || {
        let first = keys(fixture)?;
        ensure!(
            first.len() == 1 && first.iter().flatten().count() == 1,
            "they take {first:?}"
        );
        Ok(first)
    })?;
    fixture.without_a_failure(|| {
        fixture.meshctl(MANAGER, &["node", "rotate-key"])?;
        wait_until("all nodes to take both keys", PATIENCE, || {
            let both = keys(fixture)?;
            ensure!(
                both.len() == 1 && both.iter().flatten().count() == 2 && both[0].contains(&first[0][0]),
                "they take {both:?}, and took {first:?}"
            );
            Ok(())
        })
    })?;
    is_required(NODE)
}

/// The different sets of keys that nodes have announced, in order.
fn keys(fixture: &Fixture) -> Result<Vec<Vec<u64>>> {
    let nodes = fixture.api(MANAGER)?.get("/v1/nodes")?;
    let nodes = nodes.as_array().context("no nodes")?;
    let mut sets: Vec<Vec<u64>> = nodes
        .iter()
        .map(|node| {
            let ids = node["registration"]["keys"].as_array().into_iter().flatten();
            let mut ids: Vec<u64> = ids.filter_map(Value::as_u64).collect();
            ids.sort_unstable();
            ids
        })
        .collect();
    sets.sort_unstable();
    sets.dedup();
    Ok(sets)
}

/// A manager has another node's agent drain a replica there.
pub(crate) fn drain(fixture: &Fixture) -> Result<()> {
    let (running, task) = wait_until(&format!("a replica on {NODE}"), PATIENCE, || {
        let running = fixture.api(MANAGER)?.running("web")?;
        let tasks = running.iter().filter(|task| task["node_hostname"] == NODE);
        let task = tasks.filter_map(|task| task["name"].as_str()).next();
        let task = task.with_context(|| format!("{} run elsewhere", running.len()))?;
        Ok((running.len(), task.to_owned()))
    })?;
    let task = task.as_str();
    fixture.without_a_failure(|| {
        let text = fixture.lab.meshctl(MANAGER, &["drain", "--detach", task])?;
        ensure!(text.starts_with(task), "it printed `{text}`");
        for node in fixture.lab.nodes() {
            wait_until(&format!("{node} to avoid {task}"), PATIENCE, || {
                let replies = fixture.lab.fetch("client", &fixture.url(node)?, 2 * running)?;
                let answered = answered(&replies)?;
                ensure!(!answered.contains(task), "{answered:?} answered");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    let text = fixture.lab.meshctl(MANAGER, &["drain", task])?;
    ensure!(
        text.trim_end().ends_with("drained, no open connections"),
        "it printed `{text}`"
    );
    // The answer is that of the node.
    let refused = fixture.lab.meshctl(MANAGER, &["undrain", "no-such-task"]);
    ensure!(refused.is_err(), "it undrained what there is not");
    let text = fixture.lab.meshctl(MANAGER, &["undrain", task])?;
    ensure!(
        text.trim_end() == format!("nothing is drained on {NODE}"),
        "it printed `{text}`"
    );
    reads(fixture)?;
    fixture.until_running(running)
}

/// A manager shows what another node's agent does.
fn reads(fixture: &Fixture) -> Result<()> {
    let text = fixture.lab.meshctl(
        MANAGER,
        &["flows", "--node", NODE, "--limit", "1", "--format", "json"],
    )?;
    let flows: Value = serde_json::from_str(&text).with_context(|| format!("it printed `{text}`"))?;
    ensure!(flows["hostname"] == NODE, "it printed `{text}`");
    Ok(())
}
