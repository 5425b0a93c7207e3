//! Requests that do not stop while something changes, and what may become of them.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use mesh_tests::load::Report;
use xtask::lab::{traffic::Load, wait::patience};

use crate::fixture::{Fixture, HTTP};

/// New connections each second where the machine is not slow.
const RATE: u32 = 100;

/// Long enough for all nodes to follow a change, were they not told of it at once.
pub(crate) const AFTERWARDS: Duration = Duration::from_millis(500);

/// New connections each second, in all; a slow machine is given less to do.
pub(crate) fn rate() -> u32 {
    (RATE / patience()).max(1)
}

/// New connections to these nodes in turn, and some that are kept, while something happens and for so long at
/// least.
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
