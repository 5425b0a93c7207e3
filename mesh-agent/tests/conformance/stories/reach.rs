//! Which clients reach a service, and which address the replica sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::model::Balance;

use crate::{
    mesh::{ECHO, Mesh, WEB},
    netns::Netns,
    talk::{Connection, TCP_PORT, ask, ask_by_connected_datagram, ask_by_datagram, spread},
    world::{Family, GATEWAY},
};

/// How fast a port without replicas refuses: a client that gets no answer sends its SYN again for minutes.
const AT_ONCE: Duration = Duration::from_secs(3);

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// Each replica as often as the others.
fn even(replicas: &[&str], times: usize) -> BTreeMap<String, usize> {
    replicas.iter().map(|name| ((*name).to_owned(), times)).collect()
}

fn web(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()
}

pub(super) fn rotation(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    let target = mesh.frontend(1, WEB);
    let answers = spread(12, || ask(&mesh.world.client, target))?;
    ensure!(answers == even(REPLICAS, 3), "{answers:?}");
    Ok(())
}

pub(super) fn every_node_answers(mesh: &mut Mesh<'_>) -> Result<()> {
    // Replicas on one node only: the other node only forwards.
    mesh.publish_web(Balance::default(), &["a1", "b1"]);
    mesh.start()?;
    for number in [1, 2] {
        let target = mesh.frontend(number, WEB);
        let answers =
            spread(4, || ask(&mesh.world.client, target)).with_context(|| format!("through node{number}"))?;
        ensure!(
            answers == even(&["a1", "b1"], 2),
            "through node{number}: {answers:?}"
        );
    }
    Ok(())
}

pub(super) fn datagrams(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    let target = mesh.frontend(1, ECHO);
    let answers = spread(8, || ask_by_datagram(&mesh.world.client, target))?;
    ensure!(answers == even(REPLICAS, 2), "{answers:?}");
    Ok(())
}

pub(super) fn local_processes(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    let node = mesh.world.node(1);
    let mut addresses = vec![node.frontend, mesh.world.family.loopback()];
    if mesh.world.family == Family::Ipv4 {
        addresses.extend([Ipv4Addr::new(127, 1, 2, 3), GATEWAY].map(IpAddr::from));
    }
    for address in addresses {
        let target = SocketAddr::new(address, WEB.port);
        let answers = spread(8, || ask(&node.netns, target)).with_context(|| format!("TCP by {address}"))?;
        ensure!(answers == even(REPLICAS, 2), "TCP by {address}: {answers:?}");
        let target = SocketAddr::new(address, ECHO.port);
        // The kernel sends what is for an IPv6 address to no IPv4 one, unless the socket is connected.
        if address.is_ipv4() {
            let answers = spread(8, || ask_by_datagram(&node.netns, target))
                .with_context(|| format!("UDP by {address}"))?;
            ensure!(answers == even(REPLICAS, 2), "UDP by {address}: {answers:?}");
        }
        let answers = spread(8, || ask_by_connected_datagram(&node.netns, target))
            .with_context(|| format!("connected UDP by {address}"))?;
        ensure!(
            answers == even(REPLICAS, 2),
            "connected UDP by {address}: {answers:?}"
        );
    }
    Ok(())
}

pub(super) fn containers(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    asked_by(mesh, "x1")?;
    asked_by(mesh, "y1").context("on a bridge of another name")?;
    // And another node's port, like that of any machine on the network.
    let container = mesh.world.container("x1");
    let target = mesh.frontend(2, WEB);
    let answers = spread(8, || ask(&container.netns, target)).context("through the other node")?;
    ensure!(
        answers == even(REPLICAS, 2),
        "through the other node: {answers:?}"
    );
    Ok(())
}

/// A container asks its own node, and all replicas answer in turn.
fn asked_by(mesh: &Mesh<'_>, name: &str) -> Result<()> {
    let netns = &mesh.world.container(name).netns;
    let target = mesh.frontend(1, WEB);
    let answers = spread(8, || ask(netns, target)).with_context(|| format!("TCP by {name}"))?;
    ensure!(answers == even(REPLICAS, 2), "TCP by {name}: {answers:?}");
    let target = mesh.frontend(1, ECHO);
    let answers = spread(8, || ask_by_datagram(netns, target)).with_context(|| format!("UDP by {name}"))?;
    ensure!(answers == even(REPLICAS, 2), "UDP by {name}: {answers:?}");
    Ok(())
}

/// A replica also gets its own requests, and then the bridge has to send frames out of the port they came in
/// by. It does so by itself only at a port in hairpin mode, and only after `br_netfilter` has translated the
/// addresses.
pub(super) fn replicas(mesh: &mut Mesh<'_>) -> Result<()> {
    let node = &mesh.world.node(1).netns;
    // Docker without its userland proxy does so for its containers.
    node.run_line("bridge link set dev vethb1 hairpin on")?;
    web(mesh)?;
    for name in ["a1", "b1"] {
        asked_by(mesh, name)?;
    }
    mesh.kill()?;
    mesh.remove("web", "a1");
    mesh.start()?;
    hairpins(node, &["vethb1"]).context("after a replica was removed while no agent ran")?;
    mesh.add_task("web", "a1");
    mesh.apply()?;
    let target = mesh.frontend(1, WEB);
    let answers = spread(8, || ask(&mesh.world.container("a1").netns, target)).context("a new replica")?;
    ensure!(answers.len() == REPLICAS.len(), "a new replica: {answers:?}");
    mesh.stop()?;
    hairpins(node, &["vethb1"]).context("after the data path stopped")?;
    node.run_line("bridge link set dev vethb1 hairpin off")?;
    Ok(())
}

/// Checks which bridge ports of a node are in hairpin mode.
fn hairpins(node: &Netns, expected: &[&str]) -> Result<()> {
    let ports = node.run_line("bridge -details -oneline link show")?;
    let found: Vec<_> = ports
        .lines()
        .filter(|line| line.contains("hairpin on"))
        .filter_map(|line| line.split([' ', '@']).nth(1))
        .collect();
    ensure!(
        found == expected,
        "{found:?} are in hairpin mode, not {expected:?}:\n{ports}"
    );
    Ok(())
}

pub(super) fn replicas_see_clients(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    let node = mesh.world.node(1);
    let entry = IpAddr::from(node.address);
    let family = mesh.world.family;
    let mut seen = BTreeSet::new();
    for client in family.clients() {
        let remote = match mesh.rung.capabilities.shows_clients_to_remote_replicas {
            true => client,
            false => entry,
        };
        let found = seen_from(mesh, &mesh.world.client, client)?;
        if family == Family::Ipv4 {
            ensure!(found == [client, remote], "{client} is seen as {found:?}");
        } else {
            // Replicas have IPv4 only: to all of them one address stands for it, and for no other client.
            ensure!(
                found[0] == found[1] && found[0].is_ipv4(),
                "{client} is seen as {found:?}"
            );
        }
        ensure!(seen.insert(found[0]), "two clients are seen as {found:?}");
    }
    // Packets of a node and of its containers have the node's address.
    let found = seen_from(mesh, &node.netns, family.unspecified()).context("from a local process")?;
    ensure!(found == [entry; 2], "a local process is seen as {found:?}");
    if family == Family::Ipv4 {
        let netns = &mesh.world.container("x1").netns;
        let found = seen_from(mesh, netns, family.unspecified()).context("from a container")?;
        ensure!(found == [entry; 2], "a container is seen as {found:?}");
    }
    Ok(())
}

/// Asks all replicas from an address: the ones that those of node 1 and of node 2 see.
fn seen_from(mesh: &Mesh<'_>, netns: &Netns, source: IpAddr) -> Result<[IpAddr; 2]> {
    let mut seen: BTreeMap<String, IpAddr> = BTreeMap::new();
    for _ in 0..3 * REPLICAS.len() {
        let mut connection = Connection::open_from(netns, SocketAddr::new(source, 0), mesh.frontend(1, WEB))?;
        let answer = connection.ask()?;
        seen.insert(answer.replica, answer.seen.ip());
        if seen.len() == REPLICAS.len() {
            let [a1, a2, b1, b2] = ["a1", "a2", "b1", "b2"].map(|name| seen[name]);
            ensure!(a1 == b1 && a2 == b2, "replicas of one node see {seen:?}");
            return Ok([a1, a2]);
        }
    }
    bail!("only {seen:?} were asked")
}

pub(super) fn bulk(mesh: &mut Mesh<'_>) -> Result<()> {
    const BYTES: usize = 3_000_000;
    for replica in ["a1", "a2"] {
        mesh.cluster.tasks.clear();
        mesh.publish_web(Balance::default(), &[replica]);
        if replica == "a1" {
            mesh.start()?;
        } else {
            mesh.apply()?;
        }
        for (source, netns) in mesh.askers() {
            let doing = || format!("between {source} and {replica}");
            let mut connection = Connection::open(netns, mesh.frontend(1, WEB)).with_context(doing)?;
            let right = connection.download(BYTES).with_context(doing)?;
            ensure!(
                right == BYTES,
                "{right} of {BYTES} bytes down are right {}",
                doing()
            );
            let right = connection.upload(BYTES).with_context(doing)?;
            ensure!(
                right == BYTES,
                "{right} of {BYTES} bytes up are right {}",
                doing()
            );
        }
    }
    Ok(())
}

pub(super) fn refusal(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), &[]);
    mesh.start()?;
    for (source, netns) in mesh.askers() {
        let begin = Instant::now();
        for (kind, answer) in [
            ("TCP", ask(netns, mesh.frontend(1, WEB))),
            ("UDP", ask_by_connected_datagram(netns, mesh.frontend(1, ECHO))),
        ] {
            match answer {
                Ok(answer) => bail!("{} answers {source} by {kind}", answer.replica),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).with_context(|| format!("{source} by {kind}")),
            }
        }
        let took = begin.elapsed();
        ensure!(took < AT_ONCE, "{source} was refused only after {took:?}");
    }
    Ok(())
}

pub(super) fn other_traffic(mesh: &mut Mesh<'_>) -> Result<()> {
    web(mesh)?;
    let node = mesh.world.node(1);
    let family = mesh.world.family;
    let client = family.clients()[0];
    // The node's own server, on an unpublished port.
    let answer = ask(&mesh.world.client, SocketAddr::new(node.frontend, TCP_PORT))?;
    ensure!(
        answer.replica == "node1" && answer.seen.ip() == client,
        "{answer:?}"
    );
    let answer = ask(&node.netns, SocketAddr::new(family.loopback(), TCP_PORT))?;
    ensure!(
        answer.replica == "node1" && answer.seen.ip().is_loopback(),
        "{answer:?}"
    );
    // A container dials out: the client sees its node's address, as without a mesh.
    if family == Family::Ipv4 {
        let answer = ask(
            &mesh.world.container("a1").netns,
            SocketAddr::new(client, TCP_PORT),
        )?;
        ensure!(
            answer.replica == "client" && answer.seen.ip() == node.frontend,
            "{answer:?}"
        );
    }
    // A node dials its peer.
    let peer = SocketAddr::new(mesh.world.node(2).frontend, TCP_PORT);
    let answer = ask(&node.netns, peer)?;
    ensure!(
        answer.replica == "node2" && answer.seen.ip() == node.frontend,
        "{answer:?}"
    );
    Ok(())
}
