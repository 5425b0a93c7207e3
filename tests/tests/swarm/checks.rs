//! The story of a service whose label asks for health checks.

use std::{thread, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{ServiceTask, agent::metric_sum, wait::patience, wait_until};

use crate::{
    drains::until_avoided,
    expect::expect_all_of,
    fixture::{Fixture, HTTP, SOON},
    group::Story,
    load::{AFTERWARDS, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[(
    "a_replica_that_fails_its_check_gets_no_new_connections_until_it_passes",
    checks,
)];

/// A worker: it announces what fails on it to the manager.
const NODE: &str = "node2";

/// Connections that stay open: so many that the replica has some of them.
const KEPT: usize = 30;

const LABELS: [&str; 6] = [
    "--label-add",
    "mesh.health=http:/healthy",
    "--label-add",
    "mesh.health-interval=500ms",
    "--label-add",
    "mesh.health-fall=2",
];

fn checks(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    let task = tasks.iter().find(|task| task.node == NODE);
    let task = task.with_context(|| format!("no replica runs on {NODE}"))?;
    set_labels(fixture, &LABELS)?;
    let report = under_load(fixture, &fixture.lab.nodes(), 4, KEPT, || {
        thread::sleep(AFTERWARDS);
        turn_over(fixture, task)?;
        let began = Instant::now();
        until_avoided(fixture, &task.name)?;
        println!(
            "    avoided by every node after {:.1} s",
            began.elapsed().as_secs_f64()
        );
        for node in ["node1", NODE] {
            let (state, reason) = route(fixture, node, &task.name)?;
            ensure!(
                state == "draining" && reason == "failed its check: HTTP status 500",
                "on {node} its route is {state}: {reason}"
            );
        }
        turn_over(fixture, task)?;
        let began = Instant::now();
        fixture.until_all_know("web", 6 * SOON * patience())?;
        println!(
            "    back on every node after {:.1} s",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    })?;
    // Its open connections went on, and no request met a refusal.
    expect_no_failures(&report)?;

    let names = tasks.iter().map(|task| task.name.clone()).collect();
    for task in &tasks {
        turn_over(fixture, task)?;
    }
    let failing = |node: &str| -> Result<f64> {
        let metrics = fixture.lab.metrics(node)?;
        Ok(metric_sum(&metrics, "mesh_service_all_checks_failed", &[]))
    };
    for node in fixture.lab.nodes() {
        wait_until(&format!("{node} to see all fail"), 6 * SOON * patience(), || {
            // The service has two ports.
            ensure!(failing(node)? == 2.0, "the metric is {}", failing(node)?);
            Ok(())
        })?;
        let replies = fixture
            .lab
            .fetch("client", &fixture.url(node, HTTP)?, 2 * tasks.len())?;
        expect_all_of(&replies, &names)?;
        let status = fixture.lab.meshctl(node, &["status"])?;
        ensure!(
            status.contains("health: every replica of web (tcp 9200) fails its check, so all are tried"),
            "meshctl status on {node} printed {status}"
        );
    }

    // A label that cannot be understood checks nothing, and is shown on every node.
    set_labels(fixture, &["--label-add", "mesh.health=ftp"])?;
    wait_until("the invalid label to be shown", 3 * SOON * patience(), || {
        for command in ["status", "routes"] {
            let text = fixture.lab.meshctl(NODE, &[command])?;
            ensure!(
                text.contains("label mesh.health=ftp of service web"),
                "meshctl {command} printed {text}"
            );
        }
        Ok(())
    })?;
    ensure!(failing(NODE)? == 0.0, "replicas that are not checked cannot fail");
    for task in &tasks {
        turn_over(fixture, task)?;
    }
    let names = ["mesh.health", "mesh.health-interval", "mesh.health-fall"];
    set_labels(fixture, &names.map(|name| ["--label-rm", name]).concat())
}

fn set_labels(fixture: &Fixture, arguments: &[&str]) -> Result<()> {
    let command = ["service", "update", "--detach"].iter().chain(arguments);
    let command = command.chain(&["web"]).copied();
    fixture.lab.docker("node1", command).map(drop)
}

/// Makes a replica answer its check with 500, or with 200 again.
fn turn_over(fixture: &Fixture, task: &ServiceTask) -> Result<()> {
    let filter = format!("name={}.", task.name);
    let id = fixture
        .lab
        .docker(&task.node, ["ps", "--quiet", "--filter", &filter])?;
    fixture
        .lab
        .docker(&task.node, ["kill", "--signal", "USR1", id.trim()])
        .map(drop)
}

/// The state and reason of a replica's HTTP route on a node.
fn route(fixture: &Fixture, node: &str, task: &str) -> Result<(String, String)> {
    let text = fixture.lab.meshctl(node, &["routes", "--format", "json"])?;
    let routes: Value = serde_json::from_str(&text).context("meshctl printed no JSON")?;
    let rows = routes["routes"].as_array().context("no routes")?;
    let row = rows
        .iter()
        .find(|row| row["backend"]["task"] == task && row["port"] == HTTP)
        .with_context(|| format!("{task} is not among {rows:?}"))?;
    let field = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    Ok((field("state"), field("reason")))
}
