//! `cargo xtask demo --orchestrator`: services on one plain engine, their objects in a file, as a user of the
//! docker CLI would run them. Depends on `lab`.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::claims::Claims;
use crate::lab::{
    self, Lab, LabOptions,
    engine::SERVER_IMAGE,
    traffic::{Load, spread},
    wait_until,
};

const NODE: &str = "node1";
const SERVICE: &str = "web";
const PORT: u16 = 9200;
/// How long the replicas may take to reach the desired state.
const SOON: Duration = Duration::from_secs(20);

/// Brings the lab up and shows a service's life: created, scaled, updated, read, rolled by a webhook, rolled
/// back, saved.
///
/// # Errors
/// When the lab or the agent does not start.
pub(super) fn run(name: &str, check: bool) -> Result<ExitCode> {
    let lab = lab::cli::up(&LabOptions {
        name: name.to_owned(),
        nodes: 1,
        managers: 0,
        ..LabOptions::default()
    })?;
    lab.start_orchestrator(NODE, &[])?;
    println!("  the agent runs on {NODE}, with --orchestrator");
    let mut claims = Claims::default();
    let demo = Demo { lab: &lab };
    for (what, show) in SCENES {
        let outcome = show(&demo).map_err(|error| format!("{error:#}"));
        let failed = outcome.is_err();
        claims.claim((*what).to_owned(), outcome);
        if failed {
            break;
        }
    }
    let code = claims.end(lab, check)?;
    if !check {
        println!(
            "\nThe lab is still up. Look around:\n\
             \x20 cargo xtask lab exec {NODE} -- meshctl service ls\n\
             \x20 cargo xtask lab exec {NODE} -- meshctl service ps {SERVICE}\n\
             Take it down:\n\
             \x20 cargo xtask lab down"
        );
    }
    Ok(code)
}

type Scene = (&'static str, fn(&Demo<'_>) -> Result<()>);

const SCENES: &[Scene] = &[
    ("create: three replicas answer", create),
    ("scale: five replicas answer", scale),
    ("update: every task is replaced, and no request fails", update),
    ("logs: the output of all tasks is merged", logs),
    ("webhook: a POST to a secret URL rolls the service", webhook),
    ("rollback: the specification before is back", rollback),
    ("backup: everything is in one file", backup),
];

struct Demo<'a> {
    lab: &'a Lab,
}

impl Demo<'_> {
    /// Runs a command, and shows it and its output.
    fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        println!("\n{NODE}$ meshctl {}", arguments.join(" "));
        let text = self.lab.meshctl(NODE, arguments)?;
        println!("{text}");
        Ok(text)
    }

    fn url(&self) -> Result<String> {
        Ok(format!("http://{}:{PORT}/", self.lab.address(NODE)?))
    }

    /// Waits until so many replicas answer, and no other.
    fn until_answered_by(&self, replicas: usize) -> Result<()> {
        let url = self.url()?;
        wait_until(&format!("{replicas} replicas to answer"), SOON, || {
            let replies = self.lab.fetch("client", &url, replicas * 2)?;
            let tasks: BTreeSet<String> = spread(&replies).into_keys().collect();
            ensure!(tasks.len() == replicas, "{tasks:?} answered");
            Ok(())
        })
    }

    /// The variables of the service's specification.
    fn env(&self) -> Result<Vec<String>> {
        let service = self.lab.api(NODE)?.get(&format!("/v1/services/{SERVICE}"))?;
        let env = &service["spec"]["task_template"]["container_spec"]["env"];
        serde_json::from_value(env.clone()).context("the service has no variables")
    }
}

fn create(demo: &Demo<'_>) -> Result<()> {
    let publish = format!("{PORT}:80");
    demo.meshctl(&[
        "service",
        "create",
        "--name",
        SERVICE,
        "--replicas",
        "3",
        "--publish",
        &publish,
        "--env",
        "RELEASE=1",
        "--update-order",
        "start-first",
        "--update-monitor",
        "1s",
        SERVER_IMAGE,
    ])?;
    demo.until_answered_by(3)?;
    demo.meshctl(&["service", "ls"])?;
    demo.meshctl(&["routes"]).map(drop)
}

fn scale(demo: &Demo<'_>) -> Result<()> {
    demo.meshctl(&["service", "scale", &format!("{SERVICE}=5")])?;
    demo.until_answered_by(5)
}

fn update(demo: &Demo<'_>) -> Result<()> {
    let load = Load {
        urls: vec![demo.url()?],
        rate: 50,
        seconds: 5,
        kept: 0,
    };
    let report: Value = demo.lab.under_load("client", &load, || {
        demo.meshctl(&["service", "update", "--env-add", "RELEASE=2", SERVICE])
            .map(drop)
    })?;
    println!(
        "{} requests meanwhile, {} answered",
        report["attempts"], report["answered"]
    );
    ensure!(report["attempts"] == report["answered"], "{}", report["failures"]);
    demo.meshctl(&["service", "ps", SERVICE]).map(drop)
}

fn logs(demo: &Demo<'_>) -> Result<()> {
    let lines = demo.meshctl(&["service", "logs", "--tail", "1", SERVICE])?;
    ensure!(
        lines.contains(&format!("{SERVICE}.1.")),
        "no line of the first task"
    );
    Ok(())
}

fn webhook(demo: &Demo<'_>) -> Result<()> {
    let url = demo.meshctl(&["webhook", "create", SERVICE, "deploy"])?;
    let path = url
        .find("/v1/")
        .map(|at| url[at..].trim())
        .context("no URL was printed")?;
    let service = format!("/v1/services/{SERVICE}");
    let api = demo.lab.api(NODE)?;
    let before = api.get(&service)?["revision"].clone();
    println!("\n$ curl --request POST <the webhook's URL>");
    println!("{}", api.call("POST", path, None)?);
    wait_until("the service to be rolled", SOON * 3, || {
        let service = api.get(&service)?;
        ensure!(service["revision"] != before, "it is at {before}");
        ensure!(
            service["update_status"]["state"] == "completed",
            "{}",
            service["update_status"]
        );
        Ok(())
    })
}

fn rollback(demo: &Demo<'_>) -> Result<()> {
    demo.meshctl(&["service", "update", "--env-add", "RELEASE=3", SERVICE])?;
    ensure!(
        demo.env()?.contains(&"RELEASE=3".to_owned()),
        "the update is not there"
    );
    demo.meshctl(&["service", "rollback", SERVICE])?;
    ensure!(demo.env()?.contains(&"RELEASE=2".to_owned()), "{:?}", demo.env()?);
    demo.meshctl(&["service", "history", SERVICE]).map(drop)
}

fn backup(demo: &Demo<'_>) -> Result<()> {
    let name = demo.meshctl(&["backup", "create"])?;
    let list = demo.meshctl(&["backup", "ls"])?;
    ensure!(list.contains(name.trim()), "`{name}` is not listed");
    Ok(())
}
