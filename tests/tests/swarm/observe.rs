//! Stories of an operator who looks at connections and rates of the whole cluster from a manager.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{wait::patience, wait_until};

use crate::{
    fixture::{Fixture, HTTP},
    group::Story,
    load::{AFTERWARDS, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[(
    "a_manager_shows_the_flows_and_rates_of_every_node",
    flows_and_rates,
)];

const MANAGER: &str = "node1";
const WORKER: &str = "node2";
const OTHER_WORKER: &str = "node3";

fn flows_and_rates(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let report = under_load(fixture, &lab.nodes(), 2, 0, || {
        thread::sleep(AFTERWARDS);
        let rates = json(
            fixture,
            MANAGER,
            &["top", "--once", "--all-nodes", "--service", "web"],
        )?;
        let service = &rates["services"][0];
        let rate = service["connections_per_second"].as_f64().unwrap_or_default();
        let replicas = service["replicas"].as_array().map_or(0, Vec::len);
        println!("    {rate:.0} new connections/s to {replicas} replicas");
        let running = fixture.names("web")?.len();
        ensure!(rate > 1.0 && replicas == running, "`top` showed {rates}");
        Ok(())
    })?;
    expect_no_failures(&report)?;

    // What the nodes report of connections to a worker is what their client and the replicas saw.
    let replies = lab.fetch("client", &fixture.url(WORKER, HTTP)?, 10)?;
    let at_entry = json(fixture, MANAGER, &["flows", "--node", WORKER, "--limit", "10000"])?;
    let everywhere = json(fixture, MANAGER, &["flows", "--all-nodes", "--limit", "10000"])?;
    for reply in &replies {
        let flow = of_client(&at_entry["flows"], &reply.local);
        let flow = flow.with_context(|| format!("{WORKER} lists no flow of {reply:?}"))?;
        ensure!(
            flow["backend"]["task"] == *reply.task
                && flow["service"] == "web"
                && flow["ingress"] == "network",
            "{reply:?} is listed as {flow}"
        );
        let node = flow["backend"]["node"].as_str().unwrap_or_default();
        if node == WORKER {
            continue;
        }
        let nodes = everywhere["nodes"].as_array().context("no nodes")?;
        let of_replica = nodes.iter().find(|listed| listed["hostname"] == node);
        let flow = of_replica.and_then(|listed| of_client(&listed["flows"], &reply.local));
        let flow = flow.with_context(|| format!("{node} lists no flow of {reply:?}"))?;
        ensure!(
            flow["ingress"] == "tunnel" && flow["entry_node"] == WORKER,
            "{reply:?} is listed as {flow}"
        );
    }

    // What is forecast happens.
    let client = replies[0].local.rsplit_once(':').context("no client")?.0;
    let dialled = format!("{}:{HTTP}", lab.address(WORKER)?);
    for _ in 0..5 {
        let arguments = ["explain", client, &dialled, "--node", WORKER];
        let explained = json(fixture, MANAGER, &arguments)?;
        let replies = lab.fetch("client", &fixture.url(WORKER, HTTP)?, 1)?;
        ensure!(
            explained["backend"]["task"] == *replies[0].task,
            "{} answered, after {explained}",
            replies[0].task
        );
    }

    let refused = refusal(fixture, OTHER_WORKER, &["flows", "--node", WORKER])?;
    ensure!(
        refused.contains("only a manager can ask"),
        "{OTHER_WORKER}: `{refused}`"
    );
    lab.kill_agent(OTHER_WORKER)?;
    let limit = Duration::from_secs(3) * patience();
    wait_until("the missing node to be named", limit, || {
        let refused = refusal(fixture, MANAGER, &["flows", "--all-nodes"])?;
        ensure!(
            refused.contains("meshctl: node3: its agent is not connected"),
            "it printed `{refused}`"
        );
        Ok(())
    })?;
    lab.start_agent(OTHER_WORKER, fixture.arguments)?;
    fixture.until_all_know("web", limit)
}

fn json(fixture: &Fixture, node: &str, arguments: &[&str]) -> Result<Value> {
    let arguments = [arguments, &["--format", "json"]].concat();
    let text = fixture.lab.meshctl(node, &arguments)?;
    serde_json::from_str(&text).with_context(|| format!("meshctl {arguments:?} printed `{text}`"))
}

/// Why a command fails, as it must.
fn refusal(fixture: &Fixture, node: &str, arguments: &[&str]) -> Result<String> {
    match fixture.lab.meshctl(node, arguments) {
        Ok(text) => anyhow::bail!("meshctl {arguments:?} on {node} printed `{text}`"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn of_client<'a>(flows: &'a Value, client: &str) -> Option<&'a Value> {
    flows.as_array()?.iter().find(|flow| flow["client"] == client)
}
