//! The mesh's counters, compared with those of the client's kernel.

use anyhow::{Context, Result, ensure};
use mesh_agent::{
    datapath::Traffic,
    model::{Balance, Protocol, ServiceKey},
};

use super::changes::connect_to_all;
use crate::{
    mesh::Mesh,
    netns::Netns,
    talk::{Connection, PATIENCE, ask, ask_by_datagram},
    until,
    world::World,
};

/// A TCP and a UDP port that no other story uses: in IPVS, a destination that comes back within two minutes
/// has its old counters, and those may lag behind by two seconds.
const fn own_ports(tcp: u16) -> [ServiceKey; 2] {
    [
        ServiceKey {
            protocol: Protocol::Tcp,
            port: tcp,
        },
        ServiceKey {
            protocol: Protocol::Udp,
            port: tcp + 1,
        },
    ]
}

const COUNTED: [ServiceKey; 2] = own_ports(9310);
const ENTERED: [ServiceKey; 2] = own_ports(9320);

/// Counts a client's packets to and from a frontend.
struct Meter<'a> {
    client: &'a Netns,
}

impl<'a> Meter<'a> {
    /// Starts counting the packets of one service of node 1.
    fn start(world: &'a World, service: ServiceKey) -> Result<Self> {
        let (address, protocol, port) = (world.node(1).address, service.protocol, service.port);
        let client = &world.client;
        client.run_with_input(
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
        let text = self.client.run_line("nft list table ip measure")?;
        let numbers: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("counter packets"))
            .flat_map(|line| {
                line.split_whitespace()
                    .skip_while(|field| *field != "counter")
                    .filter_map(|field| field.parse().ok())
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
        if let Err(error) = self.client.run_line("nft delete table ip measure") {
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
        mesh.publish("counted", &COUNTED, Balance::default());
        mesh.add_task("counted", replica);
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
        services[&COUNTED[0]].connections_total == 6 && services[&COUNTED[1]].connections_total == 8,
        "a service's counters lack removed replicas: {services:?}"
    );
    Ok(())
}

fn tcp(mesh: &mut Mesh<'_>, replica: &str) -> Result<()> {
    let world = mesh.world;
    let [service, _] = COUNTED;
    let target = mesh.frontend(1, service);
    let meter = Meter::start(world, service)?;
    let mut open = Connection::open(&world.client, target)?;
    open.ask()?;
    ask(&world.client, target)?;
    ask(&world.client, target)?;
    until_counted(mesh, service, replica, &meter, [3, 1])?;
    drop(open);
    until_counted(mesh, service, replica, &meter, [3, 0])
}

fn udp(mesh: &mut Mesh<'_>, replica: &str) -> Result<()> {
    let world = mesh.world;
    let [_, service] = COUNTED;
    let target = mesh.frontend(1, service);
    let meter = Meter::start(world, service)?;
    for _ in 0..4 {
        ask_by_datagram(&world.client, target)?;
    }
    until_counted(mesh, service, replica, &meter, [4, 4])
}

/// Waits until node 1 has counted what the client has, and the numbers of connections, all and open.
fn until_counted(
    mesh: &mut Mesh<'_>,
    service: ServiceKey,
    replica: &str,
    meter: &Meter<'_>,
    connections: [u64; 2],
) -> Result<()> {
    until("the counters are right", PATIENCE, || {
        let counted = mesh.traffic(1, service, replica)?;
        let expected = meter.read()?;
        ensure!(
            [counted.connections_total, counted.connections_active] == connections,
            "not {connections:?}, but {counted:?}"
        );
        ensure!(
            shown(counted) == expected,
            "the client {expected:?}, the node {counted:?}"
        );
        Ok(())
    })
}

pub(super) fn entry_node(mesh: &mut Mesh<'_>) -> Result<()> {
    let replicas = ["a1", "a2"];
    let [web, echo] = ENTERED;
    mesh.publish("entered", &ENTERED, Balance::default());
    for replica in replicas {
        mesh.add_task("entered", replica);
    }
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, web);
    let kept = connect_to_all(&world.client, target, &replicas)?;
    for _ in 0..2 {
        ask_by_datagram(&world.client, mesh.frontend(1, echo))?;
    }
    until_connections(mesh, [1, 1])?;
    for replica in replicas {
        for service in ENTERED {
            let there = mesh.traffic(2, service, replica)?;
            ensure!(
                there == Traffic::default(),
                "node2 counts {there:?} for {replica}"
            );
        }
    }
    drop(kept);
    // Connections of local processes and containers enter here as well; each counts once.
    let node = world.node(1);
    for (number, netns, target) in [
        (2, &node.netns, target),
        (3, &node.netns, mesh.loopback(web)),
        (4, &world.container("x1").netns, target),
    ] {
        ask(netns, target)?;
        ask(netns, target)?;
        until_connections(mesh, [number; 2])?;
    }
    Ok(())
}

fn until_connections(mesh: &mut Mesh<'_>, expected: [u64; 2]) -> Result<()> {
    until("every connection is counted once", PATIENCE, || {
        let counted = connections(mesh)?;
        ensure!(counted == expected, "{counted:?}, not {expected:?}");
        Ok(())
    })
}

/// Connections so far to the replicas on both nodes.
fn connections(mesh: &mut Mesh<'_>) -> Result<[u64; 2]> {
    Ok([
        mesh.traffic(1, ENTERED[0], "a1")?.connections_total,
        mesh.traffic(1, ENTERED[0], "a2")?.connections_total,
    ])
}
