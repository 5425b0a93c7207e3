//! A docker user's session, typed twice on one engine: with `docker` on a Swarm, then with `meshctl` and the
//! orchestrator. Both outputs must have the same shape, except for intended differences.

mod intended;
mod lines;
mod shape;

use std::{
    collections::BTreeSet,
    fs,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xtask::lab::wait_until;

use self::{
    intended::{Difference, INTENDED, Part},
    lines::{COMPOSE, SESSION, Step},
    shape::Shape,
};
use crate::{Story, fixture::Fixture};

pub(crate) const STORIES: [Story; 1] = [("a_docker_users_session_looks_the_same_with_meshctl", session)];

/// How long a service may take to become as requested.
const PATIENCE: Duration = Duration::from_secs(60);

/// The oldest docker command-line tool that knows all commands of the session, by the first number of its
/// release.
const DOCKER: u32 = 26;
/// The recorded output of docker 28.2.2, for machines with an older one.
const RECORDED: &str = include_str!("session/docker.json");
/// With this variable, the story writes the recorded output to the file that it names.
const RECORD: &str = "MESH_SESSION_RECORD";

/// The outcome of one line.
#[derive(Serialize, Deserialize)]
struct Outcome {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

fn session() -> Result<()> {
    shape::check()?;
    let fixture = Fixture::up("s-session", 1)?;
    let folder = fixture.lab.state().data.join("session");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("compose.yml"), COMPOSE)?;
    fs::write(folder.join("page.txt"), "hello")?;
    let docker = dockers(&fixture)?;
    fixture.start_agent("node1")?;
    let began = Instant::now();
    let outcome = record(&fixture, "meshctl").and_then(|meshctl| {
        println!(
            "    the session takes {:.1} s with meshctl",
            began.elapsed().as_secs_f64()
        );
        compare(&docker, &meshctl)
    });
    fixture.end(outcome)
}

/// Docker's outcomes: of this machine's, or the recorded ones.
fn dockers(fixture: &Fixture) -> Result<Vec<Outcome>> {
    let arguments = ["version", "--format", "{{.Client.Version}}"];
    let release = fixture.lab.docker("node1", arguments)?;
    let number = release
        .split('.')
        .next()
        .and_then(|number| number.parse::<u32>().ok());
    if number.is_none_or(|number| number < DOCKER) {
        println!("    docker is {release}: compared with the recorded output of 28.2.2");
        let recorded: Vec<Outcome> = serde_json::from_str(RECORDED).context("session/docker.json")?;
        let typed = SESSION.iter().filter_map(|step| match step {
            Step::Type(line) => Some(*line),
            Step::Until(_, _) => None,
        });
        ensure!(
            recorded.iter().map(|outcome| outcome.line.as_str()).eq(typed),
            "session/docker.json is of another session; record it again: {RECORD}=<file> with docker {DOCKER} or newer"
        );
        return Ok(recorded);
    }
    let address = fixture.lab.address("node1")?;
    fixture
        .lab
        .docker("node1", ["swarm", "init", "--advertise-addr", &address])?;
    let began = Instant::now();
    let docker = record(fixture, "docker")?;
    println!(
        "    the session takes {:.1} s with docker {release}",
        began.elapsed().as_secs_f64()
    );
    fixture.lab.docker("node1", ["swarm", "leave", "--force"])?;
    if let Some(file) = std::env::var_os(RECORD) {
        fs::write(file, serde_json::to_string_pretty(&docker)? + "\n")?;
    }
    Ok(docker)
}

/// Types the whole session.
fn record(fixture: &Fixture, program: &str) -> Result<Vec<Outcome>> {
    let mut all = Vec::new();
    for step in SESSION {
        match *step {
            Step::Type(line) => {
                let output = run(fixture, program, line)?;
                all.push(Outcome {
                    line: line.to_owned(),
                    code: output.status.code(),
                    out: String::from_utf8_lossy(&output.stdout).into_owned(),
                    err: String::from_utf8_lossy(&output.stderr).into_owned(),
                });
            }
            Step::Until(line, expected) => wait_until(line, PATIENCE, || {
                let output = run(fixture, program, line)?;
                let out = String::from_utf8_lossy(&output.stdout);
                let lines: BTreeSet<&str> = out.lines().collect();
                if lines != expected.lines().collect() {
                    bail!(
                        "{program} prints {out:?}, {:?}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
                Ok(())
            })?,
        }
    }
    Ok(all)
}

/// Types one line, in a shell on the node.
fn run(fixture: &Fixture, program: &str, line: &str) -> Result<Output> {
    let folder = fixture.lab.state().data.join("session");
    let meshctl = xtask::paths::program("meshctl");
    let bin = meshctl.parent().context("meshctl is in no folder")?;
    let script = format!(
        "cd {}; export PATH={}:$PATH DOCKER_HOST=unix:///run/docker.sock; {}",
        folder.display(),
        bin.display(),
        line.replace("docker ", &format!("{program} "))
    );
    let mut command = fixture.lab.command("node1", ["sh", "-c", &script])?;
    command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("could not start `{line}`"))
}

/// Compares line by line; all differences at once.
fn compare(docker: &[Outcome], meshctl: &[Outcome]) -> Result<()> {
    let mut differences = Vec::new();
    let mut used = BTreeSet::new();
    for (docker, meshctl) in docker.iter().zip(meshctl) {
        let found = differ(docker, meshctl, &mut used);
        if !found.is_empty() {
            differences.push(format!(
                "=== {}\n  {}\n--- docker ({:?})\n{}{}--- meshctl ({:?})\n{}{}",
                docker.line,
                found.join("\n  "),
                docker.code,
                docker.out,
                docker.err,
                meshctl.code,
                meshctl.out,
                meshctl.err
            ));
        }
    }
    let count = differences.len();
    ensure!(
        count == 0,
        "{count} lines of {} differ:\n{}",
        docker.len(),
        differences.join("\n")
    );
    let idle: Vec<&str> = INTENDED
        .iter()
        .enumerate()
        .filter(|(index, _)| !used.contains(index))
        .map(|(_, difference)| difference.piece)
        .collect();
    ensure!(
        idle.is_empty(),
        "intended differences that do not exist: {idle:?}"
    );
    println!(
        "    {} lines, {} intended differences",
        docker.len(),
        INTENDED.len()
    );
    Ok(())
}

fn differ(docker: &Outcome, meshctl: &Outcome, used: &mut BTreeSet<usize>) -> Vec<String> {
    let mut differences = Vec::new();
    let mut check = |what: &str, part: Part, left: String, right: String| {
        if left != right && !is_intended(&docker.line, part, what, used) {
            differences.push(format!("{what}: docker {left}, meshctl {right}"));
        }
    };
    check(
        "exit code",
        Part::Code,
        format!("{:?}", docker.code),
        format!("{:?}", meshctl.code),
    );
    let silent = |text: &str| {
        if text.is_empty() { "is empty" } else { "has text" }
    };
    check(
        "standard error",
        Part::Stderr,
        silent(&docker.err).into(),
        silent(&meshctl.err).into(),
    );
    let (mut left, mut right) = (Shape::of(&docker.out), Shape::of(&meshctl.out));
    if docker.line.contains("stack deploy") {
        // Docker processes a compose file in any order.
        left.sort();
        right.sort();
    }
    let is_list = |shape: &Shape| matches!(shape, Shape::Lines(_));
    if std::mem::discriminant(&left) != std::mem::discriminant(&right) {
        check(
            "standard output",
            Part::Docker,
            "has another form".into(),
            "has its own".into(),
        );
        return differences;
    }
    // The rest of both in order, without intended differences.
    let mut rest = |shape: &Shape, part: Part| -> Vec<String> {
        let mut pieces = shape.pieces();
        pieces.retain(|piece| !is_intended(&docker.line, part, piece, used));
        // How often progress is shown depends on timing.
        pieces.dedup();
        pieces
    };
    let (left, right, lists) = (
        rest(&left, Part::Docker),
        rest(&right, Part::Meshctl),
        is_list(&left),
    );
    if left != right {
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these
                .iter()
                .filter(|piece| !those.contains(piece))
                .cloned()
                .collect()
        };
        let (missing, extra) = (only(&left, &right), only(&right, &left));
        differences.push(match (missing.is_empty() && extra.is_empty(), lists) {
            (true, true) => "the lines are in another order, or there are more of them".to_owned(),
            (true, false) => "the columns are in another order".to_owned(),
            (false, _) => format!("only docker: {missing:#?}\n  only meshctl: {extra:#?}"),
        });
    }
    differences
}

/// Whether a piece of a line's output is among the intended differences.
fn is_intended(line: &str, part: Part, piece: &str, used: &mut BTreeSet<usize>) -> bool {
    let found = INTENDED.iter().position(|difference: &Difference| {
        difference.part == part && line.contains(difference.line) && piece.starts_with(difference.piece)
    });
    found.is_some_and(|index| {
        used.insert(index);
        true
    })
}
