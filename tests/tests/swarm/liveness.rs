//! Stories of nodes and replicas that are lost suddenly: the mesh notices by itself.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::load::Report;
use serde_json::Value;
use xtask::{
    lab::{
        wait::{patience, slack},
        wait_until,
    },
    paths,
};

use crate::{
    fixture::Fixture,
    group::Story,
    load::{AFTERWARDS, under_load},
};

pub(crate) const STORIES: &[Story] = &[(
    "a_node_that_is_cut_off_gets_no_new_connections_after_a_second",
    cut_off,
)];

/// The same for agents on IPVS, where no program in the kernel helps.
pub(crate) const ON_IPVS: &[Story] = &[
    (
        "on_ipvs_a_node_that_is_cut_off_gets_no_new_connections_after_a_second",
        cut_off_briefly,
    ),
    ("on_ipvs_a_replica_that_is_killed_gets_no_new_connections", killed),
];

/// The node that is cut off.
const LOST: &str = "node3";
const OTHERS: [&str; 2] = ["node1", "node2"];
/// Longer than a request waits for its answer, and shorter than the managers take to miss a node.
const AWAY: Duration = Duration::from_secs(8);

/// The doctor sees it, too, on both sides.
fn cut_off(fixture: &Fixture) -> Result<()> {
    cut_off_while(fixture, |cut| {
        thread::sleep(Duration::from_secs(1));
        expect_checks(fixture, OTHERS[0], &[("mesh port of other nodes", "warn")])?;
        // It cannot reach the managers either.
        expect_checks(
            fixture,
            LOST,
            &[("mesh port of other nodes", "warn"), ("feed of manager", "fail")],
        )?;
        thread::sleep(AWAY.saturating_sub(cut.elapsed()));
        Ok(())
    })?;
    expect_checks(
        fixture,
        LOST,
        &[
            ("address of this node", "ok"),
            ("agents of other nodes", "ok"),
            ("mesh port of other nodes", "ok"),
            ("feed of manager", "ok"),
            ("clock", "ok"),
            ("releases of the agents", "ok"),
        ],
    )
}

/// For slow machines: it is back before the managers miss it, which would then take their time to return it.
fn cut_off_briefly(fixture: &Fixture) -> Result<()> {
    cut_off_while(fixture, |_| Ok(()))
}

/// Cuts the node off under load until the others find it silent and some work is done, and waits for it to be
/// back.
fn cut_off_while(fixture: &Fixture, work: impl FnOnce(Instant) -> Result<()>) -> Result<()> {
    for node in OTHERS {
        until_node3(fixture, node, "answers", true, Duration::from_secs(5))?;
    }
    let mut cut = 0;
    let report = under_load(fixture, &OTHERS, 6, 0, || {
        thread::sleep(AFTERWARDS);
        cut = milliseconds();
        fixture.lab.cut_off(LOST)?;
        let outcome = work(Instant::now()).and_then(|()| {
            for node in OTHERS {
                until_node3(fixture, node, "silent", false, Duration::from_secs(1))?;
            }
            Ok(())
        });
        fixture.lab.reconnect(LOST)?;
        outcome?;
        let begin = Instant::now();
        for node in OTHERS {
            until_node3(fixture, node, "answers", true, Duration::from_secs(5))?;
        }
        let took = begin.elapsed();
        println!("    back after {:.1} s", took.as_secs_f64());
        ensure!(
            took <= Duration::from_secs(2) * patience() * slack(),
            "it was back after {took:?}"
        );
        Ok(())
    })?;
    expect_losses(&report, cut, cut + a_second())?;
    // A SYN that is sent again may already go elsewhere.
    ensure!(
        report.syn_retransmitted > 0 || report.failures() > 0,
        "the cut had no effect"
    );
    Ok(())
}

/// Its process is killed, and Swarm starts another one instead.
fn killed(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    let task = tasks.iter().find(|task| task.node == LOST);
    let container = fixture.lab.container_of(task.context("no replica runs there")?)?;
    let (mut begin, mut end) = (0, 0);
    let report = under_load(fixture, &fixture.lab.nodes(), 6, 0, || {
        thread::sleep(AFTERWARDS);
        begin = milliseconds();
        fixture
            .lab
            .docker(LOST, ["kill", "--signal", "KILL", &container])?;
        end = milliseconds();
        fixture.lab.wait_for_tasks("web", 5).map(drop)
    })?;
    expect_losses(&report, begin, end + a_second())?;
    fixture.until_all_know("web", Duration::from_secs(15))
}

/// The milliseconds within which connections may be lost.
fn a_second() -> u64 {
    1000 * u64::from(patience() * slack())
}

/// Connections were lost between these times only.
fn expect_losses(report: &Report, from: u64, limit: u64) -> Result<()> {
    let sent: Vec<u64> = report
        .failed
        .iter()
        .map(|failure| report.began + failure.at_millis)
        .collect();
    if let Some(last) = sent.last() {
        println!(
            "    the last lost connection was opened {} ms after the loss",
            last.saturating_sub(from)
        );
    }
    ensure!(
        report.failures() == sent.len() as u64 && sent.iter().all(|sent| (from..=limit).contains(sent)),
        "{} of {} connections were lost, not only in the {} ms after the loss: {:?}",
        report.failures(),
        report.attempts,
        limit - from,
        report.failed
    );
    Ok(())
}

/// Waits until a node's probes of the lost node have this result, and new connections go there or not.
fn until_node3(fixture: &Fixture, node: &str, state: &str, active: bool, limit: Duration) -> Result<()> {
    wait_until(&format!("{LOST} to be `{state}` at {node}"), limit, || {
        let status = json(fixture, node, "status")?;
        let peers = status["peers"].as_array().context("no peers")?;
        let peer = peers.iter().find(|peer| peer["hostname"] == LOST);
        let peer = peer.with_context(|| format!("{LOST} is not among {peers:?}"))?;
        ensure!(peer["probes"]["state"] == state, "its status is {peer}");
        let routes = json(fixture, node, "routes")?;
        let rows = routes["routes"].as_array().context("no routes")?;
        let there = rows
            .iter()
            .any(|row| row["backend"]["node"] == LOST && row["state"] == "active");
        ensure!(there == active, "the routes are {rows:?}");
        Ok(())
    })
}

/// The doctor's checks whose names begin so must have these outcomes on a node.
fn expect_checks(fixture: &Fixture, node: &str, expected: &[(&str, &str)]) -> Result<()> {
    let program = paths::program("meshctl");
    // It fails where a check does.
    let command = format!("{} doctor --format json; true", program.display());
    let text = fixture.lab.run(node, ["sh", "-c", &command])?;
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("meshctl printed `{text}`"))?;
    let checks = answer["checks"].as_array().context("no checks")?;
    for (name, outcome) in expected {
        let named: Vec<_> = checks
            .iter()
            .filter(|check| {
                check["name"]
                    .as_str()
                    .is_some_and(|found| found.starts_with(name))
            })
            .collect();
        ensure!(
            !named.is_empty() && named.iter().all(|check| check["outcome"] == *outcome),
            "`{name}` on {node} should be `{outcome}` among {checks:?}"
        );
    }
    Ok(())
}

fn json(fixture: &Fixture, node: &str, command: &str) -> Result<Value> {
    let text = fixture.lab.meshctl(node, &[command, "--format", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("meshctl printed `{text}`"))
}

fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
