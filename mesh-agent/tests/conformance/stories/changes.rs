//! What happens to open and new connections when replicas come and go.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::model::{BackendKey, Balance, Protocol, ServiceKey};

use crate::{
    mesh::{ECHO, Mesh, WEB, ingress_address},
    netns::Netns,
    state::{difference, state},
    talk::{Connection, ask, ask_by_datagram, spread},
    world::World,
};

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// How long many services may take on an emulated machine; a real one needs a fraction of a second.
const REASONABLE: Duration = Duration::from_secs(60);

/// One open connection to each replica.
///
/// A SYN that a busy machine answers late is sent again, and the one that is sent again goes to
/// another replica: who rotates exactly is another story, here each has to be reached in the end.
pub(super) fn connect_to_all(
    netns: &Netns,
    target: SocketAddr,
    replicas: &[&str],
) -> Result<BTreeMap<String, Connection>> {
    let mut all = BTreeMap::new();
    for _ in 0..3 * replicas.len() {
        let mut connection = Connection::open(netns, target)?;
        all.entry(connection.ask()?.replica).or_insert(connection);
        if all.len() == replicas.len() {
            return Ok(all);
        }
    }
    bail!("they do not rotate: only {:?} were reached", all.keys())
}

/// Every connection still reaches its replica.
pub(super) fn expect_all_open(connections: &mut BTreeMap<String, Connection>) -> Result<()> {
    for (replica, connection) in connections {
        let now = connection
            .ask()
            .with_context(|| format!("the connection to {replica} is broken"))?
            .replica;
        ensure!(now == *replica, "a connection has moved from {replica} to {now}");
    }
    Ok(())
}

/// The sources of connections: those of [`Mesh::askers`], and a local process to its loopback address.
fn sources<'a>(world: &'a World, mesh: &Mesh<'a>) -> Vec<(&'static str, &'a Netns, SocketAddr)> {
    let frontend = mesh.frontend(1, WEB);
    let askers = mesh.askers().into_iter();
    let mut sources: Vec<_> = askers.map(|(source, netns)| (source, netns, frontend)).collect();
    sources.push((
        "a local process to loopback",
        &world.node(1).netns,
        mesh.loopback(WEB),
    ));
    sources
}

pub(super) fn draining(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let mut kept = Vec::new();
    for (source, netns, target) in sources(world, mesh) {
        kept.push((source, connect_to_all(netns, target, REPLICAS).context(source)?));
    }
    mesh.drain("web", "b1");
    mesh.drain("web", "a2");
    mesh.apply()?;
    for (source, connections) in &mut kept {
        expect_all_open(connections).context(*source)?;
    }
    // An operator waits until it is none: the replica's own node counts what came in by any node.
    let key = BackendKey {
        service: WEB,
        address: ingress_address("a2"),
    };
    let sources_kept = kept.len() as u64;
    crate::until("its connections are counted", Duration::from_secs(10), || {
        let open = mesh.counters(2)?.open.get(&key).copied();
        ensure!(open == Some(sources_kept), "{open:?} of {sources_kept} are open");
        Ok(())
    })?;
    for (source, netns, target) in sources(world, mesh) {
        let answers = spread(8, || ask(netns, target)).context(source)?;
        let expected = BTreeMap::from([("a1".to_owned(), 4), ("b2".to_owned(), 4)]);
        ensure!(answers == expected, "{source}: {answers:?}");
    }
    for (source, connections) in &mut kept {
        expect_all_open(connections)
            .with_context(|| format!("{source}, with new connections beside them"))?;
    }
    // A replica that comes back serves again, and no connection breaks.
    mesh.add_task("web", "b1");
    mesh.apply()?;
    let target = mesh.frontend(1, WEB);
    let answers = spread(9, || ask(&world.client, target))?;
    ensure!(
        answers.len() == 3 && answers.values().all(|&times| times == 3),
        "{answers:?}"
    );
    for (source, connections) in &mut kept {
        expect_all_open(connections).with_context(|| format!("{source}, after the drain was cancelled"))?;
    }
    Ok(())
}

pub(super) fn removal(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = connect_to_all(&world.client, target, REPLICAS)?;
    let gone = ["a1", "a2"];
    for replica in gone {
        mesh.remove("web", replica);
    }
    mesh.apply()?;
    for replica in gone {
        let mut connection = kept.remove(replica).context("it was reached")?;
        match connection.ask() {
            Ok(answer) => bail!("{} still answers after its removal", answer.replica),
            // The client gets a reset, and need not wait for a timeout.
            Err(error) if is_reset(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("the connection to {replica}")),
        }
    }
    expect_all_open(&mut kept)?;
    for (source, netns, target) in sources(world, mesh) {
        let answers = spread(4, || ask(netns, target)).context(source)?;
        let expected = BTreeMap::from([("b1".to_owned(), 2), ("b2".to_owned(), 2)]);
        ensure!(answers == expected, "{source}: {answers:?}");
    }
    let target = mesh.frontend(1, ECHO);
    let answers = spread(4, || ask_by_datagram(&world.client, target))?;
    ensure!(answers.len() == 2, "{answers:?}");
    Ok(())
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::BrokenPipe
    )
}

/// The entry node does not know yet that a replica of the other node is gone.
pub(super) fn stale_snapshot(mesh: &mut Mesh<'_>) -> Result<()> {
    if !mesh.rung.capabilities.sends_back {
        return Ok(());
    }
    mesh.publish_web(Balance::default(), &["a1", "a2", "b2"]);
    mesh.start()?;
    let world = mesh.world;
    let mut kept = Vec::new();
    for (source, netns, target) in sources(world, mesh) {
        kept.push((
            source,
            connect_to_all(netns, target, &["a1", "a2", "b2"]).context(source)?,
        ));
    }
    mesh.remove("web", "a2");
    mesh.apply_on(2)?;
    for (source, netns, target) in sources(world, mesh) {
        let answers = spread(9, || ask(netns, target)).context(source)?;
        ensure!(
            answers.keys().eq(["a1", "b2"]),
            "{source}: answered by {answers:?}"
        );
    }
    let target = mesh.frontend(1, ECHO);
    let answers = spread(9, || ask_by_datagram(&world.client, target))?;
    ensure!(answers.keys().eq(["a1", "b2"]), "{answers:?}");
    for (source, connections) in &mut kept {
        let mut connection = connections.remove("a2").context("it was reached")?;
        match connection.ask() {
            Ok(answer) => bail!("{source}: {} still answers after its removal", answer.replica),
            Err(error) if is_reset(&error) => {}
            Err(error) => return Err(error).context(*source),
        }
        expect_all_open(connections).context(*source)?;
    }
    let (moved, sent_back) = (mesh.counters(1)?.flows_moved, mesh.counters(2)?.packets_sent_back);
    ensure!(moved >= 2, "{moved} flows have moved");
    ensure!(
        sent_back > moved,
        "{sent_back} packets came back, and {moved} flows have moved"
    );
    Ok(())
}

/// A replica's container is there and its packets are lost, one on each node in turn.
pub(super) fn hanging_replica(mesh: &mut Mesh<'_>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(300);
    /// What replicas know clients by.
    const CLIENTS: [&str; 2] = ["10.99.0.0/24", "248.0.0.0/6"];
    if !mesh.rung.capabilities.passes_over {
        return Ok(());
    }
    mesh.publish_web(Balance::default(), &["a1", "b1", "a2"]);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    for hanging in ["a2", "a1"] {
        let netns = &world.container(hanging).netns;
        for clients in CLIENTS {
            netns.run("ip", &["route", "add", "blackhole", clients])?;
        }
        let outcome = pass_over(world, target, hanging, PATIENCE);
        for clients in CLIENTS {
            netns.run("ip", &["route", "delete", "blackhole", clients])?;
        }
        outcome.with_context(|| format!("while {hanging} hangs"))?;
        crate::until("it serves again", Duration::from_secs(5), || {
            let answer = ask(&world.client, target)?;
            ensure!(answer.replica == hanging, "{} answered", answer.replica);
            Ok(())
        })?;
    }
    let answers = spread(6, || ask(&world.client, target))?;
    ensure!(answers.len() == 3, "{answers:?}");
    Ok(())
}

/// At most three connections are lost, and one for each second that passes meanwhile.
fn pass_over(world: &World, target: SocketAddr, hanging: &str, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    let mut lost = 0;
    for _ in 0..15 {
        match Connection::open_within(&world.client, target, patience) {
            Ok(mut connection) => {
                let answer = connection.ask()?;
                ensure!(answer.replica != hanging, "{hanging} answers");
            }
            Err(_) => lost += 1,
        }
    }
    let trials = begin.elapsed().as_secs() + 1;
    ensure!(
        (1..=3 + trials).contains(&lost),
        "{lost} of 15 connections were lost"
    );
    Ok(())
}

pub(super) fn growth(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), &["a1"]);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = connect_to_all(&world.client, target, &["a1"])?;
    for (count, replica) in (2..).zip(["a2", "b1", "b2"]) {
        mesh.add_task("web", replica);
        mesh.apply()?;
        for (source, netns, target) in sources(world, mesh) {
            let answers = spread(2 * count, || ask(netns, target)).context(source)?;
            ensure!(
                answers.len() == count && answers.values().all(|&times| times == 2),
                "{source}, of {count}: {answers:?}"
            );
        }
    }
    expect_all_open(&mut kept)
}

pub(super) fn again(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = connect_to_all(&world.client, target, REPLICAS)?;
    let before = state(&world.node(1).netns)?;
    mesh.apply_again()?;
    let after = state(&world.node(1).netns)?;
    let difference = difference(&before, &after);
    ensure!(difference.is_empty(), "the state has changed:\n{difference}");
    expect_all_open(&mut kept)?;
    let answers = spread(8, || ask(&world.client, target))?;
    ensure!(answers.values().all(|&times| times == 2), "{answers:?}");
    Ok(())
}

pub(super) fn scale(mesh: &mut Mesh<'_>) -> Result<()> {
    const SERVICES: u16 = 100;
    const BACKENDS: u16 = 50;
    let key = |service| ServiceKey {
        protocol: Protocol::Tcp,
        port: 20_000 + service,
    };
    for service in 0..SERVICES {
        let name = format!("service-{service}");
        mesh.publish(&name, &[key(service)], Balance::default());
        mesh.add_task(&name, "a2");
        for number in 1..BACKENDS {
            mesh.add_unused_task(&name, usize::from(service * BACKENDS + number));
        }
    }
    let begin = Instant::now();
    mesh.start_on(1)?;
    let made = begin.elapsed();
    mesh.remove("service-7", "a2");
    let begin = Instant::now();
    mesh.apply()?;
    let changed = begin.elapsed();
    mesh.cluster.services.clear();
    mesh.cluster.tasks.clear();
    let begin = Instant::now();
    mesh.apply()?;
    let removed = begin.elapsed();
    println!(
        "{}: {SERVICES} services of {BACKENDS} replicas: made in {made:?}, one replica removed in {changed:?}, all \
         removed in {removed:?}",
        mesh.rung.name
    );
    ensure!(
        made + changed + removed < REASONABLE,
        "{made:?}, {changed:?} and {removed:?}"
    );
    Ok(())
}
