//! The orchestrator on IPVS: one node without Swarm and without eBPF. Needs a kernel with IPVS; run by
//! `cargo xtask vm test`.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use xtask::lab::wait_until;

#[path = "orchestrator/stage.rs"]
mod stage;

use stage::{HTTP, PATIENCE, Stage, answered};

const NODE: &str = "node1";

fn main() -> ExitCode {
    let given = Arguments::from_args();
    let trial = Trial::test("one_node_on_ipvs_runs_updates_and_removes_a_service", || {
        life().map_err(|error| format!("{error:?}").into())
    });
    libtest_mimic::run(&given, vec![trial]).exit_code()
}

fn life() -> Result<()> {
    let mut stage = Stage::up("orch-ipvs", 1)?;
    let arguments = ["--datapath", "ipvs"].map(str::to_owned).to_vec();
    stage.more.insert(NODE.to_owned(), arguments);
    stage.start_agent(NODE)?;
    let outcome = use_it(&stage).and_then(|()| leave(&stage));
    outcome.with_context(|| stage.evidence())?;
    stage.lab.down()
}

fn use_it(stage: &Stage) -> Result<()> {
    let text = stage.lab.meshctl(NODE, &["datapath", "--format", "json"])?;
    let datapath: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: `{text}`"))?;
    ensure!(datapath["datapath"]["kind"] == "ipvs", "{text}");

    stage.create_web(2, "start-first")?;
    all_answer(stage, 2)?;
    stage.without_a_failure(|| stage.roll("2"))?;

    let api = stage.api(NODE)?;
    for replicas in [3, 1] {
        let scale = json!({"replicas": replicas});
        api.call("POST", "/v1/services/web/scale", Some(&scale))?;
        stage.until_running(replicas)?;
        wait_until(&format!("{replicas} containers"), PATIENCE, || {
            let containers = stage.containers(NODE)?;
            ensure!(containers.len() == replicas, "{containers:?}");
            Ok(())
        })?;
    }
    // One without a service would not show that the agent takes its own away.
    ensure!(!virtual_services(stage)?.is_empty(), "IPVS has no service");
    Ok(())
}

/// All replicas, at the node's address and at 127.0.0.1.
fn all_answer(stage: &Stage, replicas: usize) -> Result<()> {
    for (from, url) in [
        ("client", stage.url(NODE)?),
        (NODE, stage.url(NODE)?),
        (NODE, format!("http://127.0.0.1:{HTTP}/")),
    ] {
        let tasks = answered(&stage.lab.fetch(from, &url, replicas * 2)?)?;
        ensure!(tasks.len() == replicas, "{url} from {from}: {tasks:?} answered");
    }
    Ok(())
}

/// The agent stops and starts again beside what runs; then the service goes, and the agent.
fn leave(stage: &Stage) -> Result<()> {
    let containers = stage.containers(NODE)?;
    stop(stage)?;
    nothing_is_left(stage)?;
    ensure!(stage.containers(NODE)? == containers, "other containers run");
    stage.start_agent(NODE)?;
    stage.until_running(1)?;
    ensure!(stage.containers(NODE)? == containers, "other containers run");

    let api = stage.api(NODE)?;
    api.call("DELETE", "/v1/services/web", None)?;
    wait_until("the service to go", PATIENCE, || {
        let (left, services) = (stage.containers(NODE)?, virtual_services(stage)?);
        ensure!(left.is_empty() && services.is_empty(), "{left:?} {services:?}");
        Ok(())
    })?;
    let port = format!("{}:{HTTP}", stage.lab.address(NODE)?);
    let refused = stage.lab.connect("client", &port)?;
    ensure!(refused.outcome == "refused", "{refused:?}");
    stop(stage)?;
    nothing_is_left(stage)
}

fn stop(stage: &Stage) -> Result<()> {
    let status = stage.lab.stop_agent(NODE)?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "it ended with {status:?}"
    );
    Ok(())
}

/// Neither services in IPVS nor the rules and the device beside them.
fn nothing_is_left(stage: &Stage) -> Result<()> {
    let services = virtual_services(stage)?;
    ensure!(services.is_empty(), "IPVS still has {services:?}");
    let tables = stage.lab.run(NODE, ["nft", "list", "tables"])?;
    ensure!(!tables.lines().any(|table| table.ends_with(" mesh")), "{tables}");
    let links = stage.lab.run(NODE, ["ip", "-oneline", "link"])?;
    ensure!(!links.contains("mesh"), "{links}");
    let rules = stage.lab.run(NODE, ["ip", "rule", "show"])?;
    ensure!(!rules.contains("250.0.0.0/8"), "{rules}");
    wait_until("the port to be nobody's", Duration::from_secs(5), || {
        let port = format!("{}:{HTTP}", stage.lab.address(NODE)?);
        let refused = stage.lab.connect("client", &port)?;
        ensure!(refused.outcome == "refused", "{refused:?}");
        Ok(())
    })
}

/// What IPVS balances on the node, as it lists it.
fn virtual_services(stage: &Stage) -> Result<BTreeSet<String>> {
    let table = stage.lab.run(NODE, ["cat", "/proc/net/ip_vs"])?;
    let is_service = |line: &&str| ["TCP", "UDP", "FWM"].iter().any(|kind| line.starts_with(kind));
    Ok(table.lines().filter(is_service).map(str::to_owned).collect())
}
