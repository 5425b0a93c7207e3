//! Stories of the mesh beside Docker's own: when one takes over from the other, clients do not notice.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::load::Report;
use xtask::lab::wait_until;

use crate::{
    basics,
    datapath_change::until_kind,
    expect::expect_answers,
    fixture::{Fixture, HTTP},
    group::Story,
    load::{AFTERWARDS, expect_few_new_failures, expect_no_failures, rate, under_load},
};

/// From Docker's mesh to eBPF and back, before the stories that hold on every data path.
pub(crate) const ON_EBPF: &[Story] = &[(
    "ebpf_hands_over_to_dockers_mesh_and_takes_over_again",
    ebpf_hands_over,
)];

/// From eBPF to IPVS, by accident and by request.
pub(crate) const ON_BOTH: &[Story] = &[("ipvs_replaces_ebpf_on_every_node", ipvs_replaces_ebpf)];

/// The same on IPVS.
pub(crate) const ON_IPVS: &[Story] = &[
    ("the_basic_stories_hold_on_ipvs", basics_on_ipvs),
    (
        "ipvs_hands_over_to_dockers_mesh_and_takes_over_again",
        ipvs_hands_over,
    ),
];

/// Arguments of an agent on IPVS.
const IPVS: &[&str] = &["--datapath", "ipvs"];

/// How long the load around a change lasts at least, in seconds.
const LOAD: u32 = 6;

/// Connections that stay open meanwhile: two through each node.
const KEPT: usize = 6;

fn ebpf_hands_over(fixture: &Fixture) -> Result<()> {
    hands_over(fixture, "ebpf")?;
    takes_over(fixture, fixture.arguments, "ebpf")
}

fn ipvs_hands_over(fixture: &Fixture) -> Result<()> {
    hands_over(fixture, "ipvs")?;
    takes_over(fixture, IPVS, "ipvs")
}

/// Docker's mesh answers until the agents do; open connections may break once at the hand-over.
fn takes_over(fixture: &Fixture, arguments: &[&str], kind: &str) -> Result<()> {
    let report = under_load(fixture, &fixture.lab.nodes(), LOAD, KEPT, || {
        thread::sleep(AFTERWARDS);
        // One after the other: here all nodes share the same processors.
        for node in fixture.lab.nodes() {
            fixture.lab.start_agent(node, arguments)?;
        }
        for node in fixture.lab.nodes() {
            until_kind(fixture, node, kind)?;
        }
        fixture.until_all_know("web", Duration::from_secs(15))
    })?;
    expect_and_print(&report).with_context(|| format!("while {kind} took over"))
}

/// The agents stop, Docker's mesh answers again, and nothing of ours is left.
fn hands_over(fixture: &Fixture, kind: &str) -> Result<()> {
    let all = fixture.lab.nodes();
    for node in &all {
        until_kind(fixture, node, kind)?;
    }
    let report = under_load(fixture, &all, LOAD, KEPT, || {
        thread::sleep(AFTERWARDS);
        stop_all(fixture)
    })?;
    expect_and_print(&report).with_context(|| format!("while {kind} handed over"))?;
    for node in all {
        expect_nothing_left(fixture, node)?;
        let url = fixture.url(node, HTTP)?;
        wait_until(
            &format!("Docker's mesh on {node}"),
            Duration::from_secs(10),
            || expect_answers(&fixture.lab.fetch("client", &url, 10)?),
        )?;
    }
    Ok(())
}

fn stop_all(fixture: &Fixture) -> Result<()> {
    fixture.lab.on_each_node(|node| {
        let status = fixture.lab.stop_agent(node)?;
        ensure!(
            status.is_none_or(|status| status.success()),
            "the agent of {node} ended with {status:?}"
        );
        Ok(())
    })
}

fn ipvs_replaces_ebpf(fixture: &Fixture) -> Result<()> {
    killed(fixture)?;
    changed(fixture)
}

/// The eBPF data path works without its agent, and the next agent's IPVS replaces it.
fn killed(fixture: &Fixture) -> Result<()> {
    let (all, node) = (fixture.lab.nodes(), "node3");
    let report = under_load(fixture, &all, LOAD, KEPT, || {
        thread::sleep(AFTERWARDS);
        fixture.lab.kill_agent(node)?;
        thread::sleep(AFTERWARDS);
        Ok(())
    })?;
    expect_no_failures(&report).with_context(|| format!("while the agent of {node} was dead"))?;
    let report = under_load(fixture, &all, LOAD, KEPT, || {
        thread::sleep(AFTERWARDS);
        fixture.lab.start_agent(node, IPVS)?;
        until_kind(fixture, node, "ipvs")?;
        // The other nodes get time to follow.
        wait_until("eBPF to leave", Duration::from_secs(5), || {
            fixture.no_pins_left(node)
        })
    })?;
    expect_and_print(&report).context("while an agent on IPVS replaced a killed one")
}

/// One after the other, so that for a while some nodes have eBPF and others IPVS.
fn changed(fixture: &Fixture) -> Result<()> {
    let all = fixture.lab.nodes();
    let report = under_load(fixture, &all, LOAD, KEPT, || {
        for node in &all {
            fixture.lab.meshctl(node, &["datapath", "use", "ipvs"])?;
            until_kind(fixture, node, "ipvs")?;
            thread::sleep(AFTERWARDS);
        }
        Ok(())
    })?;
    expect_and_print(&report).context("while the nodes changed from eBPF to IPVS")?;
    fixture.until_all_know("web", Duration::from_secs(15))
}

fn basics_on_ipvs(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        until_kind(fixture, node, "ipvs")?;
    }
    for (name, story) in basics::REQUESTS.iter().chain(basics::TRANSFERS) {
        println!("    {name}");
        story(fixture).context(*name)?;
    }
    Ok(())
}

/// No new request may fail. What is open at the hand-over may break once, and the number is printed: open
/// connections, and requests that are not answered yet.
fn expect_and_print(report: &Report) -> Result<()> {
    println!(
        "    of {} open connections {} broke",
        report.kept.connections,
        report.kept.broken.len()
    );
    expect_few_new_failures(report, in_flight(report))?;
    ensure!(
        report.kept.broken.len() <= report.kept.connections,
        "an open connection broke more than once: {:?}",
        report.kept.broken
    );
    Ok(())
}

/// How many requests are in flight at once, at most: those sent in the time that one takes.
fn in_flight(report: &Report) -> u64 {
    let seconds = report.latency.p99 / 1000.0;
    (f64::from(rate()) * seconds).ceil() as u64
}

/// Nothing of the mesh is in the node's kernel.
fn expect_nothing_left(fixture: &Fixture, node: &str) -> Result<()> {
    fixture.no_pins_left(node)?;
    let links = fixture.lab.run(node, ["ip", "-oneline", "link"])?;
    ensure!(
        !links.contains("mesh0") && !links.contains("mesh-vx"),
        "{node} has a device of ours left: {links}"
    );
    let tables = fixture.lab.run(node, ["nft", "list", "tables"])?;
    ensure!(
        !tables.lines().any(|table| table.ends_with(" mesh")),
        "{node} has rules of ours left: {tables}"
    );
    let services = fixture.lab.run(node, ["cat", "/proc/net/ip_vs"])?;
    ensure!(
        services
            .lines()
            .all(|line| !line.starts_with("TCP") && !line.starts_with("UDP")),
        "{node} has virtual services left: {services}"
    );
    Ok(())
}
