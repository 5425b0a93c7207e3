//! Stories of data paths that change while requests do not stop.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::wait_until;

use crate::{
    fixture::Fixture,
    group::Story,
    load::{expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    ("the_rung_in_use_is_shown_with_its_reason", shown),
    (
        "another_data_path_takes_over_without_losing_a_request_or_is_refused",
        changed,
    ),
];

/// Long enough for both data paths to be in the kernel, and for the old one to go.
const AFTERWARDS: Duration = Duration::from_millis(1500);

fn shown(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        let status = fixture.datapath(node)?;
        ensure!(
            status["kind"] == "ebpf" && status["choice"] == "auto" && status["rung"] != Value::Null,
            "{node} says {status}"
        );
        let rung = status["rung"].as_str().context("the rung is a name")?;
        let better = status["rungs"]
            .as_array()
            .context("the rungs are a list")?
            .iter()
            .take_while(|status| status["rung"] != rung);
        for status in better {
            ensure!(
                status["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
                "{node} gives no reason for not being on {status}"
            );
        }
        let metrics = fixture.lab.metrics(node)?;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("mesh_datapath_info{"))
            .context("no metric of the data path")?;
        ensure!(
            line.contains(&format!("rung=\"{rung}\"")) && line.contains("datapath=\"ebpf\""),
            "{line}"
        );
        let table = fixture.lab.meshctl(node, &["datapath"])?;
        let row = table.lines().find(|line| line.starts_with(rung));
        ensure!(row.is_some_and(|row| row.contains("in use")), "{table}");
    }
    Ok(())
}

fn changed(fixture: &Fixture) -> Result<()> {
    let nodes = fixture.lab.nodes();
    let node = "node3";
    // Open connections may break when IPVS replaces eBPF or the reverse: none is kept open.
    let report = under_load(fixture, &nodes, 6, 0, || {
        fixture.lab.meshctl(node, &["datapath", "retry"])?;
        match fixture.lab.meshctl(node, &["datapath", "use", "ipvs"]) {
            Ok(_) => {
                until_kind(fixture, node, "ipvs")?;
                thread::sleep(AFTERWARDS);
                fixture.no_pins_left(node)?;
                let links = fixture.lab.run(node, ["ip", "-o", "link"])?;
                ensure!(!links.contains("mesh0"), "mesh0 is left: {links}");
                fixture.lab.meshctl(node, &["datapath", "use", "auto"])?;
                until_kind(fixture, node, "ebpf")?;
                thread::sleep(AFTERWARDS);
                let links = fixture.lab.run(node, ["ip", "-o", "link"])?;
                ensure!(!links.contains("mesh-vx"), "the tunnel is left: {links}");
            }
            Err(error) => {
                let text = format!("{error:?}");
                ensure!(text.contains("this kernel has no IPVS"), "{text}");
                let status = fixture.datapath(node)?;
                ensure!(
                    status["kind"] == "ebpf" && status["choice"] == "auto",
                    "{node} says {status}"
                );
            }
        }
        Ok(())
    })?;
    expect_no_failures(&report).context("while the data path of a node was changed")
}

/// Waits until a node's agent balances with eBPF or IPVS.
pub(crate) fn until_kind(fixture: &Fixture, node: &str, kind: &str) -> Result<()> {
    wait_until(&format!("{node} on {kind}"), Duration::from_secs(10), || {
        let status = fixture.datapath(node)?;
        ensure!(status["kind"] == kind, "it says {status}");
        Ok(())
    })
}
