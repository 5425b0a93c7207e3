//! A lab of plain engines with the orchestrator on each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::load::Report;
use serde_json::{Value, json};
use xtask::{
    lab::{
        Lab, LabOptions, Reply, api::Api, engine::SERVER_IMAGE, traffic::Load, wait::patience, wait_until,
    },
    paths,
};

/// The port that the stories' service publishes.
pub(crate) const HTTP: u16 = 9200;
/// How long a change of the cluster may take: containers are made, started and stopped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// New connections each second under load; a slow machine gets less to do.
const RATE: u32 = 100;
/// HTTP's numbers for a change that another one prevents, and for a store that is unavailable.
const CONFLICT: u16 = 409;
pub(crate) const UNAVAILABLE: u16 = 503;
/// How long the load lasts at least.
const LOAD_SECONDS: u32 = 5;

/// The lab, and how its agents are started.
pub(crate) struct Fixture {
    pub(crate) lab: Lab,
    /// Further arguments of each node's agent.
    pub(crate) more: BTreeMap<String, Vec<String>>,
}

impl Fixture {
    /// A lab of this many plain engines, without agents.
    pub(crate) fn up(name: &str, nodes: usize) -> Result<Self> {
        for program in ["mesh-agent", "meshctl", "mesh-testbed"] {
            ensure!(
                paths::program(program).is_file(),
                "{program} is not built; run `cargo xtask build`"
            );
        }
        let lab = Lab::up(&LabOptions {
            name: name.to_owned(),
            nodes,
            managers: 0,
            ..LabOptions::default()
        })?;
        Ok(Self {
            lab,
            more: BTreeMap::new(),
        })
    }

    /// Starts a node's agent, and waits until it runs its tasks.
    pub(crate) fn start_agent(&self, node: &str) -> Result<()> {
        let more: Vec<&str> = self
            .more
            .get(node)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        self.lab.start_orchestrator(node, &more)
    }

    /// A node's API.
    pub(crate) fn api(&self, node: &str) -> Result<Api> {
        self.lab.api(node)
    }

    /// Creates the stories' service, and waits until its replicas answer.
    pub(crate) fn create_web(&self, replicas: usize, order: &str) -> Result<()> {
        self.change("node1", "POST", "/v1/services", &web(replicas, order))?;
        self.until_running(replicas)
    }

    /// Makes a change by a node's API, as soon as the store is available: etcd may be electing a leader, or
    /// be slow. A change that was made although the answer was lost counts.
    pub(crate) fn change(&self, node: &str, method: &str, path: &str, body: &Value) -> Result<()> {
        let api = self.api(node)?;
        let mut was_unavailable = false;
        let what = format!("{node} to make the change {method} {path}");
        let answer = wait_until(&what, PATIENCE, || {
            let answer = api.send(method, path, Some(body))?;
            if answer.status == UNAVAILABLE {
                was_unavailable = true;
                bail!("{answer:?}");
            }
            Ok(answer)
        })?;
        if was_unavailable && answer.status == CONFLICT {
            return Ok(());
        }
        answer.accepted().map(drop).context(what)
    }

    /// `meshctl` on a node, again while the store is unavailable.
    pub(crate) fn meshctl(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let what = format!("the store to take `meshctl {}`", arguments.join(" "));
        wait_until(&what, PATIENCE, || match self.lab.meshctl(node, arguments) {
            Err(error) if format!("{error:#}").contains("so nothing was changed") => Err(error),
            outcome => Ok(outcome),
        })?
    }

    /// Waits until this many replicas run, and every node sends to each of them.
    pub(crate) fn until_running(&self, replicas: usize) -> Result<()> {
        let api = self.api("node1")?;
        wait_until(&format!("{replicas} running tasks"), PATIENCE, || {
            let running = api.running("web")?;
            if running.len() != replicas {
                let tasks = api.get("/v1/services/web/tasks")?;
                bail!("{} run: {}", running.len(), states(&tasks).join(", "));
            }
            Ok(())
        })?;
        for node in self.lab.nodes() {
            let url = self.url(node)?;
            wait_until(
                &format!("{node} to spread over {replicas} replicas"),
                PATIENCE,
                || {
                    let replies = self
                        .lab
                        .fetch_with("client", &url, replicas * 2, &["--timeout", "500"])?;
                    let tasks = answered(&replies)?;
                    ensure!(tasks.len() == replicas, "{tasks:?} answered");
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    pub(crate) fn url(&self, node: &str) -> Result<String> {
        Ok(format!("http://{}:{HTTP}/", self.lab.address(node)?))
    }

    /// The running containers of a node that the orchestrator has made.
    pub(crate) fn containers(&self, node: &str) -> Result<BTreeSet<String>> {
        let arguments = [
            "ps",
            "--no-trunc",
            "--filter",
            "label=mesh.task.id",
            "--format",
            "{{.ID}}",
        ];
        let list = self.lab.docker(node, arguments)?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Sends requests to all nodes in turn while something happens; none may fail.
    pub(crate) fn without_a_failure(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.none_fails(&self.lab.nodes(), work)
    }

    /// Sends requests to some nodes in turn while something happens; none may fail.
    pub(crate) fn none_fails(&self, nodes: &[&str], work: impl FnOnce() -> Result<()>) -> Result<()> {
        let report = self.under_load(nodes, work)?;
        let failures = report.failures();
        ensure!(failures == 0, "{failures} requests failed: {report:?}");
        Ok(())
    }

    /// Sends requests to some nodes in turn while something happens; returns the report.
    pub(crate) fn under_load(&self, nodes: &[&str], work: impl FnOnce() -> Result<()>) -> Result<Report> {
        let urls: Vec<String> = nodes.iter().map(|node| self.url(node)).collect::<Result<_>>()?;
        let load = Load {
            urls,
            rate: (RATE / patience()).max(1),
            seconds: LOAD_SECONDS,
            kept: 0,
        };
        let report: Report = self.lab.under_load("client", &load, work)?;
        println!(
            "    {} requests, {} failed, p99 {:.1} ms, slowest {:.1} ms, {} SYNs retransmitted, by {} tasks",
            report.attempts,
            report.failures(),
            report.latency.p99,
            report.latency.max,
            report.syn_retransmitted,
            report.tasks.len()
        );
        Ok(report)
    }

    /// Changes the service's environment and waits until all tasks are of that change.
    pub(crate) fn roll(&self, generation: &str) -> Result<()> {
        let env = json!({"task_template": {"container_spec": {"env": [format!("GENERATION={generation}")]}}});
        self.change("node1", "PATCH", "/v1/services/web", &env)?;
        self.until_updated()
    }

    /// Waits until all tasks are of the last change of the service's specification.
    pub(crate) fn until_updated(&self) -> Result<()> {
        let api = self.api("node1")?;
        wait_until("the update", PATIENCE, || {
            let service = api.get("/v1/services/web")?;
            ensure!(
                service["update_status"]["state"] == "completed",
                "{:#}",
                service["update_status"]
            );
            Ok(())
        })
    }

    /// Takes the lab down after a story; if that failed, its error gets the ends of the agents' logs.
    pub(crate) fn end(self, outcome: Result<()>) -> Result<()> {
        outcome.with_context(|| self.evidence())?;
        self.lab.down()
    }

    /// The ends of the agents' logs, for a story that failed.
    fn evidence(&self) -> String {
        let mut text = String::from("the ends of the agents' logs:");
        for node in self.lab.nodes() {
            text += &format!("\n--- {node}\n{}", self.lab.agent_log_tail(node, 40));
        }
        text
    }
}

/// A story on one node with an agent.
pub(crate) fn on_one_node(name: &str, story: fn(&Fixture) -> Result<()>) -> Result<()> {
    let fixture = Fixture::up(name, 1)?;
    let outcome = fixture.start_agent("node1").and_then(|()| story(&fixture));
    fixture.end(outcome)
}

/// Each task with its node, desired and actual state, and the reason of a failure.
fn states(tasks: &Value) -> Vec<String> {
    let tasks = tasks.as_array().into_iter().flatten();
    tasks
        .map(|task| {
            let (status, error) = (&task["status"], &task["status"]["error"]);
            let text = format!(
                "{} on {}: {}, to be {}",
                task["name"], task["node_hostname"], status["state"], task["desired"]
            );
            match error.as_str() {
                Some(error) => format!("{text} ({error})"),
                None => text,
            }
        })
        .collect()
}

/// The stories' service: ready when it answers, and quick to stop.
pub(crate) fn web(replicas: usize, order: &str) -> Value {
    json!({
        "name": "web",
        "mode": {"replicated": {"replicas": replicas}},
        "task_template": {
            "container_spec": {
                "image": SERVER_IMAGE,
                "stop_grace_period": "3s",
                "healthcheck": {"test": {"http": {"port": 80, "path": "/"}}, "interval": "1s"}
            },
            "restart_policy": {"delay": "500ms"}
        },
        // A third at a time: with two or three replicas one.
        "update_config": {"order": order, "monitor": "1s", "parallelism": (replicas / 3).max(1)},
        "endpoint_spec": {"ports": [{"target_port": 80, "published_port": HTTP}]}
    })
}

/// The tasks that answered; every request must have been answered.
pub(crate) fn answered(replies: &[Reply]) -> Result<BTreeSet<String>> {
    for reply in replies {
        ensure!(reply.outcome == "answered", "{} {}", reply.outcome, reply.error);
    }
    Ok(replies.iter().map(|reply| reply.task.clone()).collect())
}
