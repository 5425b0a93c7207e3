//! Stories of hostile peers: garbage frames, and clients without a certificate.

use std::{fs, net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use xtask::{
    command::run_with_input,
    lab::{agent::metric_sum, engine, wait_until},
    paths,
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
    let target = Target::of(fixture, node)?;
    let before = drops(fixture, node, &[])?;
    let frames: Vec<Vec<u8>> = target.garbage().into_iter().map(|(_, frame)| frame).collect();
    for _ in 0..20 {
        inject(fixture, &frames)?;
    }
    wait_until("the drops to be counted", Duration::from_secs(5), || {
        let after = drops(fixture, node, &[])?;
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
        send_as_peer(fixture, node, None)? == Received::WithoutKey,
        "it was accepted"
    );
    // The peer itself is still served.
    expect_requests_in_rotation(&fixture.lab, "client", &fixture.url(node, HTTP)?)
}

/// What a node makes of a packet whose inside is empty.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// It is dropped before it is looked into.
    WithoutKey,
    /// It is dropped for what is in it.
    WithKey,
}

/// Sends a packet to a node in the name of `node1`, perhaps with a key.
pub(crate) fn send_as_peer(fixture: &Fixture, node: &str, key: Option<[u8; 8]>) -> Result<Received> {
    let dump = fixture
        .lab
        .meshctl(node, &["datapath", "dump", "--format", "json"])?;
    let answer: serde_json::Value = serde_json::from_str(&dump).context("the dump is not JSON")?;
    let dump = &answer["dump"];
    let network = dump["settings"]["vni"].as_u64().context("the dump has no VNI")?;
    let backend = dump["backends"][0]["address"]
        .as_str()
        .context("the dump has no backend")?
        .parse::<Ipv4Addr>()?;
    let mut target = Target::of(fixture, node)?;
    target.from = fixture.lab.address("node1")?.parse::<Ipv4Addr>()?.octets();
    let [_, vni @ ..] = u32::try_from(network)?.to_be_bytes();
    // Geneve as of mesh_ebpf::headers: one option, whose type is a forwarded packet; its length in 4 bytes.
    let (length, key) = match &key {
        Some(key) => (4, key.as_slice()),
        None => (2, [].as_slice()),
    };
    let body = [
        [length + 1, 0x40, 0x08, 0x00].as_slice(),
        &vni,
        &[0, 0xff, 0x5a, 0x81, length],
        &backend.octets(),
        &[0, 80, 0, 0],
        key,
        &[0; 40],
    ]
    .concat();
    let counted = || -> Result<(f64, f64)> {
        let no_key = drops(fixture, node, &["reason=\"no_key\""])?;
        Ok((no_key, drops(fixture, node, &[])? - no_key))
    };
    let before = counted()?;
    inject(fixture, &[target.geneve(&body)])?;
    let mut after = before;
    wait_until("the packet to be dropped", Duration::from_secs(5), || {
        after = counted()?;
        ensure!(after != before, "the drops are still {after:?}");
        Ok(())
    })?;
    Ok(if after.0 > before.0 {
        Received::WithoutKey
    } else {
        Received::WithKey
    })
}

/// Sends frames from the client as they are.
fn inject(fixture: &Fixture, frames: &[Vec<u8>]) -> Result<()> {
    let lines: String = frames.iter().map(|frame| hexadecimal(frame) + "\n").collect();
    let program = paths::program("mesh-testbed");
    let program = program
        .to_str()
        .context("the target folder's path is not UTF-8")?;
    let mut inject: Command = fixture.lab.command("client", [program, "inject"])?;
    let sent = run_with_input(&mut inject, lines.as_bytes())?;
    ensure!(
        sent == frames.len().to_string(),
        "{sent} frames were sent of {}",
        frames.len()
    );
    Ok(())
}

/// What a node's data path has dropped, for all reasons or some.
fn drops(fixture: &Fixture, node: &str, labels: &[&str]) -> Result<f64> {
    Ok(metric_sum(
        &fixture.lab.metrics(node)?,
        "mesh_drops_total",
        labels,
    ))
}

/// The destination and the source of the frames.
struct Target {
    to_mac: [u8; 6],
    from_mac: [u8; 6],
    to: [u8; 4],
    from: [u8; 4],
}

impl Target {
    fn of(fixture: &Fixture, node: &str) -> Result<Self> {
        let address = |name: &str| -> Result<[u8; 4]> {
            Ok(fixture
                .lab
                .address(name)?
                .parse::<Ipv4Addr>()
                .context("no address")?
                .octets())
        };
        let mac = |name: &str| -> Result<[u8; 6]> {
            let text = fixture
                .lab
                .run(name, ["cat", "/proc/self/net/../../self/net/dev"])
                .and_then(|_| {
                    fixture.lab.run(
                        name,
                        [
                            "sh",
                            "-c",
                            "ip -oneline link show eth0 | sed 's/.*ether //; s/ .*//'",
                        ],
                    )
                })?;
            let bytes: Vec<u8> = text
                .trim()
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16))
                .collect::<Result<_, _>>()?;
            bytes
                .try_into()
                .map_err(|_| anyhow::anyhow!("`{text}` is no MAC address"))
        };
        Ok(Self {
            to_mac: mac(node)?,
            from_mac: mac("client")?,
            to: address(node)?,
            from: address("client")?,
        })
    }

    fn frame(&self, ip: &[u8]) -> Vec<u8> {
        [self.to_mac.as_slice(), &self.from_mac, &[0x08, 0x00], ip].concat()
    }

    /// An IPv4 header with a correct checksum; `total` is the length it claims.
    fn ip(&self, protocol: u8, fragment: u16, options: &[u8], total: u16) -> Vec<u8> {
        let length = 5 + options.len() / 4;
        let mut header = vec![0x40 | length as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(self.from);
        header.extend(self.to);
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    /// A packet to the mesh's UDP port.
    fn geneve(&self, body: &[u8]) -> Vec<u8> {
        let length = 8 + body.len() as u16;
        let (ip, udp) = (self.ip(17, 0, &[], 20 + length), udp(6081, length));
        self.frame(&[ip.as_slice(), &udp, body].concat())
    }

    /// Frames, each with what is wrong with it.
    fn garbage(&self) -> Vec<(&'static str, Vec<u8>)> {
        let tcp = |flags: u8, offset: u8| {
            let mut header = 40_000_u16.to_be_bytes().to_vec();
            header.extend(HTTP.to_be_bytes());
            header.extend([0, 0, 0, 1, 0, 0, 0, 0, offset << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            header
        };
        let join = |header: Vec<u8>, body: &[u8]| self.frame(&[header.as_slice(), body].concat());
        let mut version_six = join(self.ip(6, 0, &[], 40), &tcp(2, 5));
        version_six[14] = 0x65;
        let mut short_header = join(self.ip(6, 0, &[], 40), &tcp(2, 5));
        short_header[14] = 0x43;
        vec![
            ("an Ethernet header alone", self.frame(&[])),
            (
                "an IPv4 header cut short",
                self.frame(&self.ip(6, 0, &[], 40)[..12]),
            ),
            (
                "a TCP header cut short",
                join(self.ip(6, 0, &[], 40), &tcp(2, 5)[..7]),
            ),
            (
                "a UDP header cut short",
                join(self.ip(17, 0, &[], 28), &udp(UDP, 8)[..3]),
            ),
            ("version 6 in an IPv4 frame", version_six),
            ("a header length below the least", short_header),
            (
                "a total length beyond the frame",
                join(self.ip(6, 0, &[], 1400), &tcp(2, 5)),
            ),
            (
                "a total length below the header",
                join(self.ip(6, 0, &[], 10), &tcp(2, 5)),
            ),
            (
                "a TCP offset below the least",
                join(self.ip(6, 0, &[], 40), &tcp(2, 2)),
            ),
            (
                "a TCP offset beyond the packet",
                join(self.ip(6, 0, &[], 40), &tcp(2, 15)),
            ),
            ("no TCP flags", join(self.ip(6, 0, &[], 40), &tcp(0, 5))),
            ("all TCP flags", join(self.ip(6, 0, &[], 40), &tcp(0xff, 5))),
            ("IP options", join(self.ip(6, 0, &[1, 1, 1, 0], 44), &tcp(2, 5))),
            (
                "an IP option longer than the header",
                join(self.ip(6, 0, &[7, 200, 0, 0], 44), &tcp(2, 5)),
            ),
            (
                "the first fragment",
                join(
                    self.ip(17, 0x2000, &[], 44),
                    &[udp(UDP, 100), vec![0; 16]].concat(),
                ),
            ),
            ("a later fragment", join(self.ip(17, 0x0005, &[], 44), &[0; 24])),
            (
                "a UDP length beyond the packet",
                join(self.ip(17, 0, &[], 28), &udp(UDP, 1000)),
            ),
            (
                "a UDP length below the header",
                join(self.ip(17, 0, &[], 28), &udp(UDP, 2)),
            ),
            (
                "Geneve from a stranger",
                self.geneve(&[0, 0, 0x08, 0, 0, 0, 0, 0]),
            ),
            (
                "Geneve of a wrong version",
                self.geneve(&[0xc0, 0, 0x08, 0, 0, 0, 0, 0]),
            ),
            (
                "Geneve with options beyond the packet",
                self.geneve(&[0x3f, 0, 0x08, 0, 0, 0, 0, 0]),
            ),
            ("Geneve cut short", self.geneve(&[0, 0])),
        ]
    }
}

/// A UDP header without a checksum; `length` is the length it claims.
fn udp(port: u16, length: u16) -> Vec<u8> {
    [40_001, port, length, 0].map(u16::to_be_bytes).concat()
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
