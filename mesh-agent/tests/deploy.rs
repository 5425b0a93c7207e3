//! The files in `deploy/` agree with the programs they deploy.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args as _;
use mesh_agent::{agent::CleanOptions, config::RunOptions};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// Needs promtool, from Debian's package prometheus.
#[test]
fn prometheus_takes_the_scrape_example() {
    let output = Command::new("promtool")
        .args(["check", "config"])
        .arg(deploy("prometheus.yml"))
        .output()
        .expect("promtool must be installed: apt-get install prometheus");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn the_stack_files_set_only_flags_of_their_commands() {
    let run = RunOptions::augment_args(clap::Command::new("run"));
    let clean = CleanOptions::augment_args(clap::Command::new("clean"));
    for (file, command, least) in [("stack.yml", run, 10), ("clean.yml", clean, 3)] {
        let known: BTreeSet<_> = command
            .get_arguments()
            .filter_map(|argument| argument.get_env()?.to_str())
            .collect();
        let stack = fs::read_to_string(deploy(file)).unwrap();
        let set: Vec<_> = stack
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("MESH_"))
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name)
            .collect();
        assert!(set.len() >= least, "the environment of {file} was found: {set:?}");
        for name in set {
            assert!(
                known.contains(name),
                "{name} is no flag of `mesh-agent {}`: {known:?}",
                command.get_name()
            );
        }
    }
}

#[test]
fn the_unit_may_write_where_the_agent_keeps_its_state() {
    let command = RunOptions::augment_args(clap::Command::new("run"));
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some("state-dir"))
        .expect("there is a --state-dir");
    let default = Path::new(&argument.get_default_values()[0]);
    let name = default
        .strip_prefix("/var/lib")
        .expect("systemd's state folders are there");
    let unit = fs::read_to_string(deploy("mesh-agent.service")).unwrap();
    let line = format!("StateDirectory={}", name.display());
    assert!(unit.lines().any(|found| found == line), "{line} is missing");
    // Programs of the agent are executed from there.
    assert!(!unit.lines().any(|line| line.starts_with("NoExecPaths=")));
}

#[test]
fn the_unit_is_watched_and_never_given_up() {
    let unit = fs::read_to_string(deploy("mesh-agent.service")).unwrap();
    for line in [
        "Type=notify",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "WatchdogSec=30",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line} is missing");
    }
}
