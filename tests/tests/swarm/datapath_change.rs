//! The stories of the data path that is changed while requests do not stop.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::wait_until;

use super::{
    handover::{expect_no_failures, under_load},
    support::{Stage, Story},
};

/// All of them.
pub(crate) const STORIES: &[Story] = &[
    ("the_rung_in_use_is_shown_with_its_reason", shown),
    (
        "another_data_path_takes_over_without_losing_a_request_or_is_refused",
        changed,
    ),
];

/// For both data paths to be in the kernel, and for the old one to have gone.
const AFTERWARDS: Duration = Duration::from_millis(1500);

fn shown(stage: &Stage) -> Result<()> {
    for node in stage.lab.nodes() {
        let status = stage.datapath(node)?;
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
                "{node} does not say why it is not on {status}"
            );
        }
        let metrics = stage.lab.metrics(node)?;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("mesh_datapath_info{"))
            .context("no metric of the data path")?;
        ensure!(
            line.contains(&format!("rung=\"{rung}\"")) && line.contains("datapath=\"ebpf\""),
            "{line}"
        );
        let table = stage.lab.meshctl(node, &["datapath"])?;
        let row = table.lines().find(|line| line.starts_with(rung));
        ensure!(row.is_some_and(|row| row.contains("in use")), "{table}");
    }
    Ok(())
}

fn changed(stage: &Stage) -> Result<()> {
    let nodes = stage.lab.nodes();
    let node = "node3";
    // Connections that are open may break where eBPF and IPVS take each other's place: none is kept.
    let report = under_load(stage, &nodes, 12, 0, || {
        stage.lab.meshctl(node, &["datapath", "retry"])?;
        match stage.lab.meshctl(node, &["datapath", "use", "ipvs"]) {
            Ok(_) => {
                until_kind(stage, node, "ipvs")?;
                thread::sleep(AFTERWARDS);
                stage.no_pins_left(node)?;
                let links = stage.lab.run(node, ["ip", "-o", "link"])?;
                ensure!(!links.contains("mesh0"), "mesh0 is left: {links}");
                stage.lab.meshctl(node, &["datapath", "use", "auto"])?;
                until_kind(stage, node, "ebpf")?;
                thread::sleep(AFTERWARDS);
                let links = stage.lab.run(node, ["ip", "-o", "link"])?;
                ensure!(!links.contains("mesh-vx"), "the tunnel is left: {links}");
            }
            Err(error) => {
                let words = format!("{error:?}");
                ensure!(words.contains("this kernel has no IPVS"), "{words}");
                let status = stage.datapath(node)?;
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
pub(crate) fn until_kind(stage: &Stage, node: &str, kind: &str) -> Result<()> {
    wait_until(&format!("{node} on {kind}"), Duration::from_secs(10), || {
        let status = stage.datapath(node)?;
        ensure!(status["kind"] == kind, "it says {status}");
        Ok(())
    })
}
