//! Stories of more new connections than a service is to take.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{agent::metric_sum, wait::patience, wait_until};

use crate::{
    fixture::{Fixture, HTTP},
    group::Story,
    load::{expect_few_new_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    ("a_flood_of_syns_breaks_no_connection_and_refuses_none", flood),
    ("labels_limit_new_connections", limits),
];

const NODE: &str = "node1";
const SECONDS: u32 = 20;
/// SYNs a second: less than all that the machine can do, and enough to fill the tables many times a second.
const RATE: u32 = 20_000;
/// Agents with the smallest tables.
const SMALL: &[&str] = &["--flow-capacity", "1024"];
const LIMIT: Duration = Duration::from_secs(5);

fn flood(fixture: &Fixture) -> Result<()> {
    restart_agents(fixture, SMALL)?;
    let outcome = under_flood(fixture);
    restart_agents(fixture, &[])?;
    outcome
}

fn under_flood(fixture: &Fixture) -> Result<()> {
    let untracked = || counted(fixture, "mesh_untracked_packets_total", &[]);
    let (before, mut sent) = (untracked()?, 0);
    let report = under_load(fixture, &[NODE], SECONDS, 15, || {
        sent = fixture.lab.flood(NODE, HTTP, RATE / patience(), SECONDS - 2)?;
        let routes = fixture.lab.meshctl(NODE, &["routes"])?;
        ensure!(
            routes.contains("flood limit"),
            "routes does not name the flood:\n{routes}"
        );
        Ok(())
    })?;
    let untracked = untracked()? - before;
    println!("    {sent} SYNs, {untracked} of them without entries");
    ensure!(
        report.kept.broken.is_empty(),
        "of {} open connections broke {:?}",
        report.kept.connections,
        report.kept.broken
    );
    expect_few_new_failures(&report, report.attempts / 100)?;
    ensure!(untracked > sent as f64 / 2.0, "there was no flood");
    Ok(())
}

fn restart_agents(fixture: &Fixture, more: &[&str]) -> Result<()> {
    let arguments = [fixture.arguments, more].concat();
    fixture.lab.on_each_node(|node| {
        fixture.lab.stop_agent(node)?;
        fixture.lab.start_agent(node, &arguments)
    })?;
    fixture.until_all_know("web", Duration::from_secs(15))
}

fn limits(fixture: &Fixture) -> Result<()> {
    with_label(fixture, "mesh.max-new-connections-per-source=5", || {
        let reason = "reason=\"max_new_connections_per_source\"";
        let url = fixture.url(NODE, HTTP)?;
        let fetch = |count, timeout| {
            fixture
                .lab
                .fetch_with("client", &url, count, &["--timeout", timeout])
        };
        wait_until("the limit to hold", LIMIT * patience(), || {
            let before = counted(fixture, "mesh_drops_total", &[reason])?;
            let replies = fetch(30, "50")?;
            let timed_out = replies.iter().filter(|reply| reply.outcome == "timeout").count();
            let dropped = counted(fixture, "mesh_drops_total", &[reason])? - before;
            ensure!(
                timed_out >= 10 && dropped >= 10.0,
                "{timed_out} of 30 requests were not answered, {dropped} packets dropped"
            );
            Ok(())
        })?;
        wait_until("the status to name the limit", LIMIT * patience(), || {
            let status = fixture.lab.meshctl(NODE, &["status"])?;
            let named = "past label mesh.max-new-connections-per-source=5";
            ensure!(status.contains(named), "the limit is not in:\n{status}");
            Ok(())
        })?;
        // It comes in when it sends its SYN again.
        let replies = fetch(8, "9000")?;
        ensure!(
            replies.iter().all(|reply| reply.outcome == "answered"),
            "{replies:?}"
        );
        Ok(())
    })
}

fn counted(fixture: &Fixture, name: &str, labels: &[&str]) -> Result<f64> {
    Ok(metric_sum(&fixture.lab.metrics(NODE)?, name, labels))
}

/// Tells a story while the service has a label.
fn with_label(fixture: &Fixture, label: &str, story: impl FnOnce() -> Result<()>) -> Result<()> {
    let name = label.split('=').next().context("a label")?;
    let update = |what: &str, value: &str| {
        let arguments = ["service", "update", "--detach", what, value, "web"];
        fixture.lab.docker("node1", arguments).map(drop)
    };
    update("--label-add", label)?;
    let outcome = story();
    update("--label-rm", name)?;
    outcome
}
