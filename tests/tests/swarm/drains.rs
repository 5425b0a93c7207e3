//! Stories of an operator who drains a replica, or a node in Swarm, while requests do not stop.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{wait::patience, wait_until};

use crate::{
    fixture::{Fixture, HTTP, SOON},
    group::Story,
    load::{AFTERWARDS, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    (
        "a_drained_replica_gets_no_new_connections_and_loses_none",
        drained,
    ),
    ("a_node_that_swarm_drains_loses_no_request", node_availability),
];

/// A worker: it announces what it drains to the manager.
const NODE: &str = "node2";

const MANAGER: &str = "node1";

/// Connections that stay open: so many that the replica has some of them.
const KEPT: usize = 30;

fn drained(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    let task = tasks.into_iter().find(|task| task.node == NODE);
    let task = task.with_context(|| format!("no replica runs on {NODE}"))?.name;
    let report = under_load(fixture, &fixture.lab.nodes(), 4, KEPT, || {
        thread::sleep(AFTERWARDS);
        // The manager has the node's agent do it; no other node can.
        let refused = fixture.lab.meshctl("node3", &["drain", "--detach", &task]);
        let refused = refused
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        ensure!(
            refused.contains("run the command on node2 or on a manager"),
            "node3: `{refused}`"
        );
        let text = fixture.lab.meshctl(MANAGER, &["drain", "--detach", &task])?;
        ensure!(text.starts_with(&task), "it printed `{text}`");
        until_avoided(fixture, &task)?;
        // It is announced again by the next agent, which has it from the record.
        fixture.lab.kill_agent(NODE)?;
        fixture.lab.start_agent(NODE, fixture.arguments)?;
        until_avoided(fixture, &task)?;
        let open = open_connections(fixture, &task)?;
        println!("    {open} connections stay open");
        ensure!(open > 0, "the replica has none of the open connections");
        Ok(())
    })?;
    expect_no_failures(&report)?;
    // Their clients have closed them.
    let text = fixture.lab.meshctl(MANAGER, &["drain", &task])?;
    ensure!(
        text.trim_end().ends_with("drained, no open connections"),
        "it printed `{text}`"
    );
    let text = fixture.lab.meshctl(MANAGER, &["undrain", &task])?;
    ensure!(
        text.trim_end() == "nothing is drained on node2",
        "it printed `{text}`"
    );
    fixture.until_all_know("web", SOON * patience())
}

/// Waits until no node sends new connections to the task.
pub(crate) fn until_avoided(fixture: &Fixture, task: &str) -> Result<()> {
    for node in fixture.lab.nodes() {
        let url = fixture.url(node, HTTP)?;
        let limit = Duration::from_secs(3) * patience();
        wait_until(&format!("{node} to avoid {task}"), limit, || {
            let replies = fixture.lab.fetch("client", &url, 10)?;
            let asked = replies.iter().filter(|reply| reply.task == task).count();
            ensure!(asked == 0, "it got {asked} of 10 new connections");
            Ok(())
        })?;
    }
    Ok(())
}

/// The open connections of a drained task, as the routes and the drain show them.
fn open_connections(fixture: &Fixture, task: &str) -> Result<u64> {
    let text = fixture.lab.meshctl(NODE, &["drain", "--detach", task])?;
    let routes: Value =
        serde_json::from_str(&fixture.lab.meshctl("node1", &["routes", "--format", "json"])?)?;
    let rows = routes["routes"].as_array().context("no routes")?;
    let row = rows.iter().find(|row| row["backend"]["task"] == task);
    let row = row.with_context(|| format!("{task} is not among {rows:?}"))?;
    ensure!(
        row["state"] == "draining"
            && row["reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with("drained by an operator")),
        "its route is {row}"
    );
    let number = text
        .split("draining, ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    match number {
        Some(number) => number
            .parse()
            .with_context(|| format!("meshctl printed `{text}`")),
        None => Ok(0),
    }
}

/// Swarm's own drain: its tasks are stopped once others run.
fn node_availability(fixture: &Fixture) -> Result<()> {
    let set = |availability: &str| {
        let arguments = ["node", "update", "--availability", availability, NODE];
        fixture.lab.docker("node1", arguments).map(drop)
    };
    let report = under_load(fixture, &fixture.lab.nodes(), 4, 0, || {
        thread::sleep(AFTERWARDS);
        set("drain")?;
        wait_until("all replicas to run elsewhere", Duration::from_secs(30), || {
            let tasks = fixture.lab.running_tasks("web")?;
            let here = tasks.iter().filter(|task| task.node == NODE).count();
            ensure!(
                here == 0 && tasks.len() == 5,
                "{here} of {} run on {NODE}",
                tasks.len()
            );
            Ok(())
        })?;
        fixture.lab.wait_for_tasks("web", 5).map(drop)
    });
    set("active")?;
    // The next story scales up again: Swarm moves no task back by itself.
    fixture.lab.scale("web", 2)?;
    fixture.lab.wait_for_tasks("web", 2)?;
    expect_no_failures(&report?)
}
