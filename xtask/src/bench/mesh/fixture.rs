//! Where measuring takes place: a lab of two nodes with a replica on each, and a client. Depends on `lab`.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    command::run_with_input,
    lab::{Lab, LabOptions, Offloads, wait_until},
};

/// Where the replica is, as the node that the client dials sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Replica {
    /// On the node itself.
    Local,
    /// On another node.
    Remote,
}

impl fmt::Display for Replica {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

impl Replica {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Local, Self::Remote];

    /// The service that it is the only replica of.
    #[must_use]
    pub(super) fn service(self) -> &'static str {
        match self {
            Self::Local => "near",
            Self::Remote => "far",
        }
    }

    /// The port that it publishes.
    #[must_use]
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Local => 9400,
            Self::Remote => 9401,
        }
    }

    /// The node it runs on.
    #[must_use]
    pub(super) fn node(self) -> &'static str {
        match self {
            Self::Local => "node1",
            Self::Remote => "node2",
        }
    }
}

/// What the client reports.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Outcome {
    /// Connections, requests or bytes.
    pub(super) count: u64,
    /// What failed.
    pub(super) errors: u64,
    /// Why the first of them failed.
    pub(super) error: String,
    /// How long it took.
    pub(super) seconds: f64,
    /// Half took no longer.
    pub(super) median_us: f64,
    /// 99 of 100 took no longer.
    pub(super) p99_us: f64,
}

/// The lab, ready.
pub(super) struct Fixture {
    /// The lab itself.
    pub(super) lab: Lab,
    /// Whether the wire leaves checksums and segmentation to the receiver.
    pub(super) offloads: bool,
    local: String,
    remote: String,
    sources: Vec<String>,
}

/// How many addresses the client has, beside its first, and how many of them one measurement uses.
const SOURCES: usize = 48;
const SOURCES_AT_ONCE: usize = 4;

/// Connection tracking forgets closed connections soon, or its table is full after a few measurements: the
/// same for all, on nodes and in containers.
const SYSCTLS: &str = "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=5 \
                       net.netfilter.nf_conntrack_tcp_timeout_close=5";

impl Fixture {
    /// The port that the replicas listen on.
    pub(super) const TARGET: u16 = 82;

    /// Brings it up.
    ///
    /// # Errors
    /// When the lab or a service cannot be brought up.
    pub(super) fn up(offloads: bool) -> Result<Self> {
        let lab = crate::lab::cli::up(&LabOptions {
            name: "bench".into(),
            nodes: 2,
            managers: 1,
            offloads: if offloads { Offloads::On } else { Offloads::Off },
            ..LabOptions::default()
        })?;
        let addresses = Replica::ALL.map(|replica| {
            let constraint = format!("node.hostname=={}", replica.node());
            let port = format!("{}:{}", replica.port(), Self::TARGET);
            lab.create_service(replica.service(), 1, &[&port], &["--constraint", &constraint])?;
            container(&lab, replica)
        });
        let [local, remote] = addresses;
        let sources = give_addresses(&lab)?;
        for node in lab.nodes() {
            lab.run(node, ["sh", "-euc", SYSCTLS])?;
        }
        Ok(Self {
            lab,
            offloads,
            local: local?,
            remote: remote?,
            sources,
        })
    }

    /// The address by which its node reaches the replica.
    #[must_use]
    pub(super) fn container(&self, replica: Replica) -> &str {
        match replica {
            Replica::Local => &self.local,
            Replica::Remote => &self.remote,
        }
    }

    /// Runs the client against a target. `turn` counts measurements: each has addresses that have not been
    /// used for a while, and so ports that are free on every machine on the way.
    ///
    /// # Errors
    /// When the client cannot run, or more than one in a hundred failed.
    pub(super) fn load(
        &self,
        measure: &str,
        target: &str,
        seconds: f64,
        concurrency: usize,
        turn: usize,
    ) -> Result<Outcome> {
        let first = turn * SOURCES_AT_ONCE % self.sources.len();
        let sources = self.sources[first..first + SOURCES_AT_ONCE].join(",");
        let (seconds, concurrency) = (seconds.to_string(), concurrency.to_string());
        let arguments = [
            "bench",
            measure,
            target,
            "--seconds",
            &seconds,
            "--concurrency",
            &concurrency,
            "--source",
            &sources,
        ];
        let text = self.lab.testbed("client", &arguments)?;
        let outcome: Outcome =
            serde_json::from_str(&text).with_context(|| format!("the client printed `{text}`"))?;
        ensure!(
            outcome.count > 0 && outcome.errors * 100 <= outcome.count,
            "{} of {measure} failed and {} did not: {}",
            outcome.errors,
            outcome.count,
            outcome.error
        );
        Ok(outcome)
    }

    /// Waits until a target answers.
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) fn until_answers(&self, target: &str) -> Result<()> {
        wait_until(
            &format!("an answer from {target}"),
            Duration::from_secs(15),
            || self.load("connections", target, 0.02, 1, 0).map(drop),
        )
    }

    /// Waits until each agent sends to both replicas.
    ///
    /// # Errors
    /// When one does not in time.
    pub(super) fn until_agents_know(&self) -> Result<()> {
        self.lab.on_each_node(|node| {
            wait_until(&format!("the routes of {node}"), Duration::from_secs(15), || {
                let routes = self.lab.meshctl(node, &["routes"])?;
                for replica in Replica::ALL {
                    let known = |line: &str| line.starts_with(replica.service()) && line.contains(" active ");
                    if !routes.lines().any(known) {
                        bail!("{routes}");
                    }
                }
                Ok(())
            })
        })
    }

    /// Has nodes forward what their rules would drop, for contenders whose packets are routed past the
    /// containers' rules.
    ///
    /// # Errors
    /// When iptables refuses.
    pub(super) fn forward_all(&self, nodes: &[&str]) -> Result<()> {
        self.each(nodes, &["iptables", "-I", "FORWARD", "-j", "ACCEPT"])
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When iptables refuses.
    pub(super) fn forward_no_more(&self, nodes: &[&str]) -> Result<()> {
        self.each(nodes, &["iptables", "-D", "FORWARD", "-j", "ACCEPT"])
    }

    fn each(&self, nodes: &[&str], arguments: &[&str]) -> Result<()> {
        for node in nodes {
            self.lab.run(node, arguments.iter().copied())?;
        }
        Ok(())
    }

    /// Loads nftables rules on a node.
    ///
    /// # Errors
    /// When nft refuses them.
    pub(super) fn nft(&self, node: &str, rules: &str) -> Result<()> {
        let mut nft = self.lab.command(node, ["nft", "-f", "-"])?;
        run_with_input(&mut nft, rules.as_bytes()).map(drop)
    }
}

/// The address of a service's only container on its node's bridge, its connection tracking set.
fn container(lab: &Lab, replica: Replica) -> Result<String> {
    let node = replica.node();
    let filter = format!("label=com.docker.swarm.service.name={}", replica.service());
    let id = lab.docker(node, ["ps", "--quiet", "--filter", &filter])?;
    let pid = lab.docker(node, ["inspect", "--format", "{{.State.Pid}}", &id])?;
    // Its processes have the node's pids, its network has two interfaces: the bridge's is the one of the
    // default route.
    let script = format!(
        "nsenter --target {pid} --net sh -euc '{SYSCTLS} 2>/dev/null || true; \
         ip -oneline -4 address show dev $(ip route show default | sed \"s/.* dev //; s/ .*//\")'"
    );
    let text = lab.run(node, ["sh", "-euc", &script])?;
    parse_address(&text).with_context(|| {
        format!(
            "the container of {} on {node} has the addresses `{text}`",
            replica.service()
        )
    })
}

/// The address in a line of `ip -oneline address`.
fn parse_address(line: &str) -> Option<String> {
    let mut fields = line.split_whitespace();
    fields.find(|field| *field == "inet")?;
    Some(fields.next()?.split('/').next()?.to_owned())
}

/// Gives the client more addresses, and all its ports.
fn give_addresses(lab: &Lab) -> Result<Vec<String>> {
    let base = lab.address("client")?;
    let (network, _) = base.rsplit_once('.').context("the client has no address")?;
    let sources: Vec<String> = (0..SOURCES)
        .map(|index| format!("{network}.{}", 101 + index))
        .collect();
    let commands: String = sources
        .iter()
        .map(|source| format!("address add {source}/24 dev eth0\n"))
        .collect();
    let mut ip = lab.command("client", ["ip", "-batch", "-"])?;
    run_with_input(&mut ip, commands.as_bytes())?;
    let range = "net.ipv4.ip_local_port_range=1024 65535";
    lab.run("client", ["sysctl", "-qw", range])?;
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_the_output_of_ip() {
        let line =
            "17: eth1    inet 172.18.0.3/16 brd 172.18.255.255 scope global eth1\\       valid_lft forever";
        assert_eq!(parse_address(line).as_deref(), Some("172.18.0.3"));
        assert_eq!(parse_address(""), None);
    }

    #[test]
    fn a_measurement_takes_whole_groups_of_addresses() {
        assert_eq!(SOURCES % SOURCES_AT_ONCE, 0);
    }
}
