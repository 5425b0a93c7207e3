//! A node without access to the store: it runs a task through one manager, and goes on through another one.

use std::{fs, io::Write as _, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::lab::{Lab, wait_until};

use crate::{
    Story,
    certificates::Authority,
    etcd::Etcd,
    fixture::{Fixture, PATIENCE, UNAVAILABLE, answered, web},
    several::QUICK_HEARTBEAT,
};

pub(crate) const STORIES: [Story; 1] = [(
    "a_worker_without_access_to_the_store_runs_its_tasks_and_outlives_a_manager",
    worker,
)];

const MANAGERS: [&str; 2] = ["node1", "node2"];
const WORKER: &str = "node3";
/// Where managers' agents listen.
const PORT: u16 = 9468;

fn worker() -> Result<()> {
    let mut fixture = Fixture::up("orch-worker", 3)?;
    let etcd = Etcd::start(&fixture.lab)?;
    let folder = fixture.lab.state().data.join("workers");
    fs::create_dir_all(&folder)?;
    let authority = Authority::new("workers")?;
    let issued = authority.issue(WORKER, vec![fixture.lab.address(WORKER)?])?;
    let file = |name: &str, text: String| -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        path.to_str()
            .map(str::to_owned)
            .context("the lab's path is not UTF-8")
    };
    let workers_ca = file("ca.pem", authority.pem())?;
    let certificate = file("node3.pem", issued.certificate)?;
    let key = file("node3.key", issued.key)?;
    for node in MANAGERS {
        let mut arguments = etcd.arguments(&fixture.lab, node)?;
        arguments.extend(["--heartbeat", QUICK_HEARTBEAT, "--workers-ca", &workers_ca].map(str::to_owned));
        fixture.more.insert(node.to_owned(), arguments);
    }
    let managers: Vec<String> = MANAGERS
        .iter()
        .map(|node| Ok(format!("{}:{PORT}", fixture.lab.address(node)?)))
        .collect::<Result<_>>()?;
    let tls = Tls {
        ca: etcd.authority()?,
        certificate,
        key,
    };
    let outcome = live(&fixture, &managers, &tls);
    fixture.end(outcome)
}

/// A worker's files for TLS.
struct Tls {
    ca: String,
    certificate: String,
    key: String,
}

fn live(fixture: &Fixture, managers: &[String], tls: &Tls) -> Result<()> {
    let lab = &fixture.lab;
    fixture.start_agent("node1")?;
    let secrets = |node: &str| lab.orchestrator_folder(node).join("secrets.key");
    fs::create_dir_all(lab.orchestrator_folder("node2"))?;
    fs::copy(secrets("node1"), secrets("node2"))?;
    fixture.start_agent("node2")?;
    fixture.meshctl("node1", &["node", "admit", WORKER, "--label", "kind=edge"])?;
    let list = managers.join(",");
    let more = [
        "--heartbeat",
        QUICK_HEARTBEAT,
        "--managers",
        &list,
        "--agents-ca",
        &tls.ca,
    ];
    let files = ["--agents-certificate", &tls.certificate, "--agents-key", &tls.key];
    let arguments = lab.orchestrator_arguments(WORKER, &[&more[..], &files[..]].concat())?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    lab.start_agent(WORKER, &arguments)?;

    let api = fixture.api("node1")?;
    for (name, data) in [("own", "b3BlbiBzZXNhbWU="), ("others", "aGlkZGVu")] {
        api.call(
            "POST",
            "/v1/secrets",
            Some(&json!({"name": name, "labels": {}, "data": data})),
        )?;
    }
    let mut spec = web(1, "start-first");
    spec["task_template"]["container_spec"]["secrets"] = json!([{"source": "own"}]);
    spec["task_template"]["placement"] = json!({"constraints": ["node.labels.kind == edge"]});
    fixture.change("node1", "POST", "/v1/services", &spec)?;
    let mut elsewhere = web(1, "start-first");
    elsewhere["name"] = json!("elsewhere");
    elsewhere["endpoint_spec"] = json!({});
    elsewhere["task_template"]["container_spec"]["secrets"] = json!([{"source": "others"}]);
    elsewhere["task_template"]["placement"] = json!({"constraints": ["node.role == manager"]});
    fixture.change("node1", "POST", "/v1/services", &elsewhere)?;
    reached(fixture, &["node1", "node2", WORKER], "node1", 1)?;
    let container = fixture.containers(WORKER)?.pop_first().context("no container")?;
    let read = lab.docker(
        WORKER,
        ["exec", &container, "/bin/busybox", "cat", "/run/secrets/own"],
    )?;
    ensure!(read == "open sesame", "{read}");
    ensure!(!secrets(WORKER).exists(), "a worker has a key of the secrets");
    let logs = api.send("GET", "/v1/services/web/logs", None)?;
    ensure!(logs.status == 200 && !logs.body.contains("could not"), "{logs:?}");
    let refused = fixture.api(WORKER)?.send("GET", "/v1/services", None)?;
    ensure!(
        refused.status == UNAVAILABLE && refused.body.contains("this node is not a manager"),
        "{refused:?}"
    );
    refusals(fixture, &managers[0], tls)?;

    // The manager that it follows dies.
    let log = fs::read_to_string(lab.agent_log(WORKER))?;
    let followed = log.lines().rfind(|line| line.contains("follows a manager"));
    let followed = followed.context("the worker follows no manager")?;
    let (lost, left) = match followed.contains(&managers[0]) {
        true => ("node1", "node2"),
        false => ("node2", "node1"),
    };
    let nodes = [left, WORKER];
    fixture.none_fails(&nodes, || {
        lab.kill_agent(lost)?;
        fixture.change(left, "POST", "/v1/services/web/scale", &json!({"replicas": 2}))?;
        reached(fixture, &nodes, left, 2)
    })?;
    let containers = fixture.containers(WORKER)?;
    ensure!(
        containers.contains(&container),
        "{containers:?} run, without {container}"
    );
    Ok(())
}

/// What the worker's certificate does not open.
fn refusals(fixture: &Fixture, manager: &str, tls: &Tls) -> Result<()> {
    let api = fixture.api("node1")?;
    let other = wait_until("another node's task", PATIENCE, || {
        let running = api.running("elsewhere")?;
        let id = running.first().and_then(|task| task["id"].as_str());
        id.map(str::to_owned).context("it does not run")
    })?;
    let key = format!("/tasks/{other}");
    let ask = |request: Value| ask(&fixture.lab, manager, tls, "/v1/worker/ask", Some(&request));
    let own = ask(json!({"reveal": {"kind": "secrets", "name": "own"}}))?;
    ensure!(own.contains("b3BlbiBzZXNhbWU="), "{own}");
    for request in [
        json!({"reveal": {"kind": "secrets", "name": "others"}}),
        json!({"get": {"key": key}}),
        json!({"get": {"key": "/secrets/own"}}),
        json!({"commit": {"expected": [], "writes": [[key, "{}"]], "lease": null}}),
        json!({"commit": {"expected": [], "writes": [[key, null]], "lease": null}}),
        json!({"commit": {"expected": [], "writes": [["/nodes/x", "{}"]], "lease": null}}),
    ] {
        let answer = ask(request.clone())?;
        ensure!(answer.contains("refused"), "{request}: {answer}");
    }
    for path in ["/v1/secrets", "/v1/services", "/v1/relayed/drain"] {
        let answer = self::ask(&fixture.lab, manager, tls, path, None)?;
        ensure!(answer == "workers may not use this", "{path}: {answer}");
    }
    Ok(())
}

/// What a manager's agent answers the holder of the worker's certificate.
fn ask(lab: &Lab, manager: &str, tls: &Tls, path: &str, body: Option<&Value>) -> Result<String> {
    let url = format!("https://{manager}{path}");
    let curl = [
        "curl",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        "30",
    ];
    let files = ["--cacert", &tls.ca, "--cert", &tls.certificate, "--key", &tls.key];
    let body_flags: &[&str] = match body {
        Some(_) => &[
            "--header",
            "content-type: application/json",
            "--data-binary",
            "@-",
        ],
        None => &[],
    };
    let arguments = curl
        .into_iter()
        .chain(files)
        .chain(body_flags.iter().copied())
        .chain([url.as_str()]);
    let mut curl = lab
        .command(WORKER, arguments)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let text = body.map(Value::to_string).unwrap_or_default();
    curl.stdin
        .take()
        .context("no input")?
        .write_all(text.as_bytes())?;
    let output = curl.wait_with_output()?;
    ensure!(output.status.success(), "curl failed: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until the worker runs this many replicas, and nodes spread over them.
fn reached(fixture: &Fixture, nodes: &[&str], by: &str, replicas: usize) -> Result<()> {
    let api = fixture.api(by)?;
    wait_until(&format!("{replicas} replicas on {WORKER}"), PATIENCE, || {
        let running = api.running("web")?;
        let is_there = |task: &Value| task["node_hostname"] == WORKER;
        if running.len() != replicas || !running.iter().all(is_there) {
            bail!("{:#}", api.get("/v1/services/web/tasks")?);
        }
        Ok(())
    })?;
    for node in nodes {
        let url = fixture.url(node)?;
        wait_until(&format!("{node} to spread over {replicas}"), PATIENCE, || {
            let replies = fixture
                .lab
                .fetch_with("client", &url, replicas * 2, &["--timeout", "500"])?;
            let tasks = answered(&replies)?;
            ensure!(tasks.len() == replicas, "{tasks:?} answered");
            Ok(())
        })?;
    }
    Ok(())
}
