//! The agent as a global service: `deploy/stack.yml` on three nodes, and nothing left when it is removed.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use xtask::{
    command::run,
    lab::{
        Lab, LabOptions, engine,
        space::{NODE_CGROUP, NODE_DOCKER_ROOT},
        wait_until,
    },
    paths,
};

#[path = "support/mod.rs"]
mod support;

use support::{HTTP, Stage, expect_answers, expect_client_address, expect_rotation};

/// The most the agent's image may hold.
const IMAGE_BYTES: u64 = 25_000_000;

fn main() -> ExitCode {
    let given = Arguments::from_args();
    let story = Trial::test(
        "the_stack_file_runs_the_mesh_on_every_node_and_leaves_nothing",
        || story().map_err(|error| format!("{error:?}").into()),
    );
    libtest_mimic::run(&given, vec![story]).exit_code()
}

fn story() -> Result<()> {
    let lab = Lab::up(&LabOptions {
        name: "stack".into(),
        ..LabOptions::default()
    })?;
    let stage = Stage { lab, arguments: &[] };
    let lab = &stage.lab;
    lab.create_service("web", 5, &["9200:80", "9201:81/udp"], &[])?;
    build_image(lab)?;
    let mut before = Vec::new();
    for node in lab.nodes() {
        before.push(stage.network(node)?);
    }

    deploy(lab)?;
    let outcome = stage
        .until_all_know("web", Duration::from_secs(60))
        .and_then(|()| look_around(&stage));
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
    for (node, before) in lab.nodes().into_iter().zip(before) {
        wait_until(&format!("{node} to be as before"), Duration::from_secs(5), || {
            let after = stage.network(node)?;
            ensure!(
                before == after,
                "the network of {node} was\n{before}\nand is\n{after}"
            );
            stage.no_pins_left(node)
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
        let words = [
            "build",
            "--quiet",
            "--tag",
            "mesh-agent:latest",
            "--file",
            file,
            context,
        ];
        run(engine::docker(lab.state(), node, words)?.env("DOCKER_BUILDKIT", "0")).map(drop)
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

fn deploy(lab: &Lab) -> Result<()> {
    let file = paths::workspace().join("deploy/stack.yml");
    let words = [
        "stack",
        "deploy",
        "--resolve-image",
        "never",
        "--compose-file",
        text(&file)?,
        "mesh",
    ];
    let mut deploy = engine::docker(lab.state(), "node1", words)?;
    deploy
        .env("DOCKER_ROOT", NODE_DOCKER_ROOT)
        .env("CGROUP", NODE_CGROUP)
        .env("MESH_XDP", "native");
    run(&mut deploy).map(drop)
}

fn look_around(stage: &Stage) -> Result<()> {
    let client = stage.lab.address("client")?;
    for node in stage.lab.nodes() {
        let replies = stage.lab.fetch("client", &stage.url(node, HTTP)?, 10)?;
        expect_rotation(&replies, 5).with_context(|| format!("from the client to {node}"))?;
        expect_client_address(&replies, &client)?;
        let replies = stage.lab.fetch(node, &format!("http://localhost:{HTTP}/"), 10)?;
        expect_answers(&replies).with_context(|| format!("on {node} to localhost"))?;
        let filter = "label=com.docker.swarm.service.name=mesh_agent";
        let list = stage.lab.docker(node, ["ps", "--quiet", "--filter", filter])?;
        let agent = list
            .lines()
            .next()
            .with_context(|| format!("no agent runs on {node}"))?;
        let routes = stage.lab.docker(node, ["exec", agent, "/meshctl", "routes"])?;
        ensure!(
            routes.contains("web"),
            "meshctl in the container knows no `web`: {routes}"
        );
        // The socket is where meshctl on the node looks for it.
        stage
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
