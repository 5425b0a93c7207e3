//! The stories of the mesh that changes hands: no request is sent to where nobody takes it.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::load::Report;
use serde_json::Value;
use xtask::lab::{traffic::Load, wait::patience, wait_until};

use super::support::{HTTP, Stage, Story, expect_all_of};

/// All of them.
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

/// New connections each second where the machine is not slow.
const RATE: u32 = 100;

/// Connections that are kept while an agent dies and comes back: every node has some to every other.
const KEPT: usize = 15;

/// Long enough after a change for everybody to have followed it, were it not told at once.
const AFTERWARDS: Duration = Duration::from_millis(500);

fn worker_stops(stage: &Stage) -> Result<()> {
    stops(stage, "node3")
}

fn managers_stop(stage: &Stage) -> Result<()> {
    // The worker follows one of them: whichever, it goes on with the other.
    for node in ["node1", "node2"] {
        stops(stage, node).context(node)?;
        stage.until_all_know("web", Duration::from_secs(15))?;
    }
    Ok(())
}

/// Constant load on the other nodes while the agent of one stops, stays away, and comes back.
fn stops(stage: &Stage, node: &str) -> Result<()> {
    let others: Vec<&str> = stage
        .lab
        .nodes()
        .into_iter()
        .filter(|other| *other != node)
        .collect();
    let report = under_load(stage, &others, 6, 0, || {
        thread::sleep(AFTERWARDS);
        stage.lab.stop_agent(node)?;
        thread::sleep(AFTERWARDS);
        stage.lab.start_agent(node, stage.arguments)?;
        thread::sleep(AFTERWARDS);
        Ok(())
    })?;
    expect_no_failures(&report)
        .with_context(|| format!("while the agent of {node} stopped and started again"))?;
    stage.until_all_know("web", Duration::from_secs(10))
}

fn not_started(stage: &Stage) -> Result<()> {
    let node = "node3";
    stage.lab.stop_agent(node)?;
    let (elsewhere, there) = tasks_by_place(stage, node)?;
    ensure!(
        !there.is_empty() && !elsewhere.is_empty(),
        "web does not run on {node} and elsewhere"
    );
    let before = stray_packets(stage, node)?;
    for entry in ["node1", "node2"] {
        let url = stage.url(entry, HTTP)?;
        expect_all_of(&stage.lab.fetch("client", &url, elsewhere.len() * 4)?, &elsewhere).context(entry)?;
        let rows = routes(stage, entry)?;
        for task in &there {
            let row =
                row_of(&rows, task).with_context(|| format!("{task} is not in the routes of {entry}"))?;
            ensure!(
                row["state"] == "excluded"
                    && row["reason"].to_string().contains("no data path stands on node3"),
                "{entry} says of {task}: {row}"
            );
        }
    }
    let after = stray_packets(stage, node)?;
    ensure!(
        before == after,
        "{node} got {} packets that nobody there takes",
        after - before
    );
    stage.lab.start_agent(node, stage.arguments)?;
    stage.until_all_know("web", Duration::from_secs(10))
}

fn grows(stage: &Stage) -> Result<()> {
    let nodes = stage.lab.nodes();
    stage
        .lab
        .on_each_node(|node| stage.lab.stop_agent(node).map(drop))?;
    let mut running: Vec<&str> = Vec::new();
    for node in nodes.iter().copied() {
        stage.lab.start_agent(node, stage.arguments)?;
        running.push(node);
        let tasks: BTreeSet<String> = stage
            .lab
            .running_tasks("web")?
            .into_iter()
            .filter(|task| running.contains(&task.node.as_str()))
            .map(|task| task.name)
            .collect();
        for entry in &running {
            let url = stage.url(entry, HTTP)?;
            let count = tasks.len() * 2;
            wait_until(
                &format!("{entry} to spread over {running:?}"),
                Duration::from_secs(5),
                || {
                    expect_all_of(
                        &stage
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

fn left_to_others(stage: &Stage) -> Result<()> {
    let port = 9300;
    stage.lab.create_service(
        "lonely",
        1,
        &["9300:80"],
        &["--constraint", "node.hostname==node3"],
    )?;
    let outcome = (|| {
        stage.lab.wait_for_tasks("lonely", 1)?;
        let url = stage.url("node1", port)?;
        wait_until("node1 to answer for node3's task", Duration::from_secs(5), || {
            expect_all_of(
                &stage.lab.fetch_with("client", &url, 2, &["--timeout", "500"])?,
                &stage.names("lonely")?,
            )
        })?;
        stage.lab.stop_agent("node3")?;
        // Nothing of the mesh answers, or refuses, where none of its replicas can be reached.
        let rows = routes(stage, "node1")?;
        let row = rows
            .iter()
            .find(|row| row["service"] == "lonely")
            .context("the service is not in the routes")?;
        ensure!(
            row["state"] == "excluded" && row["frontends"] == Value::Array(Vec::new()),
            "node1 says {row}"
        );
        stage.lab.start_agent("node3", stage.arguments)?;
        wait_until("node1 to answer again", Duration::from_secs(10), || {
            expect_all_of(
                &stage.lab.fetch_with("client", &url, 2, &["--timeout", "500"])?,
                &stage.names("lonely")?,
            )
        })
    })();
    stage.lab.remove_service("lonely")?;
    outcome
}

fn killed(stage: &Stage) -> Result<()> {
    let tasks = stage.names("web")?;
    for node in ["node3", "node1"] {
        let report = under_load(stage, &stage.lab.nodes(), 5, KEPT, || {
            thread::sleep(AFTERWARDS);
            stage.lab.kill_agent(node)
        })?;
        expect_no_failures(&report).with_context(|| format!("while the agent of {node} was dead"))?;
        let answered: BTreeSet<_> = report.tasks.into_keys().collect();
        ensure!(answered == tasks, "{tasks:?} should answer, and {answered:?} did");
        let report = under_load(stage, &stage.lab.nodes(), 5, KEPT, || {
            stage.lab.start_agent(node, stage.arguments)
        })?;
        expect_no_failures(&report).with_context(|| format!("while the agent of {node} took over"))?;
    }
    stage.until_all_know("web", Duration::from_secs(10))
}

fn all_stop(stage: &Stage) -> Result<()> {
    stage.lab.on_each_node(|node| {
        let status = stage.lab.stop_agent(node)?;
        ensure!(
            status.is_none_or(|status| status.success()),
            "the agent of {node} ended with {status:?}"
        );
        stage.no_pins_left(node)
    })
}

/// New connections each second, in all; a slow machine is given less to do.
pub(crate) fn rate() -> u32 {
    (RATE / patience()).max(1)
}

/// New connections to these nodes in turn, and some that are kept, while something happens and for so long at
/// least.
pub(crate) fn under_load(
    stage: &Stage,
    nodes: &[&str],
    seconds: u32,
    kept: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<Report> {
    let urls: Vec<String> = nodes
        .iter()
        .map(|node| stage.url(node, HTTP))
        .collect::<Result<_>>()?;
    let load = Load {
        urls,
        rate: rate(),
        seconds,
        kept,
    };
    let report: Report = stage.lab.under_load("client", &load, || {
        let outcome = work();
        // A slow machine gets the time to tell what came of it.
        thread::sleep(AFTERWARDS * patience().min(4));
        outcome
    })?;
    println!(
        "    {} requests, {} failed, p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms, {} SYNs sent again",
        report.attempts,
        report.failures(),
        report.latency.p50,
        report.latency.p99,
        report.latency.max,
        report.syn_retransmitted
    );
    Ok(report)
}

/// Neither new nor kept connections were touched.
pub(crate) fn expect_no_failures(report: &Report) -> Result<()> {
    expect_few_new_failures(report, 0)?;
    ensure!(
        report.kept.broken.is_empty(),
        "of {} kept connections broke {:?}",
        report.kept.connections,
        report.kept.broken
    );
    Ok(())
}

/// All new connections but so many were answered, without delay.
pub(crate) fn expect_few_new_failures(report: &Report, allowed: u64) -> Result<()> {
    ensure!(
        report.failures() <= allowed,
        "{} of {} requests failed: {:?}",
        report.failures(),
        report.attempts,
        report.failed
    );
    // TCP sends again after a second what was sent to where nobody took it. One in a hundred is let pass: a
    // busy machine loses a packet now and then.
    ensure!(
        report.latency.p99 < 1000.0 * f64::from(patience()),
        "more than one request in a hundred took a second: {report:?}"
    );
    Ok(())
}

/// The names of the tasks of `web` that do not, and that do, run on a node.
fn tasks_by_place(stage: &Stage, node: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (there, elsewhere): (Vec<_>, Vec<_>) = stage
        .lab
        .running_tasks("web")?
        .into_iter()
        .partition(|task| task.node == node);
    let names = |tasks: Vec<xtask::lab::ServiceTask>| tasks.into_iter().map(|task| task.name).collect();
    Ok((names(elsewhere), names(there)))
}

/// UDP packets that came to a node for a port that nobody has open: the tunnel's, where no mesh is.
fn stray_packets(stage: &Stage, node: &str) -> Result<u64> {
    let text = stage.lab.run(node, ["cat", "/proc/self/net/snmp"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let place = names.split(' ').position(|word| word == "NoPorts");
    let number = place.and_then(|place| numbers.split(' ').nth(place));
    number
        .context("the kernel does not count")?
        .parse()
        .context("no number")
}

fn routes(stage: &Stage, node: &str) -> Result<Vec<Value>> {
    let text = stage.lab.meshctl(node, &["routes", "--format", "json"])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("meshctl said `{text}`"))?;
    answer["routes"]
        .as_array()
        .cloned()
        .context("meshctl lists no routes")
}

fn row_of<'a>(rows: &'a [Value], task: &str) -> Option<&'a Value> {
    rows.iter().find(|row| row["backend"]["task"] == task)
}
