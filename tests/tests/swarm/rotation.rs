//! Stories of secrets that are rotated while requests do not stop: join tokens and with them the tunnel's
//! key, and the Swarm's root; and of managers whose keys are encrypted, and which are locked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use xtask::{
    command::run_with_input,
    lab::{engine, forge::Received, wait::patience, wait_until},
};

use crate::{
    fixture::Fixture,
    group::Story,
    load::{KEPT, expect_no_failures, under_load},
};

pub(crate) const STORIES: &[Story] = &[
    (
        "secrets_are_rotated_and_managers_locked_without_a_failed_request",
        rotated,
    ),
    (
        "a_locked_manager_waits_to_be_unlocked_without_a_failed_request",
        locked,
    ),
];

const MANAGER: &str = "node1";
const NODE: &str = "node2";
const LIMIT: Duration = Duration::from_secs(10);

fn rotated(fixture: &Fixture) -> Result<()> {
    let report = under_load(fixture, &fixture.lab.nodes(), 4, KEPT, || {
        tokens(fixture).context("the join tokens")?;
        root(fixture).context("the root")?;
        autolock(fixture).context("autolock")
    });
    // Other stories begin with what was before.
    fixture
        .lab
        .docker(MANAGER, ["swarm", "update", "--autolock=false"])?;
    expect_no_failures(&report?)
}

/// The key of packets between nodes follows the managers' token. The one before stays valid, the one before
/// that does not.
fn tokens(fixture: &Fixture) -> Result<()> {
    let mut keys = vec![key(fixture)?];
    for role in ["worker", "manager", "manager"] {
        fixture
            .lab
            .docker(MANAGER, ["swarm", "join-token", "--rotate", "--quiet", role])?;
        let new = key(fixture)?;
        if role == "worker" {
            ensure!(keys == [new], "the workers' token has changed the key");
            continue;
        }
        keys.push(new);
        // Tokens have no events: managers look every 10 s, and when a node changes.
        let label = format!("rotation={}", keys.len());
        let update = ["node", "update", "--label-add", &label, MANAGER];
        fixture.lab.docker(MANAGER, update)?;
        for node in [NODE, "node3"] {
            wait_until(&format!("{node} to take the new key"), LIMIT * patience(), || {
                ensure!(
                    fixture.lab.send_as_peer(node, MANAGER, Some(new))? == Received::WithKey,
                    "not yet"
                );
                Ok(())
            })?;
        }
        let before = keys[keys.len() - 2];
        ensure!(
            fixture.lab.send_as_peer(NODE, MANAGER, Some(before))? == Received::WithKey,
            "{NODE} refuses the key before, which peers may still send"
        );
    }
    ensure!(
        fixture.lab.send_as_peer(NODE, MANAGER, Some(keys[0]))? == Received::WithoutKey,
        "{NODE} takes a key that was replaced twice"
    );
    fixture
        .lab
        .docker(MANAGER, ["node", "update", "--label-rm", "rotation", MANAGER])
        .map(drop)
}

/// The tunnel's key, derived as SECURITY.md says.
fn key(fixture: &Fixture) -> Result<[u8; 8]> {
    let docker = |arguments: &[&str]| fixture.lab.docker(MANAGER, arguments.iter().copied());
    let token = docker(&["swarm", "join-token", "--quiet", "manager"])?;
    let cluster = docker(&["info", "--format", "{{.Swarm.Cluster.ID}}"])?;
    let secret = token.trim().rsplit('-').next().context("no token")?;
    let tag = hmac(
        secret.as_bytes(),
        format!("mesh tunnel key {}", cluster.trim()).as_bytes(),
    );
    tag[..8].try_into().context("a short tag")
}

/// HMAC-SHA-256 (RFC 2104) with a key of at most one block.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message);
    let outer = Sha256::new().chain_update(padded(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}

/// Every node gets a certificate of the new root, and the feed goes on with them.
fn root(fixture: &Fixture) -> Result<()> {
    let renewed = |node: &str| -> Result<usize> {
        let log = std::fs::read_to_string(fixture.lab.agent_log(node)).context("no log")?;
        Ok(log.matches("node certificate renewed").count())
    };
    let nodes = fixture.lab.nodes();
    let before: Vec<usize> = nodes.iter().map(|node| renewed(node)).collect::<Result<_>>()?;
    fixture
        .lab
        .docker(MANAGER, ["swarm", "ca", "--rotate", "--quiet"])?;
    for (node, before) in nodes.iter().zip(before) {
        wait_until(
            &format!("{node} to have the new root"),
            LIMIT * patience(),
            || {
                ensure!(renewed(node)? > before, "its certificate is the old one");
                Ok(())
            },
        )?;
    }
    until_followed(fixture)
}

/// The engine of an autolocked Swarm's only manager restarts: it is locked, and there is no Swarm to ask.
fn locked(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let docker = |arguments: &[&str]| lab.docker(MANAGER, arguments.iter().copied());
    docker(&["swarm", "update", "--autolock=true"])?;
    let unlock_key = docker(&["swarm", "unlock-key", "--quiet"])?;
    // The containers of an engine end with it; what they serve is not what this story is about.
    // Two changes of a node in a row can be "out of sequence".
    let set_availability = |availability| {
        wait_until("Docker to change the manager's availability", LIMIT, || {
            docker(&["node", "update", "--availability", availability, MANAGER]).map(drop)
        })
    };
    set_availability("drain")?;
    wait_until("no replica to run on the manager", LIMIT * patience(), || {
        let tasks = lab.wait_for_tasks("web", 5)?;
        let here = tasks.iter().filter(|task| task.node == MANAGER).count();
        ensure!(here == 0, "{here} run there");
        Ok(())
    })?;
    fixture.until_all_know("web", LIMIT * patience())?;
    let report = under_load(fixture, &lab.nodes(), 4, KEPT, || {
        lab.stop_engine(MANAGER)?;
        lab.start_engine(MANAGER)?;
        let state = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
        ensure!(state.trim() == "locked", "the engine is {state}");
        // The others show what the manager's agent reports.
        for node in lab.nodes() {
            until_it_says(fixture, node, "docker swarm unlock")?;
        }
        // One that starts now does not even know its node's id.
        lab.kill_agent(MANAGER)?;
        lab.start_agent(MANAGER, fixture.arguments)?;
        until_it_says(fixture, MANAGER, "docker swarm unlock")?;
        let mut unlock = engine::docker(lab.state(), MANAGER, ["swarm", "unlock"])?;
        run_with_input(&mut unlock, unlock_key.trim().as_bytes())?;
        wait_until("the Swarm to have its manager again", LIMIT * patience(), || {
            docker(&["node", "ls"]).map(drop)
        })?;
        until_followed(fixture)
    })?;
    docker(&["swarm", "update", "--autolock=false"])?;
    set_availability("active")?;
    // The next story scales up again: Swarm moves no task back by itself.
    lab.scale("web", 2)?;
    lab.wait_for_tasks("web", 2)?;
    expect_no_failures(&report)
}

/// Waits until a node's status has a problem that names this.
fn until_it_says(fixture: &Fixture, node: &str, text: &str) -> Result<()> {
    wait_until(&format!("{node} to say `{text}`"), LIMIT * patience(), || {
        let status = fixture.lab.meshctl(node, &["status", "--format", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        ensure!(
            status["errors"].to_string().contains(text),
            "its errors are {}",
            status["errors"]
        );
        Ok(())
    })
}

/// A manager's agent that starts has to decrypt its node's key.
fn autolock(fixture: &Fixture) -> Result<()> {
    fixture
        .lab
        .docker(MANAGER, ["swarm", "update", "--autolock=true"])?;
    let certificates = engine::data_root(fixture.lab.state(), MANAGER).join("swarm/certificates");
    wait_until("the manager's key to be encrypted", LIMIT * patience(), || {
        let key = std::fs::read_to_string(certificates.join("swarm-node.key"))?;
        ensure!(key.contains("ENCRYPTED"), "it is not");
        Ok(())
    })?;
    fixture.lab.kill_agent(MANAGER)?;
    fixture.lab.start_agent(MANAGER, fixture.arguments)?;
    until_followed(fixture)?;
    let doctor = fixture.lab.meshctl(MANAGER, &["doctor", "--format", "json"])?;
    ensure!(!doctor.contains("autolock"), "the doctor says {doctor}");
    Ok(())
}

/// Waits until the workers get fresh snapshots from the manager.
fn until_followed(fixture: &Fixture) -> Result<()> {
    for node in [NODE, "node3"] {
        wait_until(
            &format!("{node} to follow the manager"),
            LIMIT * patience(),
            || {
                let status = fixture.lab.meshctl(node, &["status", "--format", "json"])?;
                let status: Value = serde_json::from_str(&status)?;
                let lag = status["model"]["lag_seconds"].as_f64();
                ensure!(
                    status["errors"] == Value::Array(Vec::new()) && lag.is_some_and(|lag| lag < 3.0),
                    "its errors are {} and its snapshot is {lag:?} s old",
                    status["errors"]
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}
