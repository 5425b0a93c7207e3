//! Stories of nodes whose network is more than one card with one address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::wait_until;

use crate::{
    expect::{expect_client_address, expect_rotation},
    fixture::{Fixture, HTTP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[(
    "every_address_of_every_node_is_answered_by_every_replica",
    every_address,
)];

/// For nodes with one card in the client's network.
pub(crate) const MOVING: &[Story] = &[("a_virtual_address_is_answered_where_it_moves_to", moving)];

fn every_address(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        for address in fixture.lab.addresses(node)? {
            let client = source(fixture, &address)?;
            let replies = fixture
                .lab
                .fetch("client", &format!("http://{address}:{HTTP}/"), 10)?;
            let context = || format!("from the client to {node} by {address}");
            expect_rotation(&replies, 5).with_context(context)?;
            expect_client_address(&replies, &client).with_context(context)?;
        }
        let status = fixture.lab.meshctl(node, &["status"])?;
        ensure!(
            !status.contains("no hook") && !status.contains("not resolved"),
            "{node} reports\n{status}"
        );
    }
    Ok(())
}

/// As keepalived moves it: the address goes from one node to another, and its neighbours learn of it.
fn moving(fixture: &Fixture) -> Result<()> {
    let first = fixture.lab.address("node1")?;
    let (network, _) = first.rsplit_once('.').context("the node has no address")?;
    let address = format!("{network}.240");
    let with_prefix = format!("{address}/32");
    let url = format!("http://{address}:{HTTP}/");
    for node in ["node1", "node3"] {
        let change = |what| {
            fixture
                .lab
                .run(node, ["ip", "address", what, &with_prefix, "dev", "eth0"])
        };
        change("add")?;
        fixture
            .lab
            .run("client", ["ip", "neigh", "flush", "to", &address])?;
        let answered = wait_until(
            &format!("{address} to be answered on {node}"),
            Duration::from_secs(5),
            || {
                let replies = fixture.lab.fetch("client", &url, 10)?;
                expect_rotation(&replies, 5)
            },
        );
        change("del")?;
        answered?;
    }
    Ok(())
}

/// The address with which the client speaks to another.
fn source(fixture: &Fixture, to: &str) -> Result<String> {
    let routes = fixture.lab.run("client", ["ip", "-json", "route", "get", to])?;
    let routes: serde_json::Value = serde_json::from_str(&routes)?;
    let source = routes[0]["prefsrc"].as_str();
    Ok(source
        .with_context(|| format!("the client has no route to {to}: {routes}"))?
        .to_owned())
}
