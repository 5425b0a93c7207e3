//! The lab that scenarios are played in, and the load during each. Depends on `lab` and `outcome`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
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

/// Brings up a lab with agents and the service.
pub(super) fn up(name: &str, cluster: Cluster) -> Result<Lab> {
    let lab = lab::cli::up(&LabOptions {
        name: name.to_owned(),
        nodes: cluster.nodes,
        managers: cluster.managers,
        ..LabOptions::default()
    })?;
    lab.start_agents(AGENT_ARGUMENTS)?;
    let ports = [format!("{PORT}:80"), format!("{DATAGRAM_PORT}:81/udp")];
    lab.create_service(SERVICE, REPLICAS, &ports.each_ref().map(String::as_str), &[])?;
    Ok(lab)
}

/// A lab with the service and agents, and how to play in it.
pub(super) struct Fixture<'a> {
    pub(super) lab: &'a Lab,
    /// The program of an earlier release's agent.
    pub(super) earlier_agent: Option<&'a Path>,
    pub(super) pace: Pace,
}

/// How long what goes wrong lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As long as the event says.
    Full,
    /// Only as long as its requirement needs to be seen.
    Brief,
}

impl Fixture<'_> {
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
        self.put_in_order()?;
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
        let scene = self.scene();
        let report = self.lab.under_load("client", &load, || {
            thread::sleep(CALM);
            let done = work(&scene);
            thread::sleep(CALM);
            done
        })?;
        let events = scene.events.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((report, events))
    }

    /// Starts the agents that do not run, and scales the service to what it had, on all nodes.
    pub(super) fn put_in_order(&self) -> Result<()> {
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
        self.scene().until_all_known()
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            fixture: self,
            events: Mutex::new(Events::default()),
        }
    }

    /// Replaces the agents by those of the earlier release, with a data path of their own.
    fn start_earlier_agents(&self) -> Result<()> {
        let program = self.earlier_agent;
        let program = program.context("name the earlier release's agent: --earlier-agent FILE")?;
        self.lab.stop_agents()?;
        let clean = paths::program("mesh-agent");
        let clean = clean.to_str().context("the target folder's path is not UTF-8")?;
        self.lab.on_each_node(|node| {
            self.lab.run(node, [clean, "clean"])?;
            self.lab.start_other_agent(program, node, AGENT_ARGUMENTS)
        })
    }

    /// Asks something about each node.
    pub(super) fn each_node<T>(&self, ask: impl Fn(&Lab, &str) -> Result<T>) -> Result<BTreeMap<String, T>> {
        let nodes = self.lab.nodes().into_iter();
        nodes
            .map(|node| Ok((node.to_owned(), ask(self.lab, node)?)))
            .collect()
    }

    fn url(&self, node: &str) -> Result<String> {
        Ok(format!("http://{}:{PORT}/", self.lab.address(node)?))
    }
}

/// One scenario while it is played.
pub(super) struct Scene<'a> {
    fixture: &'a Fixture<'a>,
    events: Mutex<Events>,
}

impl Scene<'_> {
    pub(super) fn lab(&self) -> &Lab {
        self.fixture.lab
    }

    /// Waits for as long as something is to last: so many seconds, or fewer where it is played briefly.
    pub(super) fn lasts(&self, seconds: u64, brief: u64) {
        let seconds = match self.fixture.pace {
            Pace::Full => seconds,
            Pace::Brief => brief,
        };
        thread::sleep(Duration::from_secs(seconds));
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

    /// Kills the process of a replica on a node, and notes that.
    pub(super) fn kill_replica(&self, node: &str) -> Result<()> {
        let container = self.container_on(node)?;
        let pid = self.pid(node, &container)?;
        self.event();
        // Not by `docker kill`, which takes longer than what is measured.
        let kill = format!("kill -KILL {pid}");
        self.lab().run(node, ["sh", "-c", &kill]).map(drop)
    }

    /// The pid of a container's first process.
    fn pid(&self, node: &str, container: &str) -> Result<String> {
        let arguments = ["inspect", "--format", "{{.State.Pid}}", container];
        Ok(self.lab().docker(node, arguments)?.trim().to_owned())
    }

    /// Makes a replica drop what would open a connection, or stops that.
    pub(super) fn accepts_nothing(&self, node: &str, container: &str, yes: bool) -> Result<()> {
        let pid = self.pid(node, container)?;
        let action = if yes { "-I" } else { "-D" };
        let command = ["nsenter", "--target", &pid, "--net", "iptables", "--wait", action];
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
