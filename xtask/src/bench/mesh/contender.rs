//! What is measured beside each other: how each is started, where it answers, how it is stopped. Depends on the stage.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::stage::{Place, Stage};
use crate::lab::agent::metric_sum;

/// A way from a client to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Contender {
    /// Docker's own routing mesh: iptables and IPVS.
    Docker,
    /// The eBPF data path, replies by way of the entry node.
    Tunnel,
    /// The eBPF data path, replies straight to the client.
    Dsr,
    /// The mesh on IPVS.
    Ipvs,
    /// nftables: DNAT, in rotation by `numgen`.
    Nftables,
    /// HAProxy, for TCP.
    Haproxy,
    /// No balancing: the client dials the container by its node's route.
    Direct,
}

/// The port of nftables' or HAProxy's own, per place.
fn own_port(place: Place) -> u16 {
    match place {
        Place::Local => 9410,
        Place::Remote => 9411,
    }
}

/// Where the other node answers for its replica, for balancers that do not speak to other nodes' containers.
const BEHIND: u16 = 9420;

impl fmt::Display for Contender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Docker => "docker",
            Self::Tunnel => "tunnel",
            Self::Dsr => "dsr",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::Haproxy => "haproxy",
            Self::Direct => "direct",
        })
    }
}

impl Contender {
    /// What is measured where Docker's mesh works, the reference first.
    pub(super) const WITH_DOCKER: &[Self] =
        &[Self::Docker, Self::Tunnel, Self::Dsr, Self::Ipvs, Self::Direct];

    /// What is measured on a kernel without IPVS, the reference first.
    pub(super) const WITHOUT_IPVS: &[Self] = &[
        Self::Direct,
        Self::Tunnel,
        Self::Dsr,
        Self::Nftables,
        Self::Haproxy,
    ];

    /// The agent's arguments, for those that are the mesh.
    fn arguments(self, stage: &Stage) -> Option<Vec<&'static str>> {
        let xdp = if stage.offloads { "off" } else { "native" };
        match self {
            Self::Tunnel => Some(vec!["--xdp", xdp]),
            Self::Dsr => Some(vec!["--xdp", xdp, "--return-mode", "dsr"]),
            Self::Ipvs => Some(vec!["--datapath", "ipvs"]),
            Self::Docker | Self::Nftables | Self::Haproxy | Self::Direct => None,
        }
    }

    /// Starts it; it answers when this returns.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    pub(super) fn start(self, stage: &Stage) -> Result<()> {
        if let Some(mut arguments) = self.arguments(stage) {
            // Its log is written to on the way of packets otherwise.
            arguments.extend(["--log-level", "info"]);
            stage.lab.start_agents(&arguments)?;
            stage.until_agents_know()?;
        }
        match self {
            Self::Nftables => start_nftables(stage)?,
            Self::Haproxy => start_haproxy(stage)?,
            Self::Direct => stage.forward_all(&["node1", "node2"])?,
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => (),
        }
        for place in Place::ALL {
            let target = self.aim(stage, place)?;
            stage
                .until_answers(&target)
                .with_context(|| format!("{self}, to a {place} replica"))?;
        }
        Ok(())
    }

    /// Stops it, so that nothing of it is in the way of the next one.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub(super) fn stop(self, stage: &Stage) -> Result<()> {
        if self.arguments(stage).is_some() {
            stage.lab.stop_agents()?;
        }
        match self {
            Self::Nftables => {
                for node in ["node1", "node2"] {
                    stage.lab.run(node, ["nft", "delete", "table", "ip", "bench"])?;
                }
                stage.forward_no_more(&["node1", "node2"])
            }
            Self::Haproxy => {
                let script = "kill $(cat /run/bench-haproxy.pid)";
                stage.lab.run("node1", ["sh", "-euc", script])?;
                stage
                    .lab
                    .run("node2", ["nft", "delete", "table", "ip", "bench"])?;
                stage.forward_no_more(&["node2"])
            }
            Self::Direct => stage.forward_no_more(&["node1", "node2"]),
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => Ok(()),
        }
    }

    /// Where the client finds the replica of this place, its way there prepared.
    ///
    /// # Errors
    /// When the client's route cannot be set.
    pub(super) fn aim(self, stage: &Stage, place: Place) -> Result<String> {
        let entry = stage.lab.address("node1")?;
        Ok(match self {
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => format!("{entry}:{}", place.port()),
            Self::Nftables | Self::Haproxy => format!("{entry}:{}", own_port(place)),
            Self::Direct => {
                let container = stage.container(place);
                let node = stage.lab.address(place.node())?;
                // Nodes number their containers alike: one route at a time.
                let route = ["ip", "route", "replace", container, "via", &node];
                stage.lab.run("client", route)?;
                format!("{container}:{}", Stage::TARGET)
            }
        })
    }

    /// The connections that the mesh has counted, to tell that it was the one that answered; `None` for those
    /// that are not the mesh.
    ///
    /// # Errors
    /// When the agent's metrics cannot be read.
    pub(super) fn counted(self, stage: &Stage, place: Place) -> Result<Option<f64>> {
        if self.arguments(stage).is_none() {
            return Ok(None);
        }
        let metrics = stage.lab.metrics("node1")?;
        let service = format!("service=\"{}\"", place.service());
        Ok(Some(metric_sum(
            &metrics,
            "mesh_service_connections_total",
            &[&service],
        )))
    }
}

fn start_nftables(stage: &Stage) -> Result<()> {
    let behind = stage.lab.address("node2")?;
    let entry = format!(
        "table ip bench {{\n\
         chain before {{ type nat hook prerouting priority dstnat - 5; \
         tcp dport {} dnat to numgen inc mod 1 map {{ 0 : {} . {} }}; \
         tcp dport {} dnat to numgen inc mod 1 map {{ 0 : {behind} . {BEHIND} }}; }}\n\
         chain after {{ type nat hook postrouting priority srcnat - 5; \
         ip daddr {behind} tcp dport {BEHIND} masquerade; }}\n}}\n",
        own_port(Place::Local),
        stage.container(Place::Local),
        Stage::TARGET,
        own_port(Place::Remote),
    );
    stage.nft("node1", &entry)?;
    answer_behind(stage)?;
    stage.forward_all(&["node1", "node2"])
}

/// The other node's own DNAT to its replica.
fn answer_behind(stage: &Stage) -> Result<()> {
    let behind = format!(
        "table ip bench {{\n\
         chain before {{ type nat hook prerouting priority dstnat - 5; \
         tcp dport {BEHIND} dnat to {}:{}; }}\n}}\n",
        stage.container(Place::Remote),
        Stage::TARGET,
    );
    stage.nft("node2", &behind)
}

fn start_haproxy(stage: &Stage) -> Result<()> {
    if !crate::command::exists("haproxy") {
        bail!("HAProxy is not installed");
    }
    answer_behind(stage)?;
    stage.forward_all(&["node2"])?;
    let configuration = format!(
        "global\n maxconn 4000\ndefaults\n mode tcp\n maxconn 4000\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\nlisten local\n bind :{}\n server replica {}:{}\nlisten remote\n bind :{}\n \
         server replica {}:{BEHIND}\n",
        own_port(Place::Local),
        stage.container(Place::Local),
        Stage::TARGET,
        own_port(Place::Remote),
        stage.lab.address("node2")?,
    );
    let path = stage.lab.state().data.join("haproxy.cfg");
    std::fs::write(&path, configuration).with_context(|| format!("could not write {}", path.display()))?;
    let path = path.to_string_lossy();
    let words = ["haproxy", "-D", "-p", "/run/bench-haproxy.pid", "-f", &path];
    stage.lab.run("node1", words).map(drop)
}
