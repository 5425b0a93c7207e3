//! Stories of hostile peers: garbage frames, and clients without a certificate.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use xtask::lab::{
    engine,
    forge::{Received, Route, udp},
    wait_until,
};

use crate::{
    expect::{expect_answers, expect_requests_in_rotation},
    fixture::{Fixture, HTTP, UDP},
    group::Story,
};

pub(crate) const STORIES: &[Story] = &[
    ("garbage_frames_are_counted_and_do_no_harm", garbage),
    ("a_forged_packet_of_a_peer_is_dropped_for_want_of_the_key", forged),
    ("a_peer_without_a_nodes_certificate_is_refused", foreign_peers),
];

fn garbage(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    let route = Route::to(&fixture.lab, node)?;
    let before = fixture.lab.drops(node, &[])?;
    let frames: Vec<Vec<u8>> = garbage_frames(&route)
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    for _ in 0..20 {
        fixture.lab.inject(&frames)?;
    }
    wait_until("the drops to be counted", Duration::from_secs(5), || {
        let after = fixture.lab.drops(node, &[])?;
        // The mesh does not drop every kind: what is not for it goes to the kernel.
        ensure!(
            after - before >= 20.0 * 4.0,
            "mesh_drops_total went from {before} to {after}"
        );
        Ok(())
    })?;
    expect_requests_in_rotation(&fixture.lab, "client", &fixture.url(node, HTTP)?)
        .context("after the garbage")?;
    expect_answers(&fixture.lab.datagrams("client", &fixture.at(node, UDP)?, 5)?)
        .context("UDP after the garbage")?;
    ensure!(fixture.lab.agent_is_running(node)?, "the agent has ended");
    Ok(())
}

/// Nothing but the key tells such a packet from the peer's own: who can forge its address can know the
/// cluster's id.
fn forged(fixture: &Fixture) -> Result<()> {
    let node = "node2";
    ensure!(
        fixture.lab.send_as_peer(node, "node1", None)? == Received::WithoutKey,
        "it was accepted"
    );
    // The peer itself is still served.
    expect_requests_in_rotation(&fixture.lab, "client", &fixture.url(node, HTTP)?)
}

/// Frames, each with what is wrong with it.
fn garbage_frames(route: &Route) -> Vec<(&'static str, Vec<u8>)> {
    let tcp = |flags: u8, offset: u8| {
        let mut header = 40_000_u16.to_be_bytes().to_vec();
        header.extend(HTTP.to_be_bytes());
        header.extend([0, 0, 0, 1, 0, 0, 0, 0, offset << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        header
    };
    let join = |header: Vec<u8>, body: &[u8]| route.frame(&[header.as_slice(), body].concat());
    let mut version_six = join(route.ip(6, 0, &[], 40), &tcp(2, 5));
    version_six[14] = 0x65;
    let mut short_header = join(route.ip(6, 0, &[], 40), &tcp(2, 5));
    short_header[14] = 0x43;
    vec![
        ("an Ethernet header alone", route.frame(&[])),
        (
            "an IPv4 header cut short",
            route.frame(&route.ip(6, 0, &[], 40)[..12]),
        ),
        (
            "a TCP header cut short",
            join(route.ip(6, 0, &[], 40), &tcp(2, 5)[..7]),
        ),
        (
            "a UDP header cut short",
            join(route.ip(17, 0, &[], 28), &udp(UDP, 8)[..3]),
        ),
        ("version 6 in an IPv4 frame", version_six),
        ("a header length below the least", short_header),
        (
            "a total length beyond the frame",
            join(route.ip(6, 0, &[], 1400), &tcp(2, 5)),
        ),
        (
            "a total length below the header",
            join(route.ip(6, 0, &[], 10), &tcp(2, 5)),
        ),
        (
            "a TCP offset below the least",
            join(route.ip(6, 0, &[], 40), &tcp(2, 2)),
        ),
        (
            "a TCP offset beyond the packet",
            join(route.ip(6, 0, &[], 40), &tcp(2, 15)),
        ),
        ("no TCP flags", join(route.ip(6, 0, &[], 40), &tcp(0, 5))),
        ("all TCP flags", join(route.ip(6, 0, &[], 40), &tcp(0xff, 5))),
        ("IP options", join(route.ip(6, 0, &[1, 1, 1, 0], 44), &tcp(2, 5))),
        (
            "an IP option longer than the header",
            join(route.ip(6, 0, &[7, 200, 0, 0], 44), &tcp(2, 5)),
        ),
        (
            "the first fragment",
            join(
                route.ip(17, 0x2000, &[], 44),
                &[udp(UDP, 100), vec![0; 16]].concat(),
            ),
        ),
        ("a later fragment", join(route.ip(17, 0x0005, &[], 44), &[0; 24])),
        (
            "a UDP length beyond the packet",
            join(route.ip(17, 0, &[], 28), &udp(UDP, 1000)),
        ),
        (
            "a UDP length below the header",
            join(route.ip(17, 0, &[], 28), &udp(UDP, 2)),
        ),
        (
            "Geneve from a stranger",
            route.geneve(&[0, 0, 0x08, 0, 0, 0, 0, 0]),
        ),
        (
            "Geneve of a wrong version",
            route.geneve(&[0xc0, 0, 0x08, 0, 0, 0, 0, 0]),
        ),
        (
            "Geneve with options beyond the packet",
            route.geneve(&[0x3f, 0, 0x08, 0, 0, 0, 0, 0]),
        ),
        ("Geneve cut short", route.geneve(&[0, 0])),
    ]
}

fn foreign_peers(fixture: &Fixture) -> Result<()> {
    let feed = fixture.at("node1", 9468)?;
    let dial = |more: &[&str]| {
        fixture
            .lab
            .testbed("client", &[&["tls", feed.as_str()], more].concat())
    };
    // A node's own certificate is accepted: otherwise the story would prove nothing.
    let certificates = engine::data_root(fixture.lab.state(), "node2").join("swarm/certificates");
    let path = |name: &str| certificates.join(name).display().to_string();
    let (certificate, key) = (path("swarm-node.crt"), path("swarm-node.key"));
    let node = dial(&["--certificate", &certificate, "--key", &key])?;
    ensure!(node == "kept", "a node's certificate: {node}");

    let none = dial(&[])?;
    ensure!(none.starts_with("refused"), "without a certificate: {none}");

    let folder = fixture.lab.state().data.join("stranger");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    for (name, subject) in [
        ("a foreign one", "a-node-of-another-cluster"),
        ("a copied name", "swarm-worker"),
    ] {
        let pair = rcgen::generate_simple_self_signed(vec![subject.to_owned()]).context("no certificate")?;
        let (certificate, key) = (folder.join("crt"), folder.join("key"));
        fs::write(&certificate, pair.cert.pem()).context("could not write the certificate")?;
        fs::write(&key, pair.signing_key.serialize_pem()).context("could not write the key")?;
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        let outcome = dial(&["--certificate", &certificate, "--key", &key])?;
        ensure!(outcome.starts_with("refused"), "{name}: {outcome}");
    }
    // The workers' own connections stay.
    fixture.until_all_know("web", Duration::from_secs(5))
}
