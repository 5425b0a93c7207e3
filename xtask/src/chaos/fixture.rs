//! The lab that scenarios are played in, and the load during each. Depends on `lab` and `outcome`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::outcome::{Events, Report};
use crate::{
    lab::{self, Lab, LabOptions, traffic::Load, wait_until},
    paths,
};

/// The service that is asked.
pub(super) const SERVICE: &str = "web";
pub(super) const REPLICAS: usize = 5;
/// Where it answers HTTP, and datagrams.
const PORT: u16 = 9200;
const DATAGRAM_PORT: u16 = 9201;

/// New connections each second, and connections that stay open: by TCP and by UDP in turn.
const RATE: u32 = 120;
const KEPT: usize = 18;

/// Replaces all tasks, and so spreads them over the nodes again.
pub(super) const UPDATE: [&str; 6] = [
    "service",
    "update",
    "--detach=false",
    "--quiet",
    "--force",
    SERVICE,
];

/// Before the first event, and after the last.
const CALM: Duration = Duration::from_secs(1);

/// The agents' options: the lab's wire supports native XDP, and the data path stays when an agent stops, as
/// it does by default.
const AGENT_ARGUMENTS: &[&str] = &["--xdp", "native", "--on-stop", "keep"];

/// Whose agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agents {
    /// Those of this tree.
    Current,
    /// Those of an earlier release: `--earlier-agent`.
    Earlier,
}

/// How many nodes a lab has, and how many of them manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cluster {
    pub(super) nodes: usize,
    pub(super) managers: usize,
}

/// What most scenarios are played in.
pub(super) const ONE_MANAGER: Cluster = Cluster {
    nodes: 3,
    managers: 1,
};

/// A lab with a service and agents.
pub(super) struct Fixture {
    lab: Lab,
    pub(super) cluster: Cluster,
    /// The program of an earlier release's agent.
    earlier_agent: Option<PathBuf>,
}

impl Fixture {
    /// Brings it up.
    pub(super) fn up(name: &str, cluster: Cluster, earlier_agent: Option<&Path>) -> Result<Self> {
        let lab = lab::cli::up(&LabOptions {
            name: name.to_owned(),
            nodes: cluster.nodes,
            managers: cluster.managers,
            ..LabOptions::default()
        })?;
        lab.start_agents(AGENT_ARGUMENTS)?;
        let ports = [format!("{PORT}:80"), format!("{DATAGRAM_PORT}:81/udp")];
        lab.create_service(SERVICE, REPLICAS, &ports.each_ref().map(String::as_str), &[])?;
        Ok(Self {
            lab,
            cluster,
            earlier_agent: earlier_agent.map(Path::to_owned),
        })
    }

    /// Takes it down.
    pub(super) fn down(self) -> Result<()> {
        self.lab.down()
    }

    /// Puts in order what an earlier scenario left behind, and sends requests to some nodes while something
    /// happens.
    pub(super) fn under_load(
        &self,
        entries: &[&str],
        agents: Agents,
        work: impl FnOnce(&Scene<'_>) -> Result<()>,
    ) -> Result<(Report, Events)> {
        if agents == Agents::Earlier {
            self.start_earlier_agents()?;
        }
        self.lab.on_each_node(|node| {
            if self.lab.agent_is_running(node)? {
                return Ok(());
            }
            self.lab.start_agent(node, AGENT_ARGUMENTS)
        })?;
        self.lab.scale(SERVICE, REPLICAS)?;
        let tasks = self.lab.wait_for_tasks(SERVICE, REPLICAS)?;
        let used: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
        if used.len() < self.lab.nodes().len() {
            // Swarm leaves tasks where they are when a node comes back.
            self.lab.docker("node1", UPDATE)?;
            self.lab.wait_for_tasks(SERVICE, REPLICAS)?;
        }
        let mut urls = Vec::new();
        for node in entries {
            urls.push(self.url(node)?);
            urls.push(format!("udp://{}:{DATAGRAM_PORT}", self.lab.address(node)?));
        }
        let load = Load {
            urls,
            rate: RATE,
            seconds: 1,
            kept: KEPT,
        };
        let scene = Scene {
            fixture: self,
            events: Mutex::new(Events::default()),
        };
        scene.until_all_known()?;
        let report = self.lab.under_load("client", &load, || {
            thread::sleep(CALM);
            let done = work(&scene);
            thread::sleep(CALM);
            done
        })?;
        let events = scene.events.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((report, events))
    }

    /// Replaces the agents by those of the earlier release, with a data path of their own.
    fn start_earlier_agents(&self) -> Result<()> {
        let program = self.earlier_agent.as_deref();
        let program = program.context("name the earlier release's agent: --earlier-agent FILE")?;
        self.lab.stop_agents()?;
        let clean = paths::program("mesh-agent");
        let clean = clean.to_str().context("the target folder's path is not UTF-8")?;
        self.lab.on_each_node(|node| {
            self.lab.run(node, [clean, "clean"])?;
            self.lab.start_other_agent(program, node, AGENT_ARGUMENTS)
        })
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Asks something about each node.
    pub(super) fn each_node<T>(&self, ask: impl Fn(&Self, &str) -> Result<T>) -> Result<BTreeMap<String, T>> {
        let nodes = self.lab.nodes().into_iter();
        nodes
            .map(|node| Ok((node.to_owned(), ask(self, node)?)))
            .collect()
    }

    fn url(&self, node: &str) -> Result<String> {
        Ok(format!("http://{}:{PORT}/", self.lab.address(node)?))
    }
}

/// One scenario while it is played.
pub(super) struct Scene<'a> {
    fixture: &'a Fixture,
    events: Mutex<Events>,
}

impl Scene<'_> {
    pub(super) fn lab(&self) -> &Lab {
        &self.fixture.lab
    }

    pub(super) fn agent_arguments(&self) -> &'static [&'static str] {
        AGENT_ARGUMENTS
    }

    /// Notes that something goes wrong, or is put right, now.
    pub(super) fn event(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.events().moments.push(now);
    }

    /// Waits until these nodes send no new connections to a node, and notes how long that took.
    pub(super) fn until_out(&self, lost: &str, nodes: &[&str]) -> Result<()> {
        let begin = Instant::now();
        self.until(nodes, &format!("to avoid {lost}"), |tasks| {
            !tasks.iter().any(|(_, node)| node == lost)
        })?;
        self.events().out = Some(begin.elapsed());
        Ok(())
    }

    /// Waits until all replicas answer through every node, and notes how long that took.
    pub(super) fn until_back(&self) -> Result<()> {
        let begin = Instant::now();
        self.until_all_answer()?;
        self.events().back = Some(begin.elapsed());
        Ok(())
    }

    /// Waits until all nodes send to all replicas.
    pub(super) fn until_all_known(&self) -> Result<()> {
        self.until_known(&self.lab().nodes())
    }

    /// Waits until these nodes send to all replicas.
    pub(super) fn until_known(&self, nodes: &[&str]) -> Result<()> {
        let running = self.lab().running_tasks(SERVICE)?;
        let running: BTreeSet<String> = running.into_iter().map(|task| task.name).collect();
        self.until(nodes, "to send to all replicas", |tasks| {
            let known: BTreeSet<String> = tasks.iter().map(|(task, _)| task.clone()).collect();
            known == running
        })
    }

    /// Waits until all replicas answer through every node.
    pub(super) fn until_all_answer(&self) -> Result<()> {
        for node in self.lab().nodes() {
            let url = self.fixture.url(node)?;
            wait_until(&format!("all replicas to answer through {node}"), LIMIT, || {
                let replies = self.lab().fetch("client", &url, 2 * REPLICAS)?;
                let answered: BTreeSet<&str> = replies.iter().map(|reply| reply.task.as_str()).collect();
                ensure!(
                    answered.len() == REPLICAS && !answered.contains(""),
                    "{answered:?} answered"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The ids of the service's containers on a node.
    pub(super) fn containers_on(&self, node: &str) -> Result<Vec<String>> {
        let label = format!("label=com.docker.swarm.service.name={SERVICE}");
        let list = self.lab().docker(node, ["ps", "--quiet", "--filter", &label])?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Makes a replica drop what would open a connection, or stops that.
    pub(super) fn accepts_nothing(&self, node: &str, container: &str, yes: bool) -> Result<()> {
        let pid = self
            .lab()
            .docker(node, ["inspect", "--format", "{{.State.Pid}}", container])?;
        let action = if yes { "-I" } else { "-D" };
        let command = [
            "nsenter",
            "--target",
            pid.trim(),
            "--net",
            "iptables",
            "--wait",
            action,
        ];
        let rule = ["INPUT", "-p", "tcp", "--dport", "80", "--syn", "-j", "DROP"];
        self.lab().run(node, [&command[..], &rule[..]].concat()).map(drop)
    }

    /// The id of a container of the service on a node.
    pub(super) fn container_on(&self, node: &str) -> Result<String> {
        let first = self.containers_on(node)?.into_iter().next();
        first.with_context(|| format!("no replica of {SERVICE} runs on {node}"))
    }

    /// Waits until the active replicas that each of these nodes has, with their nodes, are as they should be.
    fn until(
        &self,
        nodes: &[&str],
        what: &str,
        condition: impl Fn(&BTreeSet<(String, String)>) -> bool,
    ) -> Result<()> {
        for node in nodes {
            wait_until(&format!("{node} {what}"), LIMIT, || {
                let text = self.lab().meshctl(node, &["routes", "--format", "json"])?;
                let answer: Value =
                    serde_json::from_str(&text).with_context(|| format!("no JSON: `{text}`"))?;
                let rows = answer["routes"].as_array().context("no routes")?;
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                for protocol in ["tcp", "udp"] {
                    let active: BTreeSet<(String, String)> = rows
                        .iter()
                        .filter(|row| row["state"] == "active" && row["protocol"] == protocol)
                        .map(|row| (text(&row["backend"]["task"]), text(&row["backend"]["node"])))
                        .collect();
                    ensure!(condition(&active), "by {protocol} it sends to {active:?}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long something may take that is not what a scenario measures.
const LIMIT: Duration = Duration::from_secs(30);
