//! The agent as a global service: `deploy/stack.yml` on three nodes, updated one by one under load, and
//! nothing left after `deploy/clean.yml`.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use xtask::{
    command::run,
    lab::{
        Lab, engine,
        space::{NODE_CGROUP, NODE_DOCKER_ROOT},
        wait_until,
    },
    paths,
};

use crate::{
    expect::{expect_answers, expect_client_address, in_rotation},
    fixture::{Fixture, HTTP},
    group::Story,
    load::{KEPT, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[(
    "the_stack_file_runs_the_mesh_loses_nothing_in_an_update_and_is_cleaned_away",
    stack,
)];

/// The most the agent's image may hold.
const IMAGE_BYTES: u64 = 32_000_000;

fn stack(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    build_image(lab)?;
    let mut before = Vec::new();
    for node in lab.nodes() {
        before.push(fixture.network(node)?);
    }

    deploy(lab, "stack.yml", "mesh")?;
    let outcome = fixture
        .until_all_know("web", Duration::from_secs(60))
        .and_then(|()| look_around(fixture))
        .and_then(|()| update(fixture));
    if let Err(error) = outcome {
        let logs = lab
            .docker("node1", ["service", "logs", "--tail", "15", "mesh_agent"])
            .unwrap_or_default();
        let tasks = lab
            .docker("node1", ["service", "ps", "--no-trunc", "mesh_agent"])
            .unwrap_or_default();
        return Err(error).context(format!("the agents' tasks:\n{tasks}\nand logs:\n{logs}"));
    }

    lab.docker("node1", ["stack", "rm", "mesh"])?;
    lab.remove_service("mesh_agent")?;
    clean(lab)?;
    for (node, before) in lab.nodes().into_iter().zip(before) {
        wait_until(&format!("{node} to be as before"), Duration::from_secs(5), || {
            let after = fixture.network(node)?;
            ensure!(
                before == after,
                "the network of {node} was\n{before}\nand is\n{after}"
            );
            fixture.no_pins_left(node)
        })?;
    }
    Ok(())
}

/// The image as the Dockerfile says, from the static programs.
fn build_image(lab: &Lab) -> Result<()> {
    let context = lab.state().data.join("image");
    fs::create_dir_all(&context).with_context(|| format!("could not create {}", context.display()))?;
    let from = paths::program("mesh-agent");
    ensure!(from.is_file(), "mesh-agent is not built; run `cargo xtask build`");
    fs::copy(&from, context.join("mesh-agent"))
        .with_context(|| format!("could not copy {}", from.display()))?;
    std::os::unix::fs::symlink("mesh-agent", context.join("meshctl")).context("could not link meshctl")?;
    let file = paths::workspace().join("deploy/Dockerfile");
    let (file, context) = (text(&file)?, text(&context)?);
    lab.on_each_node(|node| {
        let arguments = [
            "build",
            "--quiet",
            "--tag",
            "mesh-agent:latest",
            "--file",
            file,
            context,
        ];
        run(engine::docker(lab.state(), node, arguments)?.env("DOCKER_BUILDKIT", "0")).map(drop)
    })?;
    let size = lab.docker(
        "node1",
        ["image", "inspect", "--format", "{{.Size}}", "mesh-agent:latest"],
    )?;
    let size: u64 = size
        .parse()
        .with_context(|| format!("the image's size is `{size}`"))?;
    ensure!(
        size < IMAGE_BYTES,
        "the image holds {size} bytes, more than {IMAGE_BYTES}"
    );
    Ok(())
}

/// A new release, and one that cannot work: no request and no connection is lost by either.
fn update(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let report = under_load(fixture, &lab.nodes(), 5, KEPT, || {
        // The agents are replaced one by one. With shorter times than the file's, for the test.
        // docker's own wait returns early where Swarm begins late.
        let update = ["service", "update", "--detach", "--quiet"];
        let mut arguments = update.to_vec();
        arguments.extend(["--force", "--update-monitor", "1s", "--health-interval", "1s"]);
        // An agent that can work is ready before, also on a slow machine.
        arguments.extend(["--health-start-period", "60s", "--health-retries", "2"]);
        arguments.push("mesh_agent");
        lab.docker("node1", arguments)?;
        until_update(lab, "completed")?;
        let good = agents(lab)?;
        let mut arguments = update.to_vec();
        arguments.extend(["--env-add", "MESH_DOCKER_SOCKET=/nowhere.sock"]);
        // This one is never ready.
        arguments.extend(["--health-start-period", "5s", "mesh_agent"]);
        lab.docker("node1", arguments)?;
        until_update(lab, "paused")?;
        let left = agents(lab)?.intersection(&good).count();
        ensure!(
            left == lab.nodes().len() - 1,
            "of the agents that worked, {left} still run"
        );
        lab.docker("node1", ["service", "rollback", "--detach", "mesh_agent"])?;
        until_update(lab, "rollback_completed")
    })?;
    expect_no_failures(&report).context("while the stack's agents were updated")?;
    fixture.until_all_know("web", Duration::from_secs(10))
}

/// Waits for the state of the last update of the agents.
fn until_update(lab: &Lab, state: &str) -> Result<()> {
    wait_until(
        &format!("the update to be {state}"),
        Duration::from_secs(60),
        || {
            let arguments = [
                "service",
                "inspect",
                "--format",
                "{{.UpdateStatus.State}}",
                "mesh_agent",
            ];
            let now = lab.docker("node1", arguments)?;
            ensure!(now == state, "the update is {now}");
            Ok(())
        },
    )
}

/// The agents' tasks that are to run.
fn agents(lab: &Lab) -> Result<BTreeSet<String>> {
    let arguments = [
        "service",
        "ps",
        "--filter",
        "desired-state=running",
        "--format",
        "{{.ID}}",
        "mesh_agent",
    ];
    let list = lab.docker("node1", arguments)?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn clean(lab: &Lab) -> Result<()> {
    deploy(lab, "clean.yml", "mesh-clean")?;
    let list = ["stack", "ps", "--format", "{{.CurrentState}}", "mesh-clean"];
    wait_until("every node to be cleaned", Duration::from_secs(30), || {
        let states = lab.docker("node1", list)?;
        let complete = states
            .lines()
            .filter(|state| state.starts_with("Complete"))
            .count();
        ensure!(complete == lab.nodes().len(), "the tasks are: {states}");
        Ok(())
    })?;
    lab.docker("node1", ["stack", "rm", "mesh-clean"]).map(drop)
}

fn deploy(lab: &Lab, file: &str, stack: &str) -> Result<()> {
    let file = paths::workspace().join("deploy").join(file);
    let arguments = [
        "stack",
        "deploy",
        "--resolve-image",
        "never",
        "--compose-file",
        text(&file)?,
        stack,
    ];
    let mut deploy = engine::docker(lab.state(), "node1", arguments)?;
    deploy
        .env("DOCKER_ROOT", NODE_DOCKER_ROOT)
        .env("CGROUP", NODE_CGROUP)
        .env("MESH_XDP", "native");
    run(&mut deploy).map(drop)
}

fn look_around(fixture: &Fixture) -> Result<()> {
    let client = fixture.lab.address("client")?;
    for node in fixture.lab.nodes() {
        let url = fixture.url(node, HTTP)?;
        let replies = in_rotation(|| fixture.lab.fetch("client", &url, 10))
            .with_context(|| format!("from the client to {node}"))?;
        expect_client_address(&replies, &client)?;
        let replies = fixture
            .lab
            .fetch(node, &format!("http://localhost:{HTTP}/"), 10)?;
        expect_answers(&replies).with_context(|| format!("on {node} to localhost"))?;
        let filter = "label=com.docker.swarm.service.name=mesh_agent";
        let list = fixture.lab.docker(node, ["ps", "--quiet", "--filter", filter])?;
        let agent = list
            .lines()
            .next()
            .with_context(|| format!("no agent runs on {node}"))?;
        let routes = fixture.lab.docker(node, ["exec", agent, "/meshctl", "routes"])?;
        ensure!(
            routes.contains("web"),
            "meshctl in the container knows no `web`: {routes}"
        );
        // The socket is where meshctl on the node looks for it.
        fixture
            .lab
            .meshctl(node, &["status"])
            .with_context(|| format!("meshctl on {node}"))?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
