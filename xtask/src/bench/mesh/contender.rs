//! What is measured beside each other: how each is started, where it answers, how it is stopped. Depends on
//! the fixture.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::fixture::{Fixture, Replica};
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

/// The port that nftables or HAProxy answers on for a replica.
fn own_port(replica: Replica) -> u16 {
    match replica {
        Replica::Local => 9410,
        Replica::Remote => 9411,
    }
}

/// Where the other node answers for its replica, for balancers that cannot reach other nodes' containers.
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
    fn arguments(self, fixture: &Fixture) -> Option<Vec<&'static str>> {
        let xdp = if fixture.offloads { "off" } else { "native" };
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
    pub(super) fn start(self, fixture: &Fixture) -> Result<()> {
        if let Some(mut arguments) = self.arguments(fixture) {
            // A more verbose agent logs while packets are handled.
            arguments.extend(["--log-level", "info"]);
            fixture.lab.start_agents(&arguments)?;
            fixture.until_agents_know()?;
        }
        match self {
            Self::Nftables => start_nftables(fixture)?,
            Self::Haproxy => start_haproxy(fixture)?,
            Self::Direct => fixture.forward_all(&["node1", "node2"])?,
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => (),
        }
        for replica in Replica::ALL {
            let target = self.aim(fixture, replica)?;
            fixture
                .until_answers(&target)
                .with_context(|| format!("{self}, to a {replica} replica"))?;
        }
        Ok(())
    }

    /// Stops it, so that it does not disturb the next one.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub(super) fn stop(self, fixture: &Fixture) -> Result<()> {
        if self.arguments(fixture).is_some() {
            fixture.lab.stop_agents()?;
        }
        match self {
            Self::Nftables => {
                for node in ["node1", "node2"] {
                    fixture.lab.run(node, ["nft", "delete", "table", "ip", "bench"])?;
                }
                fixture.forward_no_more(&["node1", "node2"])
            }
            Self::Haproxy => {
                let script = "kill $(cat /run/bench-haproxy.pid)";
                fixture.lab.run("node1", ["sh", "-euc", script])?;
                fixture
                    .lab
                    .run("node2", ["nft", "delete", "table", "ip", "bench"])?;
                fixture.forward_no_more(&["node2"])
            }
            Self::Direct => fixture.forward_no_more(&["node1", "node2"]),
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => Ok(()),
        }
    }

    /// The address at which the client reaches a replica, with the client's route to it set.
    ///
    /// # Errors
    /// When the client's route cannot be set.
    pub(super) fn aim(self, fixture: &Fixture, replica: Replica) -> Result<String> {
        let entry = fixture.lab.address("node1")?;
        Ok(match self {
            Self::Docker | Self::Tunnel | Self::Dsr | Self::Ipvs => format!("{entry}:{}", replica.port()),
            Self::Nftables | Self::Haproxy => format!("{entry}:{}", own_port(replica)),
            Self::Direct => {
                let container = fixture.container(replica);
                let node = fixture.lab.address(replica.node())?;
                // Nodes number their containers alike: one route at a time.
                let route = ["ip", "route", "replace", container, "via", &node];
                fixture.lab.run("client", route)?;
                format!("{container}:{}", Fixture::TARGET)
            }
        })
    }

    /// The connections that the mesh has counted, to check that it was the mesh that answered; `None` for the
    /// others.
    ///
    /// # Errors
    /// When the agent's metrics cannot be read.
    pub(super) fn counted(self, fixture: &Fixture, replica: Replica) -> Result<Option<f64>> {
        if self.arguments(fixture).is_none() {
            return Ok(None);
        }
        let metrics = fixture.lab.metrics("node1")?;
        let service = format!("service=\"{}\"", replica.service());
        Ok(Some(metric_sum(
            &metrics,
            "mesh_service_connections_total",
            &[&service],
        )))
    }
}

fn start_nftables(fixture: &Fixture) -> Result<()> {
    let behind = fixture.lab.address("node2")?;
    let entry = format!(
        "table ip bench {{\n\
         chain before {{ type nat hook prerouting priority dstnat - 5; \
         tcp dport {} dnat to numgen inc mod 1 map {{ 0 : {} . {} }}; \
         tcp dport {} dnat to numgen inc mod 1 map {{ 0 : {behind} . {BEHIND} }}; }}\n\
         chain after {{ type nat hook postrouting priority srcnat - 5; \
         ip daddr {behind} tcp dport {BEHIND} masquerade; }}\n}}\n",
        own_port(Replica::Local),
        fixture.container(Replica::Local),
        Fixture::TARGET,
        own_port(Replica::Remote),
    );
    fixture.nft("node1", &entry)?;
    answer_behind(fixture)?;
    fixture.forward_all(&["node1", "node2"])
}

/// The other node's own DNAT to its replica.
fn answer_behind(fixture: &Fixture) -> Result<()> {
    let behind = format!(
        "table ip bench {{\n\
         chain before {{ type nat hook prerouting priority dstnat - 5; \
         tcp dport {BEHIND} dnat to {}:{}; }}\n}}\n",
        fixture.container(Replica::Remote),
        Fixture::TARGET,
    );
    fixture.nft("node2", &behind)
}

fn start_haproxy(fixture: &Fixture) -> Result<()> {
    if !crate::command::exists("haproxy") {
        bail!("HAProxy is not installed");
    }
    answer_behind(fixture)?;
    fixture.forward_all(&["node2"])?;
    let configuration = format!(
        "global\n maxconn 4000\ndefaults\n mode tcp\n maxconn 4000\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\nlisten local\n bind :{}\n server replica {}:{}\nlisten remote\n bind :{}\n \
         server replica {}:{BEHIND}\n",
        own_port(Replica::Local),
        fixture.container(Replica::Local),
        Fixture::TARGET,
        own_port(Replica::Remote),
        fixture.lab.address("node2")?,
    );
    let path = fixture.lab.state().data.join("haproxy.cfg");
    std::fs::write(&path, configuration).with_context(|| format!("could not write {}", path.display()))?;
    let path = path.to_string_lossy();
    let arguments = ["haproxy", "-D", "-p", "/run/bench-haproxy.pid", "-f", &path];
    fixture.lab.run("node1", arguments).map(drop)
}
