//! The lab itself: two side by side, each cleaned up whole, also when it is killed or interrupted.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::{
    build::cargo,
    command::{command, run},
    lab::{Lab, LabOptions, process::Process, space::cgroup2, state::State, wait_until},
};

/// One story: its name and what it does.
type Story = (&'static str, fn() -> Result<()>);

const STORIES: [Story; 3] = [
    ("two_labs_run_side_by_side_and_leave_nothing", side_by_side),
    ("an_interrupted_lab_leaves_nothing", interrupted),
    ("a_killed_lab_is_cleaned_up_by_the_next_command", killed),
];

/// The stories as tests. Each makes labs of its own.
pub(crate) fn trials() -> Vec<Trial> {
    STORIES
        .map(|(name, story)| {
            Trial::test(format!("labs::{name}"), move || {
                story().map_err(|error| format!("{error:?}").into())
            })
        })
        .into()
}

fn options(name: &str, nodes: usize) -> LabOptions {
    LabOptions {
        name: name.into(),
        nodes,
        ..LabOptions::default()
    }
}

fn side_by_side() -> Result<()> {
    let links = run(&mut command(["ip", "-oneline", "link"]))?;
    let (one, two) = (Lab::up(&options("one", 2))?, Lab::up(&options("two", 1))?);
    ensure!(
        one.address("node1")? != two.address("node1")?,
        "both labs have the same addresses"
    );
    let nodes = one.docker("node1", ["node", "ls", "--format", "{{.Hostname}}"])?;
    let mut names: Vec<&str> = nodes.lines().collect();
    names.sort_unstable();
    ensure!(names == ["node1", "node2"], "the Swarm of one has {names:?}");
    one.create_service("web", 2, &[], &[])?;
    one.down()?;
    ensure!(
        two.docker("node1", ["node", "ls"])?.contains("node1"),
        "the other lab went down as well"
    );
    two.down()?;
    for name in ["one", "two"] {
        expect_nothing_of(name)?;
    }
    let after = run(&mut command(["ip", "-oneline", "link"]))?;
    ensure!(links == after, "the host's links were\n{links}\nand are\n{after}");
    Ok(())
}

fn interrupted() -> Result<()> {
    let mut child = start("interrupted")?;
    let state = until_started("interrupted")?;
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT).context("could not interrupt")?;
    let status = child.wait().context("could not wait")?;
    ensure!(!status.success(), "an interrupted command succeeded");
    ensure!(
        state.spaces.iter().all(|space| !space.init.is_alive()),
        "a namespace is left"
    );
    expect_nothing_of("interrupted")
}

fn killed() -> Result<()> {
    let mut child = start("killed")?;
    let state = until_started("killed")?;
    child.kill().context("could not kill")?;
    child.wait().context("could not wait")?;
    run(&mut command([
        xtask()?.as_str(),
        "lab",
        "down",
        "--name",
        "killed",
    ]))?;
    ensure!(
        state.spaces.iter().all(|space| !space.init.is_alive()),
        "a namespace is left"
    );
    expect_nothing_of("killed")
}

/// The command as a user runs it, built by the run of this test's `cargo xtask test` or here.
fn start(name: &str) -> Result<std::process::Child> {
    run(&mut cargo(["build", "--quiet", "--package", "xtask"]))?;
    command([xtask()?.as_str(), "lab", "up", "--name", name])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("could not start `xtask lab up`")
}

fn xtask() -> Result<String> {
    let program = xtask::paths::target().join("debug/xtask");
    Ok(program
        .to_str()
        .context("the target folder's path is not UTF-8")?
        .to_owned())
}

/// Waits until the lab is half up: some namespaces are there, and an engine.
fn until_started(name: &str) -> Result<State> {
    wait_until("the lab to be half up", Duration::from_secs(30), || {
        let Some(state) = State::load(name)? else {
            bail!("it is not registered")
        };
        ensure!(
            state.spaces.len() >= 3,
            "{} namespaces are there",
            state.spaces.len()
        );
        Ok(state)
    })
}

fn expect_nothing_of(name: &str) -> Result<()> {
    ensure!(State::load(name)?.is_none(), "lab {name} is still registered");
    let folder = xtask::paths::target().join("lab").join(name);
    ensure!(!folder.exists(), "{} is left", folder.display());
    let cgroup = cgroup2()?.join("mesh-lab").join(name);
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    let mounts = fs::read_to_string("/proc/self/mounts").context("could not read the mount table")?;
    let needle = format!("/lab/{name}");
    ensure!(!mounts.contains(&needle), "a mount below {needle} is left");
    for entry in fs::read_dir("/proc").context("could not read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
        ensure!(
            !(line.contains(&needle) && Process::of(pid).is_ok()),
            "process {pid} is left: {line}"
        );
    }
    Ok(())
}
