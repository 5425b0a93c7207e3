//! Stories of the rules that operators have in DOCKER-USER.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{wait::patience, wait_until};

use crate::{
    expect::expect_rotation,
    fixture::{Fixture, HTTP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[(
    "rules_in_docker_user_hold_and_a_port_of_one_that_cannot_be_expressed_is_left_to_docker",
    rules,
)];

const NODE: &str = "node1";
const OTHER_CLIENT: &str = "node2";
const LIMIT: Duration = Duration::from_secs(5);

fn rules(fixture: &Fixture) -> Result<()> {
    expect_answers_to(fixture, "client")?;
    let client = fixture.lab.address("client")?;
    with_rule(fixture, &["-s", &client, "-j", "DROP"], || {
        wait_until("the client to be dropped", LIMIT * patience(), || {
            expect_none(fixture, "client", &["timeout"])
        })?;
        expect_answers_to(fixture, OTHER_CLIENT)
    })?;
    expect_answers_to(fixture, "client")?;
    let port = HTTP.to_string();
    let rule = [
        "-p", "tcp", "--dport", &port, "-m", "mark", "--mark", "7", "-j", "DROP",
    ];
    with_rule(fixture, &rule, || {
        wait_until("the rule to be named", LIMIT * patience(), || {
            for command in ["status", "routes"] {
                let output = fixture.lab.meshctl(NODE, &[command])?;
                ensure!(
                    output.contains("left to Docker's own mesh") && output.contains("-m mark -j DROP"),
                    "{command} says\n{output}"
                );
            }
            Ok(())
        })?;
        // Docker's mesh has no IPVS in this kernel: what answers would be ours.
        expect_none(fixture, "client", &["timeout", "refused"]).context("the mesh still answers")
    })?;
    expect_answers_to(fixture, "client")
}

fn with_rule(fixture: &Fixture, rule: &[&str], story: impl FnOnce() -> Result<()>) -> Result<()> {
    let change = |what| {
        let command = ["iptables", "-w", what, "DOCKER-USER"];
        fixture.lab.run(NODE, [&command[..], rule].concat())
    };
    change("-I")?;
    let outcome = story();
    change("-D")?;
    outcome
}

fn url(fixture: &Fixture) -> Result<String> {
    Ok(format!("http://{}:{HTTP}/", fixture.lab.address(NODE)?))
}

fn expect_answers_to(fixture: &Fixture, client: &str) -> Result<()> {
    wait_until(&format!("{client} to be answered"), LIMIT * patience(), || {
        let replies = fixture
            .lab
            .fetch_with(client, &url(fixture)?, 10, &["--timeout", "500"])?;
        expect_rotation(&replies, 5)
    })
}

/// No request is answered: each one ends in one of these ways.
fn expect_none(fixture: &Fixture, client: &str, outcomes: &[&str]) -> Result<()> {
    let replies = fixture
        .lab
        .fetch_with(client, &url(fixture)?, 2, &["--timeout", "300"])?;
    let found: Vec<&str> = replies.iter().map(|reply| reply.outcome.as_str()).collect();
    ensure!(
        found.iter().all(|outcome| outcomes.contains(outcome)),
        "requests of {client} ended as {found:?}"
    );
    Ok(())
}
