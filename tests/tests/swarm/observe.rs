//! Stories of an operator who looks at connections and rates of the whole cluster from a manager.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{Reply, ServiceTask, agent::metric_sum, wait::patience, wait_until};

use crate::{
    fixture::{Fixture, HTTP},
    group::Story,
    load::{AFTERWARDS, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    (
        "a_manager_shows_the_flows_and_rates_of_every_node",
        flows_and_rates,
    ),
    ("a_scrape_shows_how_each_replica_answers", signals),
];

const MANAGER: &str = "node1";
const WORKER: &str = "node2";
const OTHER_WORKER: &str = "node3";
const LIMIT: Duration = Duration::from_secs(10);

fn flows_and_rates(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let report = under_load(fixture, &lab.nodes(), 2, 0, || {
        thread::sleep(AFTERWARDS);
        let rates = json(
            fixture,
            MANAGER,
            &["top", "--once", "--all-nodes", "--service", "web"],
        )?;
        let service = &rates["services"][0];
        let rate = service["connections_per_second"].as_f64().unwrap_or_default();
        // Those that an earlier story has ended may still drain.
        let is_used = |replica: &&Value| replica["connections_per_second"].as_f64() > Some(0.0);
        let replicas = service["replicas"].as_array().into_iter().flatten();
        let replicas = replicas.filter(is_used).count();
        println!("    {rate:.0} new connections/s to {replicas} replicas");
        let running = fixture.names("web")?.len();
        ensure!(rate > 1.0 && replicas == running, "`top` showed {rates}");
        Ok(())
    })?;
    expect_no_failures(&report)?;

    // What the nodes report of connections to a worker is what their client and the replicas saw.
    let replies = lab.fetch("client", &fixture.url(WORKER, HTTP)?, 10)?;
    let at_entry = json(fixture, MANAGER, &["flows", "--node", WORKER, "--limit", "10000"])?;
    let everywhere = json(fixture, MANAGER, &["flows", "--all-nodes", "--limit", "10000"])?;
    for reply in &replies {
        let flow = of_client(&at_entry["flows"], &reply.local);
        let flow = flow.with_context(|| format!("{WORKER} lists no flow of {reply:?}"))?;
        ensure!(
            flow["backend"]["task"] == *reply.task
                && flow["service"] == "web"
                && flow["ingress"] == "network",
            "{reply:?} is listed as {flow}"
        );
        let node = flow["backend"]["node"].as_str().unwrap_or_default();
        if node == WORKER {
            continue;
        }
        let nodes = everywhere["nodes"].as_array().context("no nodes")?;
        let of_replica = nodes.iter().find(|listed| listed["hostname"] == node);
        let flow = of_replica.and_then(|listed| of_client(&listed["flows"], &reply.local));
        let flow = flow.with_context(|| format!("{node} lists no flow of {reply:?}"))?;
        ensure!(
            flow["ingress"] == "tunnel" && flow["entry_node"] == WORKER,
            "{reply:?} is listed as {flow}"
        );
    }

    // What is forecast happens.
    let client = replies[0].local.rsplit_once(':').context("no client")?.0;
    let dialled = format!("{}:{HTTP}", lab.address(WORKER)?);
    for _ in 0..5 {
        let arguments = ["explain", client, &dialled, "--node", WORKER];
        let explained = json(fixture, MANAGER, &arguments)?;
        let replies = lab.fetch("client", &fixture.url(WORKER, HTTP)?, 1)?;
        ensure!(
            explained["backend"]["task"] == *replies[0].task,
            "{} answered, after {explained}",
            replies[0].task
        );
    }

    opened_connections(fixture).context("what `monitor` shows")?;

    let refused = refusal(fixture, OTHER_WORKER, &["flows", "--node", WORKER])?;
    ensure!(
        refused.contains("only a manager can ask"),
        "{OTHER_WORKER}: `{refused}`"
    );
    lab.kill_agent(OTHER_WORKER)?;
    let limit = Duration::from_secs(3) * patience();
    wait_until("the missing node to be named", limit, || {
        let refused = refusal(fixture, MANAGER, &["flows", "--all-nodes"])?;
        ensure!(
            refused.contains("meshctl: node3: its agent is not connected"),
            "it printed `{refused}`"
        );
        Ok(())
    })?;
    lab.start_agent(OTHER_WORKER, fixture.arguments)?;
    fixture.until_all_know("web", limit)
}

/// One replica refuses for a while, and then does not answer. What the other ones do is not taken for its
/// doing.
fn signals(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let tasks = lab.running_tasks("web")?;
    let task = tasks.iter().find(|task| task.node != WORKER);
    let task = task.context("no replica is on another node")?;
    let before = Scrape::of(fixture, task)?;

    expect_failure(&fetch(fixture, 5)?, None)?;
    let answered = Scrape::of(fixture, task)?;
    answered.expect_since(&before, [0.0, 0.0, 0.0, 1.0, 5.0])?;

    for (target, outcome, expected) in [
        // RST in place of SYN-ACK.
        (
            &["REJECT", "--reject-with", "tcp-reset"][..],
            "refused",
            [1.0, 0.0, 0.0, 0.0, 4.0],
        ),
        // The client sends its SYN again after a second.
        (&["DROP"], "timeout", [0.0, 1.0, 1.0, 0.0, 4.0]),
    ] {
        let rule = |action: &str| {
            let container = lab.container_of(task)?;
            let process = lab.docker(&task.node, ["inspect", "--format", "{{.State.Pid}}", &container])?;
            let mut command = vec!["nsenter", "--target", process.trim(), "--net", "iptables", action];
            command.extend(["INPUT", "--protocol", "tcp", "--dport", "80", "--jump"]);
            command.extend(target);
            lab.run(&task.node, command)
        };
        let before = Scrape::of(fixture, task)?;
        rule("--append")?;
        let found = fetch(fixture, 5)
            .and_then(|replies| expect_failure(&replies, Some(outcome)))
            .and_then(|()| Scrape::of(fixture, task)?.expect_since(&before, expected));
        rule("--delete")?;
        found.with_context(|| format!("while {} has {target:?}", task.name))?;
    }
    expect_failure(&fetch(fixture, 5)?, None)
}

/// Requests at a worker, for longer than it takes to send a SYN again.
fn fetch(fixture: &Fixture, count: usize) -> Result<Vec<Reply>> {
    let url = fixture.url(WORKER, HTTP)?;
    fixture
        .lab
        .fetch_with("client", &url, count, &["--timeout", "1500"])
}

/// One of the requests has failed so, or none.
fn expect_failure(replies: &[Reply], expected: Option<&str>) -> Result<()> {
    let outcomes = replies.iter().map(|reply| reply.outcome.as_str());
    let failures: Vec<&str> = outcomes.filter(|outcome| *outcome != "answered").collect();
    ensure!(
        failures == expected.as_slice(),
        "the failures of {replies:?} are not {expected:?}"
    );
    Ok(())
}

/// What a worker's metrics say of a replica: refused, unanswered, sent again, answered; and the answers of
/// all.
struct Scrape([f64; 5]);

impl Scrape {
    fn of(fixture: &Fixture, task: &ServiceTask) -> Result<Self> {
        let text = fixture.lab.metrics(WORKER)?;
        let port = format!("port=\"{HTTP}\"");
        let name = format!("task=\"{}\"", task.name);
        let info = text.lines().find(|line| {
            line.starts_with("mesh_backend_info{") && line.contains(&name) && line.contains(&port)
        });
        let backend = info
            .and_then(|line| line.split_once("backend=\""))
            .and_then(|(_, rest)| rest.split_once('"'));
        let (backend, _) = backend.with_context(|| format!("{} has no series: {text}", task.name))?;
        let labels = [format!("backend=\"{backend}\""), port];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        let sum =
            |metric: &str, labels: &[&str]| metric_sum(&text, &format!("mesh_backend_{metric}"), labels);
        let answers = |labels: &[&str]| {
            let count = sum("connect_duration_seconds_count", labels);
            // No answer takes as long as that here.
            let fast = [labels, &["le=\"1\""]].concat();
            let fast = sum("connect_duration_seconds_bucket", &fast);
            ensure!(fast == count, "{fast} of {count} answers took less than a second");
            Ok(count)
        };
        Ok(Self([
            sum("connections_refused_total", &labels),
            sum("connections_unanswered_total", &labels),
            sum("syns_retransmitted_total", &labels),
            answers(&labels)?,
            answers(&labels[1..])?,
        ]))
    }

    fn expect_since(&self, before: &Self, expected: [f64; 5]) -> Result<()> {
        let since: Vec<f64> = self
            .0
            .iter()
            .zip(before.0)
            .map(|(now, before)| now - before)
            .collect();
        ensure!(
            since == expected,
            "refused, unanswered, sent again, answered, and answered by all: {since:?} instead of {expected:?}"
        );
        Ok(())
    }
}

/// A manager watches connections that open at a worker, and sees the replica which answers each.
fn opened_connections(fixture: &Fixture) -> Result<()> {
    let arguments = [
        "monitor",
        "--all-nodes",
        "--service",
        "web",
        "--event",
        "opened",
        "--count",
        "8",
        "--format",
        "json",
    ];
    let mut replies = Vec::new();
    let lines = thread::scope(|scope| {
        let watching = scope.spawn(|| fixture.lab.meshctl(MANAGER, &arguments));
        let limit = LIMIT * patience();
        wait_until("`monitor` to have seen enough", limit, || {
            replies.extend(fixture.lab.fetch("client", &fixture.url(WORKER, HTTP)?, 1)?);
            ensure!(
                watching.is_finished(),
                "it saw too little of {} connections",
                replies.len()
            );
            Ok(())
        })
        .and_then(|()| watching.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })?;
    let events: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(events.len() == 8, "it printed `{lines}`");
    let mut others = Vec::new();
    for event in &events {
        let source = format!(
            "{}:{}",
            event["source"].as_str().unwrap_or_default(),
            event["source_port"]
        );
        let reply = replies.iter().find(|reply| reply.local == source);
        let reply = reply.with_context(|| format!("no request was sent from {source}: {event}"))?;
        ensure!(event["node"] == WORKER, "{reply:?} was shown as {event}");
        if event["backend"]["task"] != *reply.task {
            others.push(format!("{reply:?} was shown as {event}"));
        }
    }
    // One may have been moved on after it was opened.
    ensure!(others.len() <= 1, "{others:#?}, of {replies:?} and `{lines}`");
    if let Some(other) = others.first() {
        println!("    another replica answered: {other}, of {replies:?} and `{lines}`");
    }
    Ok(())
}

fn json(fixture: &Fixture, node: &str, arguments: &[&str]) -> Result<Value> {
    let arguments = [arguments, &["--format", "json"]].concat();
    let text = fixture.lab.meshctl(node, &arguments)?;
    serde_json::from_str(&text).with_context(|| format!("meshctl {arguments:?} printed `{text}`"))
}

/// Why a command fails, as it must.
fn refusal(fixture: &Fixture, node: &str, arguments: &[&str]) -> Result<String> {
    match fixture.lab.meshctl(node, arguments) {
        Ok(text) => anyhow::bail!("meshctl {arguments:?} on {node} printed `{text}`"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn of_client<'a>(flows: &'a Value, client: &str) -> Option<&'a Value> {
    flows.as_array()?.iter().find(|flow| flow["client"] == client)
}
