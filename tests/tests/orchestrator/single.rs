//! One node, with its objects in a file.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::{Lab, LabOptions, engine::SERVER_IMAGE, traffic::host, wait_until};

use crate::{
    Story,
    fixture::{Fixture, HTTP, PATIENCE, answered, on_one_node},
};

pub(crate) const STORIES: [Story; 6] = [
    ("one_node_runs_scales_updates_and_removes_a_service", || {
        on_one_node("orch-life", life)
    }),
    (
        "an_agent_that_was_killed_or_stopped_adopts_its_containers",
        || on_one_node("orch-adopt", adoption),
    ),
    ("a_task_that_ends_is_replaced_and_reports_the_reason", || {
        on_one_node("orch-ends", ends)
    }),
    ("secrets_and_limits_arrive_and_output_is_read", || {
        on_one_node("orch-inside", contents)
    }),
    ("a_silent_engine_fails_no_task", || {
        on_one_node("orch-silence", silence)
    }),
    ("a_node_in_a_swarm_refuses_the_orchestrator", refusal),
];

fn life(fixture: &Fixture) -> Result<()> {
    let api = fixture.api("node1")?;
    fixture.create_web(3, "stop-first")?;
    let client = fixture.lab.address("client")?;
    let replies = fixture.lab.fetch("client", &fixture.url("node1")?, 6)?;
    for reply in &replies {
        ensure!(host(&reply.peer) == client, "{} saw {}", reply.task, reply.peer);
    }
    let inside = fixture
        .lab
        .fetch("node1", &format!("http://127.0.0.1:{HTTP}/"), 6)?;
    ensure!(answered(&inside)?.len() == 3, "{inside:?}");

    for replicas in [5, 2] {
        api.call(
            "POST",
            "/v1/services/web/scale",
            Some(&json!({"replicas": replicas})),
        )?;
        fixture.until_running(replicas)?;
    }
    fixture.without_a_failure(|| fixture.roll("2"))?;
    let order = json!({"update_config": {"order": "start-first"}});
    api.call("PATCH", "/v1/services/web", Some(&order))?;
    fixture.without_a_failure(|| fixture.roll("3"))?;

    let logs = api.send("GET", "/v1/services/web/logs?tail=5", None)?;
    ensure!(logs.status == 200, "{logs:?}");
    api.call("DELETE", "/v1/services/web", None)?;
    wait_until("all containers to go", PATIENCE, || {
        let arguments = [
            "ps",
            "--all",
            "--filter",
            "label=mesh.task.id",
            "--format",
            "{{.Names}}",
        ];
        let left = fixture.lab.docker("node1", arguments)?;
        ensure!(left.is_empty(), "{left}");
        let tasks = api.get("/v1/tasks")?;
        ensure!(tasks == json!([]), "{tasks:#}");
        Ok(())
    })?;
    let refused = fixture
        .lab
        .connect("client", &format!("{}:{HTTP}", fixture.lab.address("node1")?))?;
    ensure!(refused.outcome == "refused", "{refused:?}");
    Ok(())
}

fn adoption(fixture: &Fixture) -> Result<()> {
    fixture.create_web(2, "stop-first")?;
    let containers = fixture.containers("node1")?;
    ensure!(containers.len() == 2, "{containers:?}");
    fixture.without_a_failure(|| {
        fixture.lab.kill_agent("node1")?;
        fixture.lab.start_orchestrator("node1", &["--on-stop", "keep"])?;
        // Nor is there one while an agent is away that was asked to stop.
        fixture.lab.stop_agent("node1")?;
        std::thread::sleep(Duration::from_secs(2));
        fixture.start_agent("node1")
    })?;
    fixture.until_running(2)?;
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    fixture.lab.stop_agent("node1")?;
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    fixture.start_agent("node1")?;
    fixture.until_running(2)?;
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    Ok(())
}

fn ends(fixture: &Fixture) -> Result<()> {
    fixture.create_web(2, "stop-first")?;
    let api = fixture.api("node1")?;
    let killed = fixture.containers("node1")?.pop_first().context("no container")?;
    fixture.lab.docker("node1", ["kill", &killed])?;
    wait_until("the failure to be reported", PATIENCE, || {
        let tasks = api.get("/v1/services/web/tasks")?;
        let ended = tasks
            .as_array()
            .into_iter()
            .flatten()
            .find(|task| task["status"]["container"] == killed.as_str())
            .context("the task is gone")?;
        ensure!(
            ended["status"]["state"] == "failed" && ended["status"]["exit_code"] == 137,
            "{:#}",
            ended["status"]
        );
        Ok(())
    })?;
    fixture.until_running(2)?;
    let bad = json!({
        "name": "missing",
        "task_template": {
            "container_spec": {"image": "mesh-lab/no-such-image:1"},
            "restart_policy": {"condition": "none"}
        }
    });
    api.call("POST", "/v1/services", Some(&bad))?;
    wait_until("the task to be rejected", PATIENCE, || {
        let tasks = api.get("/v1/services/missing/tasks")?;
        let status = &tasks[0]["status"];
        let error = status["error"].as_str().unwrap_or_default();
        ensure!(
            status["state"] == "rejected" && error.contains("no-such-image"),
            "{status:#}"
        );
        Ok(())
    })?;
    Ok(())
}

fn contents(fixture: &Fixture) -> Result<()> {
    let api = fixture.api("node1")?;
    // "open sesame"
    let secret = json!({"name": "key", "labels": {}, "data": "b3BlbiBzZXNhbWU="});
    api.call("POST", "/v1/secrets", Some(&secret))?;
    let script = "echo slot $SLOT; echo trouble >&2; exec sleep 1000";
    let spec = json!({
        "name": "inside",
        "task_template": {
            "container_spec": {
                "image": SERVER_IMAGE,
                "command": ["/bin/busybox", "sh", "-c", script],
                "env": ["SLOT={{.Task.Slot}}"],
                "stop_grace_period": "1s",
                "secrets": [{"source": "key", "mode": 0o400}]
            },
            "resources": {"limits": {"memory_bytes": 64 << 20, "pids": 20}}
        }
    });
    api.call("POST", "/v1/services", Some(&spec))?;
    let container = wait_until("the task to run", PATIENCE, || {
        let running = api.running("inside")?;
        let container = running
            .first()
            .and_then(|task| task["status"]["container"].as_str());
        container.map(str::to_owned).context("it does not run")
    })?;
    let arguments = ["exec", &container, "/bin/busybox", "cat", "/run/secrets/key"];
    let read = fixture.lab.docker("node1", arguments)?;
    ensure!(read == "open sesame", "{read}");
    let format = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.RestartPolicy.Name}}";
    let limits = fixture
        .lab
        .docker("node1", ["inspect", "--format", format, &container])?;
    ensure!(limits == format!("{} 20 no", 64 << 20), "{limits}");
    wait_until("its output", PATIENCE, || {
        let logs = api.send("GET", "/v1/services/inside/logs", None)?.body;
        let lines: Vec<Value> = logs
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| logs.clone())?;
        let has = |stream: &str, line: &str| {
            lines.iter().any(|found| {
                found["stream"] == stream && found["line"] == line && found["task_name"] == "inside.1"
            })
        };
        ensure!(has("stdout", "slot 1") && has("stderr", "trouble"), "{logs}");
        Ok(())
    })?;
    let log = std::fs::read_to_string(fixture.lab.agent_log("node1"))?;
    ensure!(!log.contains("sesame"), "the agent's log has the secret");
    Ok(())
}

fn silence(fixture: &Fixture) -> Result<()> {
    fixture.create_web(2, "stop-first")?;
    let api = fixture.api("node1")?;
    let before = api.get("/v1/services/web/tasks")?;
    fixture.lab.stop_engine("node1")?;
    wait_until("the engine to be reported missing", PATIENCE, || {
        let nodes = api.get("/v1/nodes")?;
        ensure!(nodes[0]["status"] == "unknown", "{nodes:#}");
        Ok(())
    })?;
    // It stops its containers as it ends, and the agent may have seen some of them end. No task is given up,
    // and none is started.
    let during = api.get("/v1/services/web/tasks")?;
    let live = during
        .as_array()
        .into_iter()
        .flatten()
        .filter(|task| task["desired"] == "running");
    ensure!(live.count() <= 2, "{before:#}\n{during:#}");
    fixture.lab.start_engine("node1")?;
    fixture.until_running(2)?;
    Ok(())
}

fn refusal() -> Result<()> {
    let lab = Lab::up(&LabOptions {
        name: "orch-swarm".into(),
        nodes: 1,
        ..LabOptions::default()
    })?;
    let program = xtask::paths::program("mesh-agent");
    let program = program.to_str().context("the path is not UTF-8")?;
    let outcome = lab.run(
        "node1",
        [program, "run", "--orchestrator", "--state-dir", "/run/mesh-state"],
    );
    let error = match outcome {
        Ok(output) => anyhow::bail!("it ran: {output}"),
        Err(error) => format!("{error:?}"),
    };
    ensure!(error.contains("docker swarm leave"), "{error}");
    lab.down()
}
