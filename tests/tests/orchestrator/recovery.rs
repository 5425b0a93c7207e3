//! An empty machine that is restored from a backup.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::lab::{engine::SERVER_IMAGE, wait_until};

use crate::{
    Story,
    fixture::{Fixture, PATIENCE, on_one_node},
};

pub(crate) const STORIES: [Story; 1] = [("an_empty_machine_is_restored_from_a_backup", || {
    on_one_node("orch-backup", restore_from_backup)
})];

/// What must be saved along with the backup.
const KEY: &str = "secrets.key";

fn restore_from_backup(fixture: &Fixture) -> Result<()> {
    let meshctl = |arguments: &[&str]| fixture.lab.meshctl("node1", arguments);
    // "open sesame"
    let secret = json!({"name": "key", "labels": {}, "data": "b3BlbiBzZXNhbWU="});
    fixture.api("node1")?.call("POST", "/v1/secrets", Some(&secret))?;
    fixture.create_web(2, "stop-first")?;
    let arguments = ["service", "create", "--name", "vault", "--secret", "key"];
    meshctl(&[&arguments[..], &[SERVER_IMAGE]].concat())?;
    let backup = meshctl(&["backup", "create"])?.trim().to_owned();

    // Everything is lost except two files.
    let state = fixture.lab.state().data.join("node1/mesh");
    let (backups, saved) = (state.join("backups"), fixture.lab.state().data.join("saved"));
    fs::create_dir(&saved)?;
    fs::copy(backups.join(&backup), saved.join(&backup))?;
    fs::copy(state.join(KEY), saved.join(KEY))?;
    fixture.lab.stop_agent("node1")?;
    for container in fixture.containers("node1")? {
        fixture.lab.docker("node1", ["rm", "--force", &container])?;
    }
    fs::remove_dir_all(&state)?;

    fs::create_dir_all(&backups)?;
    fs::copy(saved.join(&backup), backups.join(&backup))?;
    fs::copy(saved.join(KEY), state.join(KEY))?;
    fixture.start_agent("node1")?;
    let services = fixture.api("node1")?.get("/v1/services")?;
    ensure!(services == json!([]), "{services:#}");
    meshctl(&["backup", "inspect", &backup])?;
    meshctl(&["backup", "restore", &backup])?;
    fixture.until_running(2)?;
    let container = wait_until("the task with the secret", PATIENCE, || {
        let running = fixture.api("node1")?.running("vault")?;
        let container = running
            .first()
            .and_then(|task| task["status"]["container"].as_str());
        container.map(str::to_owned).context("it does not run")
    })?;
    let read = ["exec", &container, "/bin/busybox", "cat", "/run/secrets/key"];
    let read = fixture.lab.docker("node1", read)?;
    ensure!(read == "open sesame", "{read}");
    Ok(())
}
