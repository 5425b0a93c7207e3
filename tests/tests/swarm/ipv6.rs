//! IPv6 clients: by their nodes' IPv6 addresses they reach replicas that have IPv4 only.

use std::{collections::BTreeSet, net::Ipv6Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{Reply, traffic::host, wait::patience, wait_until};

use crate::{
    basics::{MIB, transfer, with_far_replica},
    expect::{expect_answers, expect_requests_in_rotation, in_rotation},
    fixture::{Fixture, HTTP, SOON, UDP},
    group::Story,
};

/// For every way in which packets are processed, and every network.
pub(crate) const REQUESTS: &[Story] = &[
    (
        "an_ipv6_client_reaches_every_replica_by_every_node_and_is_known_by_one_address",
        requests,
    ),
    ("datagrams_of_an_ipv6_client_are_echoed", datagrams),
];

/// For every way in which packets are processed, and networks that carry less than usual.
pub(crate) const TRANSFERS: &[Story] = &[("big_transfers_of_an_ipv6_client_arrive_whole", transfers)];

pub(crate) const STORIES: &[Story] = &[
    (
        "a_process_reaches_replicas_by_its_nodes_ipv6_address",
        local_processes,
    ),
    ("ipv6_clients_are_refused_what_no_replica_takes", refusals),
    ("an_ipv6_address_that_comes_and_goes_is_followed", new_address),
];

/// `[address]:port` at a node.
fn at(fixture: &Fixture, node: &str, port: u16) -> Result<String> {
    Ok(format!("[{}]:{port}", fixture.lab.ipv6_address(node)?))
}

fn url(fixture: &Fixture, node: &str, port: u16) -> Result<String> {
    Ok(format!("http://{}/", at(fixture, node, port)?))
}

/// The addresses that the replicas saw.
fn peers(replies: &[Reply]) -> BTreeSet<&str> {
    replies.iter().map(|reply| host(&reply.peer)).collect()
}

fn requests(fixture: &Fixture) -> Result<()> {
    let mut seen = BTreeSet::new();
    for node in fixture.lab.nodes() {
        let url = url(fixture, node, HTTP)?;
        let replies = in_rotation(|| fixture.lab.fetch("client", &url, 10))
            .with_context(|| format!("from the client to {url}"))?;
        seen.extend(peers(&replies).into_iter().map(str::to_owned));
    }
    ensure!(seen.len() == 1, "one client, and replicas saw {seen:?}");
    // The operator learns who that is.
    let mapped = seen.first().context("no replica saw a client")?;
    let client = fixture.lab.ipv6_address("client")?.parse::<Ipv6Addr>()?;
    for node in fixture.lab.nodes() {
        let text = fixture
            .lab
            .meshctl(node, &["clients", mapped, "--format", "json"])?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: `{text}`"))?;
        let found = &answer["clients"][0]["address"];
        ensure!(*found == client.to_string(), "{mapped} is {answer} on {node}");
    }
    Ok(())
}

fn datagrams(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        let target = at(fixture, node, UDP)?;
        let replies = in_rotation(|| fixture.lab.datagrams("client", &target, 10))
            .with_context(|| format!("from the client to {target}"))?;
        ensure!(peers(&replies).len() == 1, "{replies:?}");
        let in_fragments = ["udp", &target, "--size", "4000", "--count", "10"];
        in_rotation(|| fixture.lab.replies("client", &in_fragments))
            .with_context(|| format!("in fragments from the client to {target}"))?;
    }
    Ok(())
}

fn transfers(fixture: &Fixture) -> Result<()> {
    with_far_replica(fixture, &["9300:80"], || {
        let size = 32 * MIB / u64::from(patience());
        for node in ["node1", "node3"] {
            let url = url(fixture, node, 9300)?;
            until_answered(fixture, "client", &url)?;
            transfer(fixture, &url, size)?;
        }
        Ok(())
    })
}

fn until_answered(fixture: &Fixture, from: &str, url: &str) -> Result<()> {
    wait_until(
        &format!("{url} to answer {from}"),
        Duration::from_secs(20),
        || expect_answers(&fixture.lab.fetch_with(from, url, 1, &["--timeout", "500"])?),
    )
}

fn local_processes(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        expect_requests_in_rotation(&fixture.lab, node, &url(fixture, node, HTTP)?)?;
        expect_requests_in_rotation(&fixture.lab, node, &format!("http://[::1]:{HTTP}/"))?;
    }
    Ok(())
}

fn refusals(fixture: &Fixture) -> Result<()> {
    // Behind the second port, nothing listens: the replica's node says so.
    with_far_replica(fixture, &["9300:80", "9301:4444/udp", "9302:4444"], || {
        for node in ["node1", "node3"] {
            until_answered(fixture, "client", &url(fixture, node, 9300)?)?;
            let reply = fixture.lab.connect("client", &at(fixture, node, 9302)?)?;
            ensure!(reply.outcome == "refused", "a closed port at {node}: {reply:?}");
            let replies = fixture.lab.datagrams("client", &at(fixture, node, 9301)?, 1)?;
            ensure!(
                replies.iter().all(|reply| reply.outcome == "refused"),
                "a closed UDP port at {node}: {replies:?}"
            );
        }
        fixture
            .lab
            .docker("node1", ["service", "scale", "--detach", "far=0"])?;
        for node in ["node1", "node3"] {
            let target = at(fixture, node, 9300)?;
            wait_until(&format!("{target} to refuse"), SOON * 5 * patience(), || {
                let reply = fixture.lab.connect("client", &target)?;
                ensure!(reply.outcome == "refused", "without replicas: {reply:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

fn new_address(fixture: &Fixture) -> Result<()> {
    // In the subnet that all are in.
    let address = fixture.lab.ipv6_address("node2")?.replace("::", "::abcd:");
    let change = |what: &str| {
        let arguments = [
            "ip",
            "address",
            what,
            &format!("{address}/64"),
            "dev",
            "eth0",
            "nodad",
        ];
        fixture.lab.run("node2", arguments).map(drop)
    };
    let url = format!("http://[{address}]:{HTTP}/");
    change("add")?;
    until_answered(fixture, "client", &url)?;
    expect_requests_in_rotation(&fixture.lab, "client", &url)?;
    change("delete")?;
    wait_until("the address to be forgotten", SOON * 5 * patience(), || {
        let text = fixture.lab.meshctl("node2", &["status", "--format", "json"])?;
        ensure!(!text.contains(&address), "{text}");
        let dump = fixture
            .lab
            .meshctl("node2", &["datapath", "dump", "--format", "json"])?;
        ensure!(!dump.contains(&address), "{address} is in the tables");
        Ok(())
    })
}
