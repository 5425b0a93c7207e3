//! Stories of agents that start and stop: no request goes to a node that cannot deliver it.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::wait_until;

use crate::{
    expect::expect_all_of,
    fixture::{Fixture, HTTP},
    group::Story,
    load::{AFTERWARDS, KEPT, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    (
        "a_worker_that_stops_loses_no_new_request_at_the_others",
        worker_stops,
    ),
    (
        "a_manager_that_stops_loses_no_new_request_at_the_others",
        managers_stop,
    ),
    ("a_node_without_an_agent_gets_no_packets", not_started),
    ("a_mesh_that_starts_grows_node_by_node", grows),
    (
        "a_service_that_only_others_can_reach_is_left_to_them",
        left_to_others,
    ),
    ("a_killed_agent_keeps_serving", killed),
    ("all_agents_may_stop_at_once", all_stop),
];

fn worker_stops(fixture: &Fixture) -> Result<()> {
    stops(fixture, "node3")
}

fn managers_stop(fixture: &Fixture) -> Result<()> {
    // The worker follows one of them, and continues with the other.
    for node in ["node1", "node2"] {
        stops(fixture, node).context(node)?;
        fixture.until_all_know("web", Duration::from_secs(15))?;
    }
    Ok(())
}

/// Constant load on the other nodes while the agent of one stops, stays away, and comes back.
fn stops(fixture: &Fixture, node: &str) -> Result<()> {
    let others: Vec<&str> = fixture
        .lab
        .nodes()
        .into_iter()
        .filter(|other| *other != node)
        .collect();
    let report = under_load(fixture, &others, 6, 0, || {
        thread::sleep(AFTERWARDS);
        fixture.lab.stop_agent(node)?;
        thread::sleep(AFTERWARDS);
        fixture.lab.start_agent(node, fixture.arguments)?;
        thread::sleep(AFTERWARDS);
        Ok(())
    })?;
    expect_no_failures(&report)
        .with_context(|| format!("while the agent of {node} stopped and started again"))?;
    fixture.until_all_know("web", Duration::from_secs(10))
}

fn not_started(fixture: &Fixture) -> Result<()> {
    let node = "node3";
    fixture.lab.stop_agent(node)?;
    let (elsewhere, there) = tasks_by_node(fixture, node)?;
    ensure!(
        !there.is_empty() && !elsewhere.is_empty(),
        "web does not run on {node} and elsewhere"
    );
    let before = stray_packets(fixture, node)?;
    for entry in ["node1", "node2"] {
        let url = fixture.url(entry, HTTP)?;
        expect_all_of(
            &fixture.lab.fetch("client", &url, elsewhere.len() * 4)?,
            &elsewhere,
        )
        .context(entry)?;
        let rows = routes(fixture, entry)?;
        for task in &there {
            let row =
                row_of(&rows, task).with_context(|| format!("{task} is not in the routes of {entry}"))?;
            ensure!(
                row["state"] == "excluded"
                    && row["reason"].to_string().contains("no data path is up on node3"),
                "{entry} says of {task}: {row}"
            );
        }
    }
    let after = stray_packets(fixture, node)?;
    ensure!(
        before == after,
        "{node} got {} packets that nothing there accepts",
        after - before
    );
    fixture.lab.start_agent(node, fixture.arguments)?;
    fixture.until_all_know("web", Duration::from_secs(10))
}

fn grows(fixture: &Fixture) -> Result<()> {
    let nodes = fixture.lab.nodes();
    fixture
        .lab
        .on_each_node(|node| fixture.lab.stop_agent(node).map(drop))?;
    let mut running: Vec<&str> = Vec::new();
    for node in nodes.iter().copied() {
        fixture.lab.start_agent(node, fixture.arguments)?;
        running.push(node);
        let tasks: BTreeSet<String> = fixture
            .lab
            .running_tasks("web")?
            .into_iter()
            .filter(|task| running.contains(&task.node.as_str()))
            .map(|task| task.name)
            .collect();
        for entry in &running {
            let url = fixture.url(entry, HTTP)?;
            let count = tasks.len() * 2;
            wait_until(
                &format!("{entry} to spread over {running:?}"),
                Duration::from_secs(5),
                || {
                    expect_all_of(
                        &fixture
                            .lab
                            .fetch_with("client", &url, count, &["--timeout", "500"])?,
                        &tasks,
                    )
                },
            )?;
        }
    }
    Ok(())
}

fn left_to_others(fixture: &Fixture) -> Result<()> {
    let port = 9300;
    fixture.lab.create_service(
        "lonely",
        1,
        &["9300:80"],
        &["--constraint", "node.hostname==node3"],
    )?;
    let outcome = (|| {
        fixture.lab.wait_for_tasks("lonely", 1)?;
        let url = fixture.url("node1", port)?;
        wait_until("node1 to answer for node3's task", Duration::from_secs(5), || {
            expect_all_of(
                &fixture.lab.fetch_with("client", &url, 2, &["--timeout", "500"])?,
                &fixture.names("lonely")?,
            )
        })?;
        fixture.lab.stop_agent("node3")?;
        // A node that can reach none of the replicas neither answers nor refuses.
        let rows = routes(fixture, "node1")?;
        let row = rows
            .iter()
            .find(|row| row["service"] == "lonely")
            .context("the service is not in the routes")?;
        ensure!(
            row["state"] == "excluded" && row["frontends"] == Value::Array(Vec::new()),
            "node1 says {row}"
        );
        fixture.lab.start_agent("node3", fixture.arguments)?;
        wait_until("node1 to answer again", Duration::from_secs(10), || {
            expect_all_of(
                &fixture.lab.fetch_with("client", &url, 2, &["--timeout", "500"])?,
                &fixture.names("lonely")?,
            )
        })
    })();
    fixture.lab.remove_service("lonely")?;
    outcome
}

fn killed(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.names("web")?;
    for node in ["node3", "node1"] {
        let report = under_load(fixture, &fixture.lab.nodes(), 5, KEPT, || {
            thread::sleep(AFTERWARDS);
            fixture.lab.kill_agent(node)
        })?;
        expect_no_failures(&report).with_context(|| format!("while the agent of {node} was dead"))?;
        let answered: BTreeSet<_> = report.tasks.into_keys().collect();
        ensure!(answered == tasks, "{tasks:?} should answer, and {answered:?} did");
        let report = under_load(fixture, &fixture.lab.nodes(), 5, KEPT, || {
            fixture.lab.start_agent(node, fixture.arguments)
        })?;
        expect_no_failures(&report).with_context(|| format!("while the agent of {node} took over"))?;
    }
    fixture.until_all_know("web", Duration::from_secs(10))
}

fn all_stop(fixture: &Fixture) -> Result<()> {
    fixture.lab.on_each_node(|node| {
        let status = fixture.lab.stop_agent(node)?;
        ensure!(
            status.is_none_or(|status| status.success()),
            "the agent of {node} ended with {status:?}"
        );
        fixture.no_pins_left(node)
    })
}

/// The names of the tasks of `web` that do not, and that do, run on a node.
fn tasks_by_node(fixture: &Fixture, node: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (there, elsewhere): (Vec<_>, Vec<_>) = fixture
        .lab
        .running_tasks("web")?
        .into_iter()
        .partition(|task| task.node == node);
    let names = |tasks: Vec<xtask::lab::ServiceTask>| tasks.into_iter().map(|task| task.name).collect();
    Ok((names(elsewhere), names(there)))
}

/// UDP packets that a node got for a closed port, such as the tunnel's where no mesh runs.
fn stray_packets(fixture: &Fixture, node: &str) -> Result<u64> {
    let text = fixture.lab.run(node, ["cat", "/proc/self/net/snmp"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let column = names.split(' ').position(|name| name == "NoPorts");
    let number = column.and_then(|column| numbers.split(' ').nth(column));
    number
        .context("the kernel does not count")?
        .parse()
        .context("no number")
}

fn routes(fixture: &Fixture, node: &str) -> Result<Vec<Value>> {
    let text = fixture.lab.meshctl(node, &["routes", "--format", "json"])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("meshctl printed `{text}`"))?;
    answer["routes"]
        .as_array()
        .cloned()
        .context("meshctl lists no routes")
}

fn row_of<'a>(rows: &'a [Value], task: &str) -> Option<&'a Value> {
    rows.iter().find(|row| row["backend"]["task"] == task)
}
