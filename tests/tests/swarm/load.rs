//! Constant load while something changes, and how many failures are allowed.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use mesh_tests::load::Report;
use xtask::lab::{
    traffic::Load,
    wait::{patience, slack},
};

use crate::fixture::{Fixture, HTTP};

/// New connections each second where the machine is not slow.
const RATE: u32 = 100;

/// Long enough for all nodes to follow a change by polling.
pub(crate) const AFTERWARDS: Duration = Duration::from_millis(500);

/// Connections that stay open while an agent ends and comes back: each node has some to each other.
pub(crate) const KEPT: usize = 15;

/// New connections each second, in all; a slow machine gets less to do.
pub(crate) fn rate() -> u32 {
    (RATE / patience()).max(1)
}

/// Sends requests to these nodes in turn, and keeps some connections open, while something happens and for at
/// least this many seconds.
pub(crate) fn under_load(
    fixture: &Fixture,
    nodes: &[&str],
    seconds: u32,
    kept: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<Report> {
    let urls: Vec<String> = nodes
        .iter()
        .map(|node| fixture.url(node, HTTP))
        .collect::<Result<_>>()?;
    let load = Load {
        urls,
        rate: rate(),
        seconds,
        kept,
    };
    let report: Report = fixture.lab.under_load("client", &load, || {
        let outcome = work();
        // A slow machine gets more time to show the effect.
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

/// No new connection failed, and no open one broke.
pub(crate) fn expect_no_failures(report: &Report) -> Result<()> {
    expect_few_new_failures(report, 0)?;
    ensure!(
        report.kept.broken.is_empty(),
        "of {} open connections broke {:?}",
        report.kept.connections,
        report.kept.broken
    );
    Ok(())
}

/// At most `allowed` new connections failed, and the others were answered without delay.
pub(crate) fn expect_few_new_failures(report: &Report, allowed: u64) -> Result<()> {
    ensure!(
        report.failures() <= allowed,
        "{} of {} requests failed: {:?}",
        report.failures(),
        report.attempts,
        report.failed
    );
    // A SYN that is lost is sent again after a second. One in a hundred is allowed: a busy machine loses a
    // packet now and then. One on which a tenth of all requests take this long loses more by itself.
    let is_saturated = report.latency.p90 > 100.0;
    ensure!(
        report.latency.p99 < 1000.0 * f64::from(patience() * slack()) || is_saturated,
        "more than one request in a hundred took a second: {report:?}"
    );
    Ok(())
}
