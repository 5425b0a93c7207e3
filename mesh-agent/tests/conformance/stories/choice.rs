//! How replicas are chosen: algorithms, weights, affinity.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use mesh_agent::model::{Algorithm, Balance};

use crate::{
    mesh::{Mesh, WEB},
    talk::{Answer, Connection, PATIENCE, spread},
    until,
};

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// Lists the algorithms that a data path lacks.
const README: &str = include_str!("../../../../README.md");

fn by(algorithm: Algorithm) -> Balance {
    Balance {
        algorithm,
        ..Balance::default()
    }
}

/// Whether the data path has an algorithm.
fn has(mesh: &Mesh<'_>, algorithm: Algorithm) -> bool {
    mesh.rung.capabilities.algorithms.contains(&algorithm)
}

/// One connection of a client, from a port of its own.
fn ask_from(mesh: &Mesh<'_>, source: IpAddr) -> std::io::Result<Answer> {
    Connection::open_from(
        &mesh.world.client,
        SocketAddr::new(source, 0),
        mesh.frontend(1, WEB),
    )?
    .ask()
}

/// Every algorithm serves all replicas on every data path, and the README lists those that are replaced by
/// another.
pub(super) fn algorithms(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.start()?;
    for algorithm in Algorithm::ALL {
        mesh.publish_web(by(algorithm), REPLICAS);
        mesh.apply()?;
        let answers = spread(32, || ask_from(mesh, mesh.client())).with_context(|| algorithm.name())?;
        ensure!(answers.len() >= 2, "{} spreads {answers:?}", algorithm.name());
        if !has(mesh, algorithm) {
            let name = format!("`{}`", algorithm.name());
            ensure!(
                README.contains(&name),
                "the README does not say that {} has no {name}",
                mesh.rung.name
            );
        }
    }
    Ok(())
}

pub(super) fn weights(mesh: &mut Mesh<'_>) -> Result<()> {
    if !has(mesh, Algorithm::WeightedRoundRobin) {
        return Ok(());
    }
    if let Some(node) = mesh.cluster.nodes.get_mut("node2") {
        node.weight = 3;
    }
    mesh.publish_web(by(Algorithm::WeightedRoundRobin), &["a1", "a2"]);
    mesh.start()?;
    let answers = spread(16, || ask_from(mesh, mesh.client()))?;
    let expected = BTreeMap::from([("a1".to_owned(), 4), ("a2".to_owned(), 12)]);
    ensure!(answers == expected, "{answers:?}");
    let node = mesh.world.node(1);
    let target = mesh.loopback(WEB);
    let answers = spread(16, || crate::talk::ask(&node.netns, target))?;
    ensure!(answers == expected, "by loopback: {answers:?}");
    Ok(())
}

/// The replica that answers a connection from each of these ports of the client.
fn by_port(mesh: &Mesh<'_>, ports: impl Iterator<Item = u16>) -> Result<BTreeMap<u16, String>> {
    ports
        .map(|port| {
            let source = SocketAddr::new(mesh.client(), port);
            let mut connection = Connection::open_from(&mesh.world.client, source, mesh.frontend(1, WEB))
                .with_context(|| format!("from port {port}"))?;
            let replica = connection.ask()?.replica;
            connection.abort()?;
            Ok((port, replica))
        })
        .collect()
}

pub(super) fn hash(mesh: &mut Mesh<'_>) -> Result<()> {
    if !has(mesh, Algorithm::Maglev) {
        return Ok(());
    }
    mesh.publish_web(by(Algorithm::Maglev), REPLICAS);
    mesh.start()?;
    let ports = || 20_000..20_048;
    let first = by_port(mesh, ports())?;
    let used: std::collections::BTreeSet<_> = first.values().collect();
    ensure!(used.len() == REPLICAS.len(), "48 ports reach only {used:?}");
    let second = by_port(mesh, ports())?;
    ensure!(first == second, "{first:?} became {second:?}");
    // Every node chooses the same.
    if mesh.rung.capabilities.shows_clients_to_remote_replicas {
        let replica = &first[&20_000];
        let source = SocketAddr::new(mesh.client(), 20_000);
        let mut connection = Connection::open_from(&mesh.world.client, source, mesh.frontend(2, WEB))?;
        let other = connection.ask()?.replica;
        connection.abort()?;
        ensure!(*replica == other, "node1 chooses {replica}, node2 {other}");
    }
    // Few connections of the others move when one replica is removed.
    mesh.remove("web", "b2");
    mesh.apply()?;
    let third = by_port(mesh, ports())?;
    let others: Vec<_> = first.iter().filter(|(_, replica)| *replica != "b2").collect();
    let moved = others
        .iter()
        .filter(|(port, replica)| third[*port] != **replica)
        .count();
    ensure!(moved * 4 <= others.len(), "{moved} of {} moved", others.len());
    Ok(())
}

pub(super) fn least_connections(mesh: &mut Mesh<'_>) -> Result<()> {
    for (algorithm, weight) in [
        (Algorithm::LeastConnection, 1),
        (Algorithm::WeightedLeastConnection, 3),
    ] {
        if !has(mesh, algorithm) {
            continue;
        }
        if let Some(node) = mesh.cluster.nodes.get_mut("node2") {
            node.weight = weight;
        }
        mesh.publish_web(by(algorithm), &["a1", "a2"]);
        mesh.start()?;
        let mut kept = BTreeMap::<String, Vec<Connection>>::new();
        let share = weight as usize;
        for _ in 0..2 * (1 + share) {
            let mut connection = Connection::open(&mesh.world.client, mesh.frontend(1, WEB))?;
            let replica = connection.ask()?.replica;
            kept.entry(replica).or_default().push(connection);
        }
        let counts: BTreeMap<_, _> = kept
            .iter()
            .map(|(name, kept)| (name.as_str(), kept.len()))
            .collect();
        let expected = BTreeMap::from([("a1", 2), ("a2", 2 * share)]);
        ensure!(counts == expected, "{} spreads {counts:?}", algorithm.name());
        // All connections to one replica end: it is idle now.
        for connection in kept.remove("a1").unwrap_or_default() {
            drop(connection);
        }
        until("a1 is idle", PATIENCE, || {
            let traffic = mesh.traffic(1, WEB, "a1")?;
            ensure!(traffic.connections_active == 0, "{traffic:?}");
            Ok(())
        })?;
        let mut connection = Connection::open(&mesh.world.client, mesh.frontend(1, WEB))?;
        let replica = connection.ask()?.replica;
        ensure!(
            replica == "a1",
            "{} chose {replica}, which is busy",
            algorithm.name()
        );
        mesh.stop()?;
    }
    Ok(())
}

pub(super) fn affinity(mesh: &mut Mesh<'_>) -> Result<()> {
    if !mesh.rung.capabilities.affinity {
        return Ok(());
    }
    let balance = Balance {
        affinity: Some(300),
        ..Balance::default()
    };
    mesh.publish_web(balance, REPLICAS);
    mesh.start()?;
    let mut homes = BTreeMap::new();
    let clients @ [first, second] = mesh.world.family.clients();
    for client in clients {
        let answers = spread(6, || ask_from(mesh, client))?;
        ensure!(answers.len() == 1, "{client} reaches {answers:?}");
        homes.insert(client, answers.into_keys().next().unwrap_or_default());
    }
    ensure!(homes[&first] != homes[&second], "all clients reach {homes:?}");
    mesh.drain("web", &homes[&first]);
    mesh.apply()?;
    let answers = spread(6, || ask_from(mesh, first))?;
    ensure!(
        answers.len() == 1 && !answers.contains_key(&homes[&first]),
        "{} drains, and its client reaches {answers:?}",
        homes[&first]
    );
    let answers = spread(6, || ask_from(mesh, second))?;
    ensure!(
        answers.contains_key(&homes[&second]) && answers.len() == 1,
        "the other client has moved from {} to {answers:?}",
        homes[&second]
    );
    Ok(())
}
