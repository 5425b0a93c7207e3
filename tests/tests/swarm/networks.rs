//! Stories of nodes whose network is more than one card with one address.

use std::{thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::load::Report;
use serde_json::Value;
use xtask::lab::{
    Reply,
    traffic::Load,
    wait::{patience, wait_until},
    wire::{NARROW_MTU, SMALL_MTU as MTU},
};

use crate::{
    basics::{MIB, transfer, with_far_replica},
    expect::{
        expect_answers, expect_client_address, expect_peers, expect_requests_in_rotation, expect_rotation,
        in_rotation,
    },
    fixture::{Fixture, HTTP, UDP},
    group::Story,
    load::expect_no_failures,
};

/// How long the mesh may take to follow a change of the nodes' networks.
const LIMIT: Duration = Duration::from_secs(5);

/// Bytes that the tunnel adds: IPv4, UDP, Geneve, and an option with a key.
const TUNNEL: usize = 56;

/// Bytes of the IPv4 and UDP headers of a datagram.
const UDP_HEADERS: usize = 28;

pub(crate) const STORIES: &[Story] = &[(
    "every_address_of_every_node_is_answered_by_every_replica",
    every_address,
)];

/// For nodes with one card in the client's network.
pub(crate) const MOVING: &[Story] = &[
    ("a_virtual_address_is_answered_where_it_moves_to", moving),
    (
        "connections_that_are_spread_by_a_hash_move_with_their_address",
        moving_along,
    ),
];

/// For nodes with a router between them.
pub(crate) const NARROW: &[Story] = &[(
    "what_a_router_between_the_nodes_does_not_carry_is_found_out_and_not_sent",
    narrow,
)];

/// For nodes whose card has a smaller MTU than their containers.
pub(crate) const SMALL_MTU: &[Story] = &[(
    "what_a_nodes_card_does_not_carry_is_reported_to_its_containers",
    small_mtu,
)];

/// For nodes that their Swarm knows by addresses that are on none of their interfaces.
pub(crate) const NAT: &[Story] = &[(
    "packets_between_nodes_take_the_addresses_that_agents_are_given",
    behind_nat,
)];

/// For nodes with one card in the client's network.
pub(crate) const HIDDEN: &[Story] = &[(
    "a_client_of_one_of_the_replicas_own_networks_is_answered",
    hidden_client,
)];

/// For nodes with one card, of which the third is a worker.
pub(crate) const RENEWED: &[Story] = &[("a_node_whose_address_changes_is_found_again", renewed)];

/// For nodes with two cards.
pub(crate) const REROUTED: &[Story] = &[("the_default_route_moves_to_another_card", rerouted)];

fn every_address(fixture: &Fixture) -> Result<()> {
    // A new lab may still be resolving its neighbours, and an answer may be late.
    wait_until("every address to be answered", LIMIT, || {
        every_address_now(fixture)
    })
}

fn every_address_now(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        for address in fixture.lab.addresses(node)? {
            answered_at(fixture, node, &address)?;
        }
        let status = fixture.lab.meshctl(node, &["status"])?;
        ensure!(
            !status.contains("no hook") && !status.contains("not resolved"),
            "{node} reports\n{status}"
        );
    }
    Ok(())
}

fn answered_at(fixture: &Fixture, node: &str, address: &str) -> Result<()> {
    let client = source(fixture, address)?;
    let url = format!("http://{address}:{HTTP}/");
    let replies = fixture
        .lab
        .fetch_with("client", &url, 10, &["--timeout", "500"])?;
    let context = || format!("from the client to {node} by {address}");
    expect_rotation(&replies, 5).with_context(context)?;
    expect_client_address(&replies, &client).with_context(context)
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

/// Every node finds the same replica for a client, so none of its connections breaks.
fn moving_along(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let first = lab.address("node1")?;
    let (network, _) = first.rsplit_once('.').context("the node has no address")?;
    let address = format!("{network}.241");
    let with_prefix = format!("{address}/32");
    let nodes = ["node1", "node3"];
    let label = |change: &str| lab.docker("node1", ["service", "update", "--detach", change, "web"]);
    label("--label-add=mesh.scheduler=mh")?;
    for node in nodes {
        lab.run(node, ["ip", "address", "add", &with_prefix, "dev", "eth0"])?;
    }
    // What a gratuitous ARP does to its neighbours.
    let point_to = |node: &str| -> Result<()> {
        let links = lab.run(node, ["ip", "-json", "link", "show", "dev", "eth0"])?;
        let links: Value = serde_json::from_str(&links).context("`ip` printed no JSON")?;
        let mac = links[0]["address"]
            .as_str()
            .context("the card has no MAC address")?;
        let entry = ["neigh", "replace", &address, "lladdr", mac, "dev", "eth0"];
        lab.run("client", ["ip"].into_iter().chain(entry)).map(drop)
    };
    let load = Load {
        urls: vec![format!("http://{address}:{HTTP}/")],
        rate: 20,
        seconds: 2,
        kept: 10,
    };
    let outcome = (|| {
        for node in nodes.into_iter().rev() {
            point_to(node)?;
            wait_until(
                &format!("{address} to be answered on {node} by a hash"),
                Duration::from_secs(5),
                || {
                    let replies = lab.fetch("client", &load.urls[0], 20)?;
                    let answered = replies.iter().all(|reply| reply.outcome == "answered");
                    ensure!(answered, "{replies:?}");
                    // A hash spreads them as evenly once in 300 times.
                    ensure!(
                        expect_rotation(&replies, 5).is_err(),
                        "the label is not known there"
                    );
                    Ok(())
                },
            )?;
        }
        lab.under_load("client", &load, || {
            thread::sleep(Duration::from_secs(1));
            point_to("node3")
        })
    })();
    label("--label-rm=mesh.scheduler")?;
    for node in nodes {
        lab.run(node, ["ip", "address", "del", &with_prefix, "dev", "eth0"])?;
    }
    lab.run("client", ["ip", "neigh", "del", &address, "dev", "eth0"])?;
    let report: Report = outcome?;
    expect_no_failures(&report)?;
    let metrics = lab.metrics("node3")?;
    let adopted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("mesh_flows_adopted_total "));
    // One that was being opened may have moved as well.
    ensure!(
        adopted.is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count >= 10)),
        "of 10 connections that have moved, node3 counts {adopted:?}"
    );
    fixture.until_all_know("web", Duration::from_secs(5))
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
    let largest = usize::from(NARROW_MTU) - TUNNEL - UDP_HEADERS;
    expect_largest_datagram(fixture, "node1", largest)
}

/// A datagram of this size is answered; the sender of one that is larger by a byte gets an error.
fn expect_largest_datagram(fixture: &Fixture, node: &str, largest: usize) -> Result<()> {
    // A datagram may be lost, and is not sent again.
    wait_until(&format!("{largest} bytes to be carried by {node}"), LIMIT, || {
        expect_answers(&[datagram(fixture, node, largest)?])
    })?;
    wait_until("a larger datagram to be refused", LIMIT, || {
        let refused = datagram(fixture, node, largest + 1)?;
        ensure!(
            refused.error.contains("too long"),
            "by {node}: {} {}",
            refused.outcome,
            refused.error
        );
        Ok(())
    })
}

fn small_mtu(fixture: &Fixture) -> Result<()> {
    with_far_replica(fixture, &["9300:80", "9301:81/udp"], || {
        for (node, headers) in [("node3", UDP_HEADERS), ("node1", UDP_HEADERS + TUNNEL)] {
            expect_largest_datagram(fixture, node, usize::from(MTU) - headers)?;
            // Afterwards: once the client knows what the way carries, it fragments larger datagrams itself.
            let size = 64 * MIB / u64::from(patience());
            transfer(fixture, &fixture.url(node, 9300)?, size)?;
        }
        Ok(())
    })
}

fn behind_nat(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    lab.on_each_node(|node| {
        let address = lab.address(node)?;
        let arguments = [
            "--xdp",
            "native",
            "--feed-listen",
            "0.0.0.0",
            "--data-path-address",
            &address,
        ];
        lab.start_agent(node, &arguments)
    })?;
    fixture.until_all_know("web", Duration::from_secs(20))?;
    for node in lab.nodes() {
        let url = fixture.url(node, HTTP)?;
        expect_requests_in_rotation(lab, "client", &url)?;
        expect_client_address(&lab.fetch("client", &url, 10)?, &lab.address("client")?)?;
        let dump = lab.meshctl(node, &["datapath", "dump"])?;
        for peer in lab.nodes().into_iter().filter(|peer| *peer != node) {
            let address = lab.address(peer)?;
            ensure!(
                dump.contains(&format!("{address} interface")),
                "{node} does not send to {address}:\n{dump}"
            );
        }
    }
    lab.stop_agents()
}

/// The client gets an address of the ingress network, which every replica is attached to.
fn hidden_client(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let client = lab.address("client")?;
    let (hidden, with_prefix) = ("10.0.0.77", "10.0.0.77/32");
    lab.run("client", ["ip", "address", "add", with_prefix, "dev", "eth0"])?;
    let outcome = lab
        .run_on_the_wire(&["ip", "route", "add", hidden, "via", &client], "")
        .and_then(|()| {
            for node in lab.nodes() {
                let route = format!("{} dev eth0 src {hidden}", lab.address(node)?);
                let arguments = ["ip", "route", "add"].into_iter().chain(route.split(' '));
                lab.run("client", arguments)?;
            }
            from_a_hidden_client(fixture)
        });
    // Its routes go with it.
    lab.run("client", ["ip", "address", "del", with_prefix, "dev", "eth0"])?;
    lab.run_on_the_wire(&["ip", "route", "del", hidden], "")?;
    outcome
}

fn from_a_hidden_client(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    for node in fixture.lab.nodes() {
        let (url, at) = (fixture.url(node, HTTP)?, fixture.at(node, UDP)?);
        let mut replies =
            in_rotation(|| fixture.lab.fetch("client", &url, 10)).with_context(|| format!("by {node}"))?;
        let echoes = in_rotation(|| fixture.lab.datagrams("client", &at, 10))
            .with_context(|| format!("UDP by {node}"))?;
        replies.extend(echoes);
        expect_peers(&tasks, &replies, |own| fixture.lab.address(own))?;
    }
    Ok(())
}

/// As a DHCP client does it that is given another address: the old one goes first, and the routes with it.
fn renewed(fixture: &Fixture) -> Result<()> {
    let before = fixture.lab.address("node3")?;
    let after = format!("{before}3");
    let there = change_address(fixture, &before, &after);
    let back = change_address(fixture, &after, &before);
    there.and(back)
}

fn change_address(fixture: &Fixture, from: &str, to: &str) -> Result<()> {
    let lab = &fixture.lab;
    let router = lab.address("wire")?;
    let script = format!(
        "ip address del {from}/24 dev eth0; ip address add {to}/24 dev eth0; ip route add default via {router}"
    );
    lab.run("node3", ["sh", "-euc", &script])?;
    let client = lab.address("client")?;
    wait_until(
        &format!("node3 to be found at {to}"),
        Duration::from_secs(60),
        || {
            for host in [to, &lab.address("node1")?] {
                let url = format!("http://{host}:{HTTP}/");
                let replies = lab.fetch_with("client", &url, 10, &["--timeout", "500"])?;
                expect_rotation(&replies, 5).with_context(|| format!("by {host}"))?;
                expect_client_address(&replies, &client)?;
            }
            let url = format!("http://localhost:{HTTP}/");
            expect_rotation(&lab.fetch_with("node3", &url, 10, &["--timeout", "500"])?, 5)
                .context("on node3 itself")
        },
    )
}

fn rerouted(fixture: &Fixture) -> Result<()> {
    let lab = &fixture.lab;
    let routers = lab.addresses("wire")?;
    let [first, second] = &routers[..] else {
        bail!("the wire has the addresses {routers:?}");
    };
    let change = |router: &str| lab.run("node2", ["ip", "route", "replace", "default", "via", router]);
    change(second)?;
    let outcome = wait_until(
        "the node's other card to do alone",
        Duration::from_secs(5),
        || {
            // The first card has neither the default route nor the cluster's address now.
            for node in lab.nodes() {
                for address in lab.addresses(node)?.iter().skip(usize::from(node == "node2")) {
                    answered_at(fixture, node, address)?;
                }
            }
            let doctor = lab.meshctl("node2", &["doctor"])?;
            let unseen = format!("{} on eth0 is left to Docker", lab.address("node2")?);
            ensure!(doctor.contains(&unseen), "meshctl doctor printed\n{doctor}");
            Ok(())
        },
    );
    change(first)?;
    outcome?;
    wait_until("every address to be answered again", LIMIT, || {
        every_address_now(fixture)
    })
}

/// Sends a datagram of so many bytes to the far replica by a node.
fn datagram(fixture: &Fixture, node: &str, size: usize) -> Result<Reply> {
    let target = fixture.at(node, 9301)?;
    let size = size.to_string();
    let replies = fixture
        .lab
        .replies("client", &["udp", &target, "--size", &size])?;
    replies.into_iter().next().context("no reply")
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
