//! Images of a registry that requires a password: what is pulled, what is not and why, and that the password
//! is never shown.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use base64::{
    Engine as _,
    engine::{GeneralPurpose, general_purpose},
};
use xtask::{command::run_with_input, lab::wait_until, paths};

use crate::{
    Story,
    fixture::{Fixture, PATIENCE, web},
    registry::{ADDRESS, IMAGE, PASSWORD, Registry, USER},
};

pub(crate) const STORIES: [Story; 1] = [(
    "images_of_a_private_registry_are_pulled_with_its_password",
    private,
)];

fn private() -> Result<()> {
    let fixture = Fixture::up("orch-images", 1)?;
    let registry = Registry::start(&fixture.lab)?;
    registry.push("1")?;
    fixture.start_agent("node1")?;
    let outcome = without_credentials(&fixture)
        .and_then(|()| log_in(&fixture))
        .and_then(|()| rolls(&fixture, &registry))
        .and_then(|()| the_password_is_never_shown(&fixture));
    fixture.end(outcome)
}

/// The tasks are rejected, with the reason.
fn without_credentials(fixture: &Fixture) -> Result<()> {
    let mut spec = web(1, "start-first");
    spec["task_template"]["container_spec"]["image"] = IMAGE.into();
    fixture.api("node1")?.call("POST", "/v1/services", Some(&spec))?;
    wait_until("the registry's refusal", PATIENCE, || {
        let list = fixture
            .lab
            .meshctl("node1", &["service", "ps", "--no-trunc", "web"])?;
        let refused = |line: &str| {
            line.contains("Rejected") && line.contains(IMAGE) && line.contains("no basic auth credentials")
        };
        ensure!(list.lines().any(refused), "{list}");
        Ok(())
    })
}

/// After the login they run.
fn log_in(fixture: &Fixture) -> Result<()> {
    let program = paths::program("meshctl");
    let program = program.to_str().context("the path is not UTF-8")?;
    let arguments = [
        program,
        "registry",
        "login",
        "--username",
        USER,
        "--password-stdin",
        ADDRESS,
    ];
    let refused = run_with_input(&mut fixture.lab.command("node1", arguments)?, b"wrong");
    let refused = format!("{:?}", refused.map(drop));
    ensure!(refused.contains("did not accept the login"), "{refused}");
    let output = run_with_input(&mut fixture.lab.command("node1", arguments)?, PASSWORD.as_bytes())?;
    ensure!(output.contains(ADDRESS), "{output}");
    fixture.until_running(1)?;
    ensure!(releases(fixture)? == ["1"], "{:?}", releases(fixture)?);
    let list = fixture.lab.meshctl("node1", &["registry", "ls"])?;
    ensure!(list.contains(ADDRESS) && list.contains(USER), "{list}");
    Ok(())
}

/// A webhook starts the image that the tag means now; if the registry does not answer, the local one.
fn rolls(fixture: &Fixture, registry: &Registry<'_>) -> Result<()> {
    let api = fixture.api("node1")?;
    let url = fixture
        .lab
        .meshctl("node1", &["webhook", "create", "web", "deploy"])?;
    // Without --api-listen, the API does not know its host.
    let webhook = url.trim();
    ensure!(webhook.starts_with("/v1/webhooks/"), "{url}");

    registry.stop()?;
    let before = fixture.containers("node1")?;
    let answer = api.call("POST", webhook, None)?;
    ensure!(
        answer["warnings"].to_string().contains("connection refused"),
        "{answer}"
    );
    fixture.until_updated()?;
    let now = fixture.containers("node1")?;
    ensure!(now.len() == 1 && now.is_disjoint(&before), "{before:?} {now:?}");
    let log = fs::read_to_string(fixture.lab.agent_log("node1"))?;
    let warned = |line: &str| line.contains("WARN") && line.contains("using the local image");
    ensure!(log.lines().any(warned), "the log has no warning");

    let task = api.running("web")?.pop().context("no task runs")?;
    let message = task["status"]["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("using the local image") && message.contains("connection refused"),
        "{message}"
    );

    registry.resume()?;
    let digest = registry.push("2")?;
    let answer = api.send("POST", webhook, None)?;
    ensure!(
        (answer.status, answer.body.as_str()) == (200, "{\"warnings\":null}"),
        "{answer:?}"
    );
    fixture.until_updated()?;
    ensure!(releases(fixture)? == ["2"], "{:?}", releases(fixture)?);
    let task = api.running("web")?.pop().context("no task runs")?;
    let pinned = format!("{IMAGE}@{digest}");
    ensure!(
        task["spec"]["container_spec"]["image"] == pinned.as_str(),
        "{task:#}"
    );
    let history = api.get("/v1/services/web/history")?.to_string();
    ensure!(history.contains(&pinned), "{history}");
    fixture.until_running(1)
}

/// The releases of the running containers' images.
fn releases(fixture: &Fixture) -> Result<Vec<String>> {
    let mut releases = Vec::new();
    for container in fixture.containers("node1")? {
        let format = "{{range .Config.Env}}{{println .}}{{end}}";
        let env = fixture
            .lab
            .docker("node1", ["inspect", "--format", format, &container])?;
        releases.extend(
            env.lines()
                .filter_map(|line| line.strip_prefix("RELEASE="))
                .map(str::to_owned),
        );
    }
    Ok(releases)
}

fn the_password_is_never_shown(fixture: &Fixture) -> Result<()> {
    let meshctl = |arguments: &[&str]| fixture.lab.meshctl("node1", arguments);
    meshctl(&["backup", "create"])?;
    let mut shown = vec![
        meshctl(&["registry", "ls", "--format", "json"])?,
        meshctl(&["service", "inspect", "web"])?,
        meshctl(&["service", "history", "web"])?,
        fixture.api("node1")?.get("/v1/registries")?.to_string(),
        fixture.api("node1")?.get("/v1/tasks")?.to_string(),
    ];
    for container in fixture.containers("node1")? {
        shown.push(fixture.lab.docker("node1", ["inspect", &container])?);
    }
    for text in &shown {
        ensure!(!reveals(text.as_bytes(), PASSWORD), "{text}");
    }
    let node = fixture.lab.state().data.join("node1");
    let run = format!(
        "/proc/{}/root/run/mesh",
        fixture.lab.state().space("node1")?.init.pid
    );
    let mut files = vec![fixture.lab.agent_log("node1")];
    for folder in [node.join("mesh"), PathBuf::from(run)] {
        collect(&folder, &mut files)?;
    }
    let mut known = 0;
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
        ensure!(!reveals(&bytes, PASSWORD), "{} has the password", file.display());
        known += usize::from(reveals(&bytes, ADDRESS));
    }
    // The log, the store and the backup do name the registry: these are the right files.
    ensure!(known >= 3, "the registry is named in {known} of {files:?}");
    Ok(())
}

/// The files of a folder, recursively.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Whether some bytes contain a text: as it is, or in base64, with anything before and after it.
fn reveals(bytes: &[u8], text: &str) -> bool {
    let has = |needle: &str| {
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    };
    let alphabets: [GeneralPurpose; 2] = [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD];
    has(text)
        || alphabets.iter().any(|alphabet| {
            (0..3).any(|before| {
                let encoded = alphabet.encode(format!("{}{text}", "-".repeat(before)));
                // Only the characters that depend on nothing but the text.
                let (first, end) = ((before * 8).div_ceil(6), (before + text.len()) * 8 / 6);
                encoded.get(first..end).is_some_and(has)
            })
        })
}
