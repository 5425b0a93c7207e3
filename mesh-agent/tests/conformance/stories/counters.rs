//! What is counted, against what the client's own kernel counts.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use mesh_agent::{
    datapath::Traffic,
    model::{Balance, ServiceKey},
};

use super::changes::conversations;
use crate::{
    mesh::{ECHO, Mesh, WEB, settled},
    space::Space,
    talk::{Conversation, ask, ask_by_datagram},
    world::World,
};

/// Counts a client's packets to and from a frontend.
struct Meter<'a> {
    client: &'a Space,
}

impl<'a> Meter<'a> {
    /// Begins to count what concerns one service of node 1.
    fn start(world: &'a World, service: ServiceKey) -> Result<Self> {
        let (address, protocol, port) = (world.node(1).address, service.protocol, service.port);
        let client = &world.client;
        client.feed(
            "nft",
            &["-f", "-"],
            &format!(
                "table ip measure {{\n\
                 chain sent {{ type filter hook output priority 0; ip daddr {address} {protocol} dport {port} counter; }}\n\
                 chain received {{ type filter hook input priority 0; ip saddr {address} {protocol} sport {port} counter; }}\n\
                 }}\n"
            ),
        )?;
        Ok(Self { client })
    }

    /// Packets and bytes sent, packets and bytes received.
    fn read(&self) -> Result<[u64; 4]> {
        let text = self.client.say("nft list table ip measure")?;
        let numbers: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("counter packets"))
            .flat_map(|line| {
                line.split_whitespace()
                    .skip_while(|word| *word != "counter")
                    .filter_map(|word| word.parse().ok())
            })
            .collect();
        numbers
            .try_into()
            .ok()
            .with_context(|| format!("two rules with counters: {text}"))
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.client.say("nft delete table ip measure") {
            eprintln!("{error:#}");
        }
    }
}

fn shown(traffic: Traffic) -> [u64; 4] {
    [
        traffic.packets_in,
        traffic.bytes_in,
        traffic.packets_out,
        traffic.bytes_out,
    ]
}

pub(super) fn exact(mesh: &mut Mesh<'_>) -> Result<()> {
    for (number, replica) in ["a1", "a2"].into_iter().enumerate() {
        mesh.cluster.tasks.clear();
        mesh.publish_web(Balance::default(), &[replica]);
        if number == 0 {
            mesh.start()?;
        } else {
            mesh.apply()?;
        }
        tcp(mesh, replica).with_context(|| format!("TCP to {replica}"))?;
        udp(mesh, replica).with_context(|| format!("UDP to {replica}"))?;
    }
    let services = mesh.counters(1)?.services;
    ensure!(
        services[&WEB].connections_total == 6 && services[&ECHO].connections_total == 8,
        "a service's counters keep replicas that have gone: {services:?}"
    );
    Ok(())
}

fn tcp(mesh: &mut Mesh<'_>, replica: &str) -> Result<()> {
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let meter = Meter::start(world, WEB)?;
    let mut open = Conversation::open(&world.client, target)?;
    open.ask()?;
    ask(&world.client, target)?;
    ask(&world.client, target)?;
    let counted = settled(|| mesh.traffic(1, WEB, replica))?;
    let expected = settled(|| meter.read())?;
    ensure!(
        shown(counted) == expected,
        "counted {counted:?}, but the client {expected:?}"
    );
    ensure!(counted.connections_total == 3, "{counted:?}");
    ensure!(counted.connections_active == 1, "one is open: {counted:?}");
    drop(open);
    let counted = settled(|| mesh.traffic(1, WEB, replica))?;
    ensure!(counted.connections_active == 0, "none is open: {counted:?}");
    ensure!(shown(counted) == settled(|| meter.read())?, "{counted:?}");
    Ok(())
}

fn udp(mesh: &mut Mesh<'_>, replica: &str) -> Result<()> {
    let world = mesh.world;
    let target = mesh.frontend(1, ECHO);
    let meter = Meter::start(world, ECHO)?;
    for _ in 0..4 {
        ask_by_datagram(&world.client, target)?;
    }
    let counted = settled(|| mesh.traffic(1, ECHO, replica))?;
    let expected = meter.read()?;
    ensure!(
        shown(counted) == expected && counted.packets_in == 4 && counted.packets_out == 4,
        "counted {counted:?}, but the client {expected:?}"
    );
    ensure!(counted.connections_total == 4, "{counted:?}");
    ensure!(counted.connections_active == 4, "{counted:?}");
    Ok(())
}

pub(super) fn entry_node(mesh: &mut Mesh<'_>) -> Result<()> {
    let replicas = ["a1", "a2"];
    mesh.publish_web(Balance::default(), &replicas);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let kept = conversations(&world.client, target, &replicas)?;
    for _ in 0..2 {
        ask_by_datagram(&world.client, mesh.frontend(1, ECHO))?;
    }
    for replica in replicas {
        let here = settled(|| mesh.traffic(1, WEB, replica))?;
        ensure!(here.connections_total == 1, "{replica}: {here:?}");
        for service in [WEB, ECHO] {
            let there = mesh.traffic(2, service, replica)?;
            ensure!(
                there == Traffic::default(),
                "node2 counts {there:?} for {replica}"
            );
        }
    }
    drop(kept);
    // Local processes and containers enter here too, each once.
    let node = world.node(1);
    for (space, target) in [
        (&node.space, target),
        (
            &node.space,
            SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, WEB.port),
        ),
        (&world.container("x1").space, target),
    ] {
        let before = connections(mesh)?;
        ask(space, target)?;
        ask(space, target)?;
        let after = settled(|| connections(mesh))?;
        ensure!(
            after
                .iter()
                .zip(before)
                .all(|(after, before)| *after == before + 1),
            "{before:?} became {after:?}"
        );
    }
    Ok(())
}

/// Connections so far to the replicas on both nodes.
fn connections(mesh: &mut Mesh<'_>) -> Result<[u64; 2]> {
    Ok([
        mesh.traffic(1, WEB, "a1")?.connections_total,
        mesh.traffic(1, WEB, "a2")?.connections_total,
    ])
}
