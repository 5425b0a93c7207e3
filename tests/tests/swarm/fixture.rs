//! What the stories of a group share: a lab with a Swarm, its agents, and what a user would look at.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{
    lab::{Lab, LabOptions, Offloads, ServiceTask, Topology, wait_until},
    paths,
};

use crate::expect::expect_all_of;

/// The port that the stories' service publishes for HTTP.
pub(crate) const HTTP: u16 = 9200;

/// The port that it publishes for UDP echo.
pub(crate) const UDP: u16 = 9201;

/// How fast the mesh follows the cluster.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// The lab, and how its agents are started.
pub(crate) struct Fixture {
    pub(crate) lab: Lab,
    /// The agents' arguments.
    pub(crate) arguments: &'static [&'static str],
    /// Whether a story finds agents on all nodes, or none at all.
    pub(crate) with_agents: bool,
    managers: usize,
    offloads: Offloads,
    topology: Topology,
}

impl Fixture {
    /// A lab of this name, of three nodes with so many managers, without agents yet.
    pub(crate) fn up(name: &str, managers: usize, offloads: Offloads, topology: Topology) -> Result<Self> {
        for program in ["mesh-agent", "meshctl", "mesh-testbed"] {
            ensure!(
                paths::program(program).is_file(),
                "{program} is not built; run `cargo xtask build`"
            );
        }
        let lab = Lab::up(&LabOptions {
            name: name.into(),
            managers,
            offloads,
            topology,
            ..LabOptions::default()
        })?;
        Ok(Self {
            lab,
            arguments: &[],
            with_agents: false,
            managers,
            offloads,
            topology,
        })
    }

    /// Whether the lab is what another group needs, or can become it.
    pub(crate) fn can_become(&self, managers: usize, offloads: Offloads, topology: Topology) -> bool {
        self.managers <= managers && self.offloads == offloads && self.topology == topology
    }

    /// Stops all agents, and makes managers of workers until there are so many.
    pub(crate) fn become_fresh(&mut self, managers: usize) -> Result<()> {
        self.lab.stop_agents()?;
        for node in self.lab.nodes().into_iter().take(managers).skip(self.managers) {
            self.lab.docker("node1", ["node", "promote", node])?;
            wait_until(&format!("{node} to manage"), Duration::from_secs(30), || {
                self.lab.docker(node, ["node", "ls"]).map(drop)
            })?;
        }
        self.managers = managers;
        Ok(())
    }

    /// Nothing of the mesh may be pinned on a node.
    pub(crate) fn no_pins_left(&self, node: &str) -> Result<()> {
        // The kernel itself puts `maps.debug` and `progs.debug` into each bpf file system.
        let arguments = [
            "find",
            "/sys/fs/bpf",
            "-mindepth",
            "1",
            "-not",
            "-name",
            "*.debug",
        ];
        let pins = self.lab.run(node, arguments)?;
        ensure!(pins.is_empty(), "pins are left: {pins}");
        Ok(())
    }

    /// What every story starts from: `web` has five replicas; where the group has agents, they run on all
    /// nodes and know all replicas.
    pub(crate) fn reset(&self) -> Result<()> {
        if self.with_agents {
            self.lab.on_each_node(|node| {
                if self.lab.agent_is_running(node)? {
                    return Ok(());
                }
                self.lab.start_agent(node, self.arguments)
            })?;
        }
        if self.lab.docker("node1", ["service", "inspect", "web"]).is_err() {
            self.lab
                .create_service("web", 5, &["9200:80", "9201:81/udp"], &[])?;
        } else if self.lab.running_tasks("web")?.len() != 5 {
            self.lab.scale("web", 5)?;
            self.lab.wait_for_tasks("web", 5)?;
        }
        if !self.with_agents {
            return Ok(());
        }
        self.until_all_know("web", Duration::from_secs(15))
    }

    /// The ends of the agents' logs, for a story that failed.
    pub(crate) fn evidence(&self) -> String {
        let mut text = String::from("the story failed; the ends of the agents' logs:");
        for node in self.lab.nodes() {
            text += &format!("\n--- {node}\n{}", self.lab.agent_log_tail(node, 30));
        }
        // Last, as the end of a long output is what one sees.
        for node in self.lab.nodes() {
            text += &format!("\ndrops of {node}: {:?}", self.drops(node).unwrap_or_default());
        }
        text
    }

    /// The drop counters of a node that are not zero.
    fn drops(&self, node: &str) -> Result<Vec<String>> {
        let text = self.lab.metrics(node)?;
        let counted = |line: &&str| line.starts_with("mesh_drops_total") && !line.ends_with(" 0");
        Ok(text.lines().filter(counted).map(str::to_owned).collect())
    }

    /// Whether replicas on other nodes see the entry node's address instead of the client's.
    pub(crate) fn hides_clients(&self) -> Result<bool> {
        Ok(self.datapath("node1")?["kind"] == "ipvs")
    }

    /// A node's answer to `meshctl datapath`.
    pub(crate) fn datapath(&self, node: &str) -> Result<Value> {
        let text = self.lab.meshctl(node, &["datapath", "--format", "json"])?;
        let answer: Value = serde_json::from_str(&text).context("meshctl printed no JSON")?;
        Ok(answer["datapath"].clone())
    }

    /// `http://…/` of a published port at a node's address.
    pub(crate) fn url(&self, node: &str, port: u16) -> Result<String> {
        Ok(format!("http://{}:{port}/", self.lab.address(node)?))
    }

    /// `address:port` at a node.
    pub(crate) fn at(&self, node: &str, port: u16) -> Result<String> {
        Ok(format!("{}:{port}", self.lab.address(node)?))
    }

    /// Waits until each node sends to all running tasks of a service and to no other.
    pub(crate) fn until_all_know(&self, service: &str, timeout: Duration) -> Result<()> {
        let tasks = self.names(service)?;
        for node in self.lab.nodes() {
            let url = self.url(node, HTTP)?;
            wait_until(&format!("{node} to spread over {tasks:?}"), timeout, || {
                let replies = self
                    .lab
                    .fetch_with("client", &url, tasks.len() * 2, &["--timeout", "500"])?;
                expect_all_of(&replies, &tasks)
            })?;
        }
        Ok(())
    }

    /// All parts of a node's network that an agent changes.
    pub(crate) fn network(&self, node: &str) -> Result<String> {
        let mut text = String::new();
        // Names and kinds only: counters and states change by themselves.
        for command in [
            "ip -oneline link show | sed 's/ state [A-Z]*//; s/@.*: </: </' | grep -v ': veth'",
            "ip -oneline address show scope global | grep -v ': veth'",
            "ip route show table all | grep -v 'dev veth' | grep -v fe80 | grep -v ff00",
            "ip rule show",
            "ip neighbour show nud permanent",
            "tc qdisc show | grep -v 'dev veth'",
            "bpftool net show",
            "bpftool cgroup show /run/cgroup2",
            "sysctl -a --pattern 'net.ipv4.(conf.(all|eth0|docker_gwbridge)|ip_forward)' 2>/dev/null",
            "iptables-save | grep -v -e '^#' | sed 's/\\[[0-9:]*\\]//' | sort",
        ] {
            // Some print nothing, and then grep fails.
            let output = self.lab.run(node, ["sh", "-c", &format!("{command}; true")])?;
            text += &format!("$ {command}\n{output}\n");
        }
        Ok(text)
    }

    /// The names of a service's running tasks.
    pub(crate) fn names(&self, service: &str) -> Result<BTreeSet<String>> {
        Ok(self
            .lab
            .running_tasks(service)?
            .into_iter()
            .map(|task: ServiceTask| task.name)
            .collect())
    }
}
