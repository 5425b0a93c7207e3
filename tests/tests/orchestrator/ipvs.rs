//! The orchestrator on IPVS: one node without Swarm and without eBPF. Needs a kernel with IPVS; run by
//! `cargo xtask vm test`.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::wait_until;

use crate::{
    Story,
    fixture::{Fixture, HTTP, PATIENCE, answered},
};

pub(crate) const STORIES: [Story; 1] = [("one_node_on_ipvs_runs_updates_and_removes_a_service", life)];

const NODE: &str = "node1";

fn life() -> Result<()> {
    let mut fixture = Fixture::up("orch-ipvs", 1)?;
    let arguments = ["--datapath", "ipvs"].map(str::to_owned).to_vec();
    fixture.more.insert(NODE.to_owned(), arguments);
    fixture.start_agent(NODE)?;
    let outcome = use_it(&fixture).and_then(|()| leave(&fixture));
    fixture.end(outcome)
}

fn use_it(fixture: &Fixture) -> Result<()> {
    let text = fixture.lab.meshctl(NODE, &["datapath", "--format", "json"])?;
    let datapath: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: `{text}`"))?;
    ensure!(datapath["datapath"]["kind"] == "ipvs", "{text}");

    fixture.create_web(2, "start-first")?;
    all_answer(fixture, 2)?;
    fixture.without_a_failure(|| fixture.roll("2"))?;

    let api = fixture.api(NODE)?;
    for replicas in [3, 1] {
        let scale = json!({"replicas": replicas});
        api.call("POST", "/v1/services/web/scale", Some(&scale))?;
        fixture.until_running(replicas)?;
        wait_until(&format!("{replicas} containers"), PATIENCE, || {
            let containers = fixture.containers(NODE)?;
            ensure!(containers.len() == replicas, "{containers:?}");
            Ok(())
        })?;
    }
    // One without a service would not show that the agent takes its own away.
    ensure!(!virtual_services(fixture)?.is_empty(), "IPVS has no service");
    Ok(())
}

/// All replicas, at the node's address and at 127.0.0.1.
fn all_answer(fixture: &Fixture, replicas: usize) -> Result<()> {
    for (from, url) in [
        ("client", fixture.url(NODE)?),
        (NODE, fixture.url(NODE)?),
        (NODE, format!("http://127.0.0.1:{HTTP}/")),
    ] {
        let tasks = answered(&fixture.lab.fetch(from, &url, replicas * 2)?)?;
        ensure!(tasks.len() == replicas, "{url} from {from}: {tasks:?} answered");
    }
    Ok(())
}

/// The agent stops and starts again beside what runs; then the service goes, and the agent.
fn leave(fixture: &Fixture) -> Result<()> {
    let containers = fixture.containers(NODE)?;
    stop(fixture)?;
    nothing_is_left(fixture)?;
    ensure!(fixture.containers(NODE)? == containers, "other containers run");
    fixture.start_agent(NODE)?;
    fixture.until_running(1)?;
    ensure!(fixture.containers(NODE)? == containers, "other containers run");

    let api = fixture.api(NODE)?;
    api.call("DELETE", "/v1/services/web", None)?;
    wait_until("the service to go", PATIENCE, || {
        let (left, services) = (fixture.containers(NODE)?, virtual_services(fixture)?);
        ensure!(left.is_empty() && services.is_empty(), "{left:?} {services:?}");
        Ok(())
    })?;
    let port = format!("{}:{HTTP}", fixture.lab.address(NODE)?);
    let refused = fixture.lab.connect("client", &port)?;
    ensure!(refused.outcome == "refused", "{refused:?}");
    stop(fixture)?;
    nothing_is_left(fixture)
}

fn stop(fixture: &Fixture) -> Result<()> {
    let status = fixture.lab.stop_agent(NODE)?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "it ended with {status:?}"
    );
    Ok(())
}

/// There are no services in IPVS, and no rules or device of ours.
fn nothing_is_left(fixture: &Fixture) -> Result<()> {
    let services = virtual_services(fixture)?;
    ensure!(services.is_empty(), "IPVS still has {services:?}");
    let tables = fixture.lab.run(NODE, ["nft", "list", "tables"])?;
    ensure!(!tables.lines().any(|table| table.ends_with(" mesh")), "{tables}");
    let links = fixture.lab.run(NODE, ["ip", "-oneline", "link"])?;
    ensure!(!links.contains("mesh"), "{links}");
    let rules = fixture.lab.run(NODE, ["ip", "rule", "show"])?;
    ensure!(!rules.contains("0.0.0/8"), "{rules}");
    wait_until("the port to be closed", Duration::from_secs(5), || {
        let port = format!("{}:{HTTP}", fixture.lab.address(NODE)?);
        let refused = fixture.lab.connect("client", &port)?;
        ensure!(refused.outcome == "refused", "{refused:?}");
        Ok(())
    })
}

/// The virtual services that IPVS lists on the node.
fn virtual_services(fixture: &Fixture) -> Result<BTreeSet<String>> {
    let table = fixture.lab.run(NODE, ["cat", "/proc/net/ip_vs"])?;
    let is_service = |line: &&str| ["TCP", "UDP", "FWM"].iter().any(|kind| line.starts_with(kind));
    Ok(table.lines().filter(is_service).map(str::to_owned).collect())
}
