//! The stories that hold in every variant of the data path.

use anyhow::{Context, Result, ensure};
use xtask::lab::wait::patience;

use crate::{
    expect::{expect_answers, expect_client_address, expect_peers, expect_requests_in_rotation, in_rotation},
    fixture::{Fixture, HTTP, UDP},
    group::Story,
};

/// Bytes of the big transfers.
pub(crate) const MIB: u64 = 1 << 20;

/// Small requests: for every way in which nodes can be connected.
pub(crate) const REQUESTS: &[Story] = &[
    (
        "requests_to_every_node_are_spread_in_rotation",
        rotation_from_the_client,
    ),
    (
        "requests_to_localhost_are_spread_in_rotation",
        rotation_from_the_node,
    ),
    ("the_replica_sees_the_clients_address", client_address),
    ("a_container_reaches_its_own_nodes_port", hairpin),
    ("localhost_by_ipv6_does_not_hang", localhost_by_ipv6),
    ("udp_is_echoed_by_local_and_remote_replicas", udp),
];

pub(crate) const TRANSFERS: &[Story] = &[("big_transfers_through_a_remote_replica_arrive_whole", transfers)];

fn rotation_from_the_client(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        expect_requests_in_rotation(&fixture.lab, "client", &fixture.url(node, HTTP)?)?;
    }
    Ok(())
}

fn rotation_from_the_node(fixture: &Fixture) -> Result<()> {
    for node in fixture.lab.nodes() {
        for url in [format!("http://localhost:{HTTP}/"), fixture.url(node, HTTP)?] {
            expect_requests_in_rotation(&fixture.lab, node, &url)?;
        }
        // Another node's address is served by that node, as for any client.
        let other = if node == "node1" { "node2" } else { "node1" };
        expect_requests_in_rotation(&fixture.lab, node, &fixture.url(other, HTTP)?)?;
    }
    Ok(())
}

fn client_address(fixture: &Fixture) -> Result<()> {
    let client = fixture.lab.address("client")?;
    if fixture.hides_clients()? {
        return client_or_entry_node(fixture, &client);
    }
    for node in fixture.lab.nodes() {
        let replies = fixture.lab.fetch("client", &fixture.url(node, HTTP)?, 5)?;
        expect_client_address(&replies, &client).with_context(|| format!("behind {node}"))?;
    }
    let replies = fixture.lab.fetch("node2", &fixture.url("node1", HTTP)?, 5)?;
    expect_client_address(&replies, &fixture.lab.address("node2")?).context("from one node to another")
}

/// IPVS shows the entry node's address to replicas on other nodes, and the client's to its own.
fn client_or_entry_node(fixture: &Fixture, client: &str) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    for node in fixture.lab.nodes() {
        let replies = fixture.lab.fetch("client", &fixture.url(node, HTTP)?, 5)?;
        expect_answers(&replies)?;
        let entry = fixture.lab.address(node)?;
        expect_peers(&tasks, &replies, |own| {
            Ok(if own == node {
                client.to_owned()
            } else {
                entry.clone()
            })
        })
        .with_context(|| format!("through {node}"))?;
    }
    Ok(())
}

fn hairpin(fixture: &Fixture) -> Result<()> {
    let tasks = fixture.lab.running_tasks("web")?;
    for node in fixture.lab.nodes() {
        let task = tasks.iter().find(|task| task.node == node);
        let task = task.with_context(|| format!("no replica runs on {node}"))?;
        let container = fixture.lab.container_of(task)?;
        let url = fixture.url(node, HTTP)?;
        let program = "/bin/mesh-testbed";
        in_rotation(|| {
            let text = fixture
                .lab
                .docker(node, ["exec", &container, program, "get", &url, "--count", "10"])?;
            let replies = text.lines().map(serde_json::from_str);
            let replies = replies
                .collect::<Result<Vec<_>, _>>()
                .context("the answers are not JSON")?;
            expect_answers(&replies)?;
            Ok(replies)
        })
        .with_context(|| format!("from a container on {node} to {url}"))?;
    }
    Ok(())
}

fn localhost_by_ipv6(fixture: &Fixture) -> Result<()> {
    let reply = fixture.lab.connect("node2", &format!("[::1]:{HTTP}"))?;
    ensure!(
        matches!(reply.outcome.as_str(), "answered" | "refused"),
        "::1 gave {}: {}",
        reply.outcome,
        reply.error
    );
    Ok(())
}

fn transfers(fixture: &Fixture) -> Result<()> {
    // The client enters at node1, and once at node3 itself.
    with_far_replica(fixture, &["9300:80"], || {
        wait_for_port(fixture, "node3", 9300)?;
        // A slow machine gets less to do.
        let small = 32 * MIB / u64::from(patience());
        for (node, size) in [("node1", 2 * small), ("node3", small)] {
            transfer(fixture, &fixture.url(node, 9300)?, size)?;
        }
        // And from a process of a node without the replica.
        let url = format!("http://localhost:9300/download?bytes={small}");
        let bytes = small.to_string();
        fixture.lab.testbed(
            "node2",
            &["download", &url, "--bytes", &bytes, "--timeout", "60000"],
        )?;
        Ok(())
    })
}

/// Does some work while there is a service whose only replica is on node3, and which is answered on port 9300
/// of node1.
pub(crate) fn with_far_replica(
    fixture: &Fixture,
    ports: &[&str],
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let constraint = ["--constraint", "node.hostname==node3"];
    fixture.lab.create_service("far", 1, ports, &constraint)?;
    let outcome = wait_for_port(fixture, "node1", 9300).and_then(|()| work());
    fixture.lab.remove_service("far")?;
    outcome
}

/// Uploads and downloads as many bytes between the client and the service at a URL.
pub(crate) fn transfer(fixture: &Fixture, base: &str, bytes: u64) -> Result<()> {
    let bytes = bytes.to_string();
    let upload = format!("{base}upload");
    let download = format!("{base}download?bytes={bytes}");
    for (direction, url) in [("upload", &upload), ("download", &download)] {
        let arguments = [direction, url, "--bytes", &bytes, "--timeout", "120000"];
        fixture
            .lab
            .testbed("client", &arguments)
            .with_context(|| format!("{direction} of {bytes} bytes by {base}"))?;
    }
    Ok(())
}

fn udp(fixture: &Fixture) -> Result<()> {
    let client = fixture.lab.address("client")?;
    let hides_clients = fixture.hides_clients()?;
    for node in fixture.lab.nodes() {
        // A port that the client has used towards another node, which it takes at random, is translated.
        in_rotation(|| {
            let replies = fixture.lab.datagrams("client", &fixture.at(node, UDP)?, 10)?;
            for reply in replies.iter().filter(|_| !hides_clients) {
                let port = reply.local.rsplit(':').next().unwrap_or_default();
                ensure!(
                    reply.peer == format!("{client}:{port}"),
                    "{} saw {}",
                    reply.task,
                    reply.peer
                );
            }
            Ok(replies)
        })
        .with_context(|| format!("from the client to {node}"))?;
        in_rotation(|| fixture.lab.datagrams(node, &format!("127.0.0.1:{UDP}"), 10))
            .with_context(|| format!("on {node} to localhost"))?;
    }
    Ok(())
}

/// Waits until a port answers at a node.
pub(crate) fn wait_for_port(fixture: &Fixture, node: &str, port: u16) -> Result<()> {
    let url = fixture.url(node, port)?;
    xtask::lab::wait_until(
        &format!("port {port} of {node}"),
        std::time::Duration::from_secs(20),
        || expect_answers(&fixture.lab.fetch_with("client", &url, 1, &["--timeout", "500"])?),
    )
}
