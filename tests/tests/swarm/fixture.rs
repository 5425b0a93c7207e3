//! What the stories share: one lab for all stories of a binary, and what a user would look at.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use xtask::{
    lab::{
        Lab, LabOptions, Reply, ServiceTask,
        traffic::{host, spread},
        wait_until,
    },
    paths,
};

/// The port that the stories' service publishes for HTTP.
pub(crate) const HTTP: u16 = 9200;

/// The port that it publishes for UDP echo.
pub(crate) const UDP: u16 = 9201;

/// How fast the mesh follows the cluster.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// The lab, and how its agents are started.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) arguments: &'static [&'static str],
}

/// One story: its name and what it does.
pub(crate) type Story = (&'static str, fn(&Stage) -> Result<()>);

/// Runs the stories one after the other in one lab, and takes it down whatever comes of them.
pub(crate) fn run(options: &LabOptions, arguments: &'static [&'static str], stories: &[Story]) -> ExitCode {
    let mut given = Arguments::from_args();
    // They share the lab.
    given.test_threads = Some(1);
    let shared: Arc<Mutex<Option<Stage>>> = Arc::default();
    let trials = stories.iter().map(|&(name, story)| {
        let (shared, options) = (Arc::clone(&shared), options.clone());
        Trial::test(name, move || {
            // A story that panicked leaves the lab to the next one.
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            tell(&mut shared, &options, arguments, story).map_err(|error| format!("{error:?}").into())
        })
    });
    let conclusion = libtest_mimic::run(&given, trials.collect());
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn tell(
    shared: &mut Option<Stage>,
    options: &LabOptions,
    arguments: &'static [&'static str],
    story: fn(&Stage) -> Result<()>,
) -> Result<()> {
    let stage = match shared {
        Some(stage) => stage,
        None => {
            for program in ["mesh-agent", "meshctl", "mesh-testbed"] {
                ensure!(
                    paths::program(program).is_file(),
                    "{program} is not built; run `cargo xtask build`"
                );
            }
            shared.insert(Stage {
                lab: Lab::up(options)?,
                arguments,
            })
        }
    };
    stage.reset().context("could not put the lab back in order")?;
    story(stage).with_context(|| stage.evidence())
}

impl Stage {
    /// Nothing of the mesh may be pinned on a node.
    pub(crate) fn no_pins_left(&self, node: &str) -> Result<()> {
        // The kernel itself puts `maps.debug` and `progs.debug` into each bpf file system.
        let words = [
            "find",
            "/sys/fs/bpf",
            "-mindepth",
            "1",
            "-not",
            "-name",
            "*.debug",
        ];
        let pins = self.lab.run(node, words)?;
        ensure!(pins.is_empty(), "pins are left: {pins}");
        Ok(())
    }

    /// What every story finds: all engines and agents run, and `web` has five replicas that all nodes
    /// know.
    fn reset(&self) -> Result<()> {
        for node in self.lab.nodes() {
            if !self.lab.agent_is_running(node)? {
                self.lab.start_agent(node, self.arguments)?;
            }
        }
        if self.lab.docker("node1", ["service", "inspect", "web"]).is_err() {
            self.lab
                .create_service("web", 5, &["9200:80", "9201:81/udp"], &[])?;
        } else if self.lab.running_tasks("web")?.len() != 5 {
            self.lab.scale("web", 5)?;
            self.lab.wait_for_tasks("web", 5)?;
        }
        self.until_all_know("web", Duration::from_secs(15))
    }

    /// The ends of the agents' logs, for a story that failed.
    fn evidence(&self) -> String {
        let mut text = String::from("the story failed; what the agents say:");
        for node in self.lab.nodes() {
            text += &format!("\n--- {node}\n{}", self.lab.agent_log_tail(node, 30));
            text += &format!("\ndrops: {:?}", self.drops(node).unwrap_or_default());
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

    /// What `meshctl datapath` says of a node.
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

    /// All of a node's network that an agent could change.
    pub(crate) fn network(&self, node: &str) -> Result<String> {
        let mut text = String::new();
        // Names and kinds only: counters and states change by themselves.
        for words in [
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
            let output = self.lab.run(node, ["sh", "-c", &format!("{words}; true")])?;
            text += &format!("$ {words}\n{output}\n");
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

/// Every reply came from one of these tasks, and each of them replied.
pub(crate) fn expect_all_of(replies: &[Reply], tasks: &BTreeSet<String>) -> Result<()> {
    let spread = spread(replies);
    let answered: BTreeSet<String> = spread.keys().cloned().collect();
    ensure!(
        &answered == tasks,
        "{tasks:?} should answer, and the answers were {spread:?}"
    );
    Ok(())
}

/// Ten requests over five replicas give each exactly two.
pub(crate) fn expect_rotation(replies: &[Reply], replicas: usize) -> Result<()> {
    let spread = spread(replies);
    let share = replies.len() / replicas;
    ensure!(
        spread.len() == replicas && spread.values().all(|count| *count == share),
        "each of {replicas} replicas should answer {share} times, and the answers were {spread:?}"
    );
    Ok(())
}

/// Every request was answered.
pub(crate) fn expect_answers(replies: &[Reply]) -> Result<()> {
    match replies
        .iter()
        .enumerate()
        .find(|(_, reply)| reply.outcome != "answered")
    {
        None => Ok(()),
        Some((index, reply)) => bail!(
            "request {} of {}: {} {}",
            index + 1,
            replies.len(),
            reply.outcome,
            reply.error
        ),
    }
}

/// The replicas saw the client as the client sees itself.
pub(crate) fn expect_client_address(replies: &[Reply], client: &str) -> Result<()> {
    expect_answers(replies)?;
    for reply in replies {
        ensure!(
            host(&reply.peer) == client,
            "{} saw {} and not {client}",
            reply.task,
            reply.peer
        );
        ensure!(
            reply.peer == reply.local,
            "{} saw {}, the client is {}",
            reply.task,
            reply.peer,
            reply.local
        );
    }
    Ok(())
}
