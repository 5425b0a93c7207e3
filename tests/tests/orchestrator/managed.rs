//! The mesh agent as a managed service: deployed by a command, tried, and rolled back if it fails.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use xtask::{
    command::run,
    lab::{engine, wait_until},
    paths,
};

use crate::{
    Story,
    fixture::{Fixture, PATIENCE, on_one_node},
};

pub(crate) const STORIES: [Story; 1] = [(
    "a_new_agent_is_deployed_under_load_and_a_bad_one_is_rolled_back",
    || on_one_node("managed", deployment),
)];

fn deployment(fixture: &Fixture) -> Result<()> {
    fixture.create_web(2, "stop-first")?;
    let containers = fixture.containers("node1")?;
    let pid = process(fixture, "node1")?;

    import_agent(fixture, "node1", "mesh-agent:2")?;
    fixture.without_a_failure(|| deploy(fixture, "mesh-agent:2"))?;
    let second = executable(fixture, "node1")?;
    ensure!(second.contains("/mesh/agent/"), "{second} runs");
    ensure!(process(fixture, "node1")? == pid, "the agent is another process");
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    expect_running(fixture, 1)?;
    fixture.until_running(2)?;

    let monitor = json!({"update_config": {"monitor": "1s"}, "rollback_config": {"monitor": "1s"}});
    fixture
        .api("node1")?
        .call("PATCH", "/v1/services/load-balancer", Some(&monitor))?;
    // Not a program: nothing is started.
    import(fixture, "node1", "mesh-agent:garbage", b"#!/bin/sh\nexit 0\n")?;
    refused(fixture, "mesh-agent:garbage", "not a 64-bit ELF program")?;
    ensure!(executable(fixture, "node1")? == second, "another program runs");
    ensure!(process(fixture, "node1")? == pid, "the agent is another process");

    // A program that ends at once: the service manager starts it three times, and it is rolled back.
    let ends_at_once = fs::read(paths::program("mesh-testbed"))?;
    import(fixture, "node1", "mesh-agent:broken", &ends_at_once)?;
    fixture.without_a_failure(|| {
        with_service_manager(fixture, "node1", || {
            refused(fixture, "mesh-agent:broken", "failed 3 times")
        })
    })?;
    ensure!(executable(fixture, "node1")? == second, "another program runs");
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    expect_running(fixture, 1)?;
    fixture.until_running(2)?;

    // The installed program starts the deployed one.
    fixture.lab.stop_agent("node1")?;
    fixture.start_agent("node1")?;
    ensure!(executable(fixture, "node1")? == second, "another program runs");
    fixture.until_running(2)?;

    fixture
        .lab
        .meshctl("node1", &["managed", "rm", "load-balancer"])?;
    ensure!(executable(fixture, "node1")? == second, "another program runs");
    ensure!(
        fixture.containers("node1")? == containers,
        "the containers have changed"
    );
    Ok(())
}

/// Deploys an image, and waits until all nodes run it.
pub(crate) fn deploy(fixture: &Fixture, image: &str) -> Result<()> {
    let arguments = ["managed", "deploy", "load-balancer", "--image", image];
    let output = fixture.meshctl("node1", &arguments)?;
    ensure!(output.starts_with("load-balancer"), "{output}");
    Ok(())
}

/// Deploys an image that must fail for this reason; the nodes then run the program they ran before.
fn refused(fixture: &Fixture, image: &str, reason: &str) -> Result<()> {
    let Err(error) = deploy(fixture, image) else {
        bail!("{image} was deployed");
    };
    let error = format!("{error:?}");
    ensure!(error.contains("rolled back") && error.contains(reason), "{error}");
    let arguments = ["service", "ps", "load-balancer", "--no-trunc"];
    let format = ["--format", "{{.Image}} {{.Error}}"];
    let listed = fixture
        .lab
        .meshctl("node1", &[&arguments[..], &format].concat())?;
    let is_reported = |line: &str| line.starts_with(image) && line.contains(reason);
    ensure!(listed.lines().any(is_reported), "{listed}");
    expect_running(fixture, 1)
}

/// All agents have the service's current specification.
pub(crate) fn expect_running(fixture: &Fixture, nodes: usize) -> Result<()> {
    let arguments = [
        "service",
        "ps",
        "load-balancer",
        "--filter",
        "desired-state=running",
    ];
    let format = ["--format", "{{.CurrentState}}"];
    // A node reports its task's state in its own time.
    wait_until("every agent to run", PATIENCE, || {
        let listed = fixture
            .lab
            .meshctl("node1", &[&arguments[..], &format].concat())?;
        let running = listed.lines().filter(|line| line.starts_with("Running"));
        ensure!(running.count() == nodes, "{listed}");
        Ok(())
    })
}

/// Restarts the agent whenever it ends, as a service manager does.
fn with_service_manager(fixture: &Fixture, node: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let arguments = fixture.lab.orchestrator_arguments(node, &[])?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let manager = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                if !fixture.lab.agent_is_running(node)? {
                    fixture.lab.spawn_agent(node, &arguments)?;
                }
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        let outcome = work();
        is_over.store(true, Ordering::Relaxed);
        match manager.join() {
            Ok(managed) => outcome.and(managed),
            Err(_) => bail!("the thread that restarts the agent panicked"),
        }
    })
}

/// Makes an image of another version of the agent: bytes that follow a program in its file do not matter to
/// it.
pub(crate) fn import_agent(fixture: &Fixture, node: &str, tag: &str) -> Result<()> {
    let mut program = fs::read(paths::program("mesh-agent"))?;
    program.extend(tag.as_bytes());
    import(fixture, node, tag, &program)
}

/// Makes an image with a program instead of the agent.
fn import(fixture: &Fixture, node: &str, tag: &str, program: &[u8]) -> Result<()> {
    let folder = fixture.lab.state().data.join(format!("image-{node}"));
    fs::create_dir_all(&folder)?;
    let path = folder.join("mesh-agent");
    let mut file = fs::File::create(&path)?;
    file.write_all(program)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    drop(file);
    let file = paths::workspace().join("deploy/Dockerfile");
    let arguments = [
        "build",
        "--quiet",
        "--tag",
        tag,
        "--file",
        text(&file)?,
        text(&folder)?,
    ];
    run(engine::docker(fixture.lab.state(), node, arguments)?.env("DOCKER_BUILDKIT", "0"))
        .with_context(|| format!("could not make the image {tag} on {node}"))?;
    Ok(())
}

/// The file that a node's agent runs.
pub(crate) fn executable(fixture: &Fixture, node: &str) -> Result<String> {
    let script = "readlink /proc/$(cat /run/mesh-agent.pid)/exe";
    fixture.lab.run(node, ["sh", "-euc", script])
}

/// The pid and the start time of a node's agent.
fn process(fixture: &Fixture, node: &str) -> Result<String> {
    let script = "pid=$(cat /run/mesh-agent.pid); echo $pid $(cut -d' ' -f22 /proc/$pid/stat)";
    fixture.lab.run(node, ["sh", "-euc", script])
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
