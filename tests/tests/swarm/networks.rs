//! Stories of nodes whose network is more than one card with one address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{
    Reply,
    wait::{patience, wait_until},
    wire::NARROW_MTU,
};

use crate::{
    basics::{MIB, transfer, with_far_replica},
    expect::{expect_answers, expect_client_address, expect_rotation},
    fixture::{Fixture, HTTP},
    group::Story,
};

/// Bytes that the tunnel adds: IPv4, UDP, Geneve, and an option with a key.
const TUNNEL: usize = 56;

/// Bytes of the IPv4 and UDP headers of a datagram.
const UDP_HEADERS: usize = 28;

pub(crate) const STORIES: &[Story] = &[(
    "every_address_of_every_node_is_answered_by_every_replica",
    every_address,
)];

/// For nodes with one card in the client's network.
pub(crate) const MOVING: &[Story] = &[("a_virtual_address_is_answered_where_it_moves_to", moving)];

/// For nodes with a router between them.
pub(crate) const NARROW: &[Story] = &[(
    "what_a_router_between_the_nodes_does_not_carry_is_found_out_and_not_sent",
    narrow,
)];

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

fn narrow(fixture: &Fixture) -> Result<()> {
    with_far_replica(fixture, &["9300:80", "9301:81/udp"], || {
        large_packets_between_the_nodes(fixture)
    })
}

fn large_packets_between_the_nodes(fixture: &Fixture) -> Result<()> {
    for (node, peer) in [("node1", "node3"), ("node3", "node1")] {
        wait_until(
            &format!("{node} to measure its path"),
            Duration::from_secs(15),
            || {
                let status = fixture.lab.meshctl(node, &["status"])?;
                let wanted = format!("path MTU {NARROW_MTU}");
                let mut lines = status.lines();
                ensure!(
                    lines.any(|line| line.contains(peer) && line.contains(&wanted)),
                    "{node} reports\n{status}"
                );
                Ok(())
            },
        )?;
    }
    let doctor = fixture.lab.meshctl("node1", &["doctor"])?;
    let wanted = format!("{NARROW_MTU} of the 1500 bytes of eth0 reach node3");
    ensure!(doctor.contains(&wanted), "meshctl doctor printed\n{doctor}");
    transfer(
        fixture,
        &fixture.url("node1", 9300)?,
        64 * MIB / u64::from(patience()),
    )?;
    // The largest datagram that fits into the tunnel, and one that does not: its sender is answered by ICMP.
    let target = fixture.at("node1", 9301)?;
    let datagram = |size: usize| -> Result<Reply> {
        let size = size.to_string();
        let replies = fixture
            .lab
            .replies("client", &["udp", &target, "--size", &size])?;
        replies.into_iter().next().context("no reply")
    };
    let largest = usize::from(NARROW_MTU) - TUNNEL - UDP_HEADERS;
    expect_answers(&[datagram(largest)?]).context("the largest datagram that fits")?;
    let refused = datagram(largest + 1)?;
    ensure!(
        refused.error.contains("too long"),
        "a larger datagram: {} {}",
        refused.outcome,
        refused.error
    );
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
