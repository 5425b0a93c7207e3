//! What happens to connections, old and new, when replicas come and go.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::model::{Balance, Protocol, ServiceKey};

use crate::{
    mesh::{ECHO, Mesh, WEB},
    space::Space,
    state::{difference, state},
    talk::{Conversation, ask, ask_by_datagram, spread},
    world::World,
};

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// How long many services may take on an emulated machine; on a real one it is a fraction of a second.
const REASONABLE: Duration = Duration::from_secs(60);

/// One kept connection to each replica.
pub(super) fn conversations(
    space: &Space,
    target: SocketAddrV4,
    replicas: &[&str],
) -> Result<BTreeMap<String, Conversation>> {
    let mut all = BTreeMap::new();
    for _ in replicas {
        let mut conversation = Conversation::open(space, target)?;
        all.insert(conversation.ask()?.replica, conversation);
    }
    ensure!(
        all.len() == replicas.len(),
        "they do not rotate: only {:?} were met",
        all.keys()
    );
    Ok(all)
}

/// Every connection is still with its replica.
pub(super) fn all_go_on(conversations: &mut BTreeMap<String, Conversation>) -> Result<()> {
    for (replica, conversation) in conversations {
        let now = conversation
            .ask()
            .with_context(|| format!("the connection to {replica} is broken"))?
            .replica;
        ensure!(now == *replica, "a connection has moved from {replica} to {now}");
    }
    Ok(())
}

/// Where connections come from: the client, a local process by both kinds of address, a container.
fn sources<'a>(world: &'a World, mesh: &Mesh<'_>) -> [(&'static str, &'a Space, SocketAddrV4); 4] {
    let frontend = mesh.frontend(1, WEB);
    let loopback = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, WEB.port);
    let node = &world.node(1).space;
    [
        ("the client", &world.client, frontend),
        ("a local process", node, frontend),
        ("a local process by loopback", node, loopback),
        ("a container", &world.container("x1").space, frontend),
    ]
}

pub(super) fn draining(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let mut kept = Vec::new();
    for (whence, space, target) in sources(world, mesh) {
        kept.push((whence, conversations(space, target, REPLICAS).context(whence)?));
    }
    mesh.drain("web", "b1");
    mesh.drain("web", "a2");
    mesh.apply()?;
    for (whence, conversations) in &mut kept {
        all_go_on(conversations).context(*whence)?;
    }
    for (whence, space, target) in sources(world, mesh) {
        let answers = spread(8, || ask(space, target)).context(whence)?;
        let expected = BTreeMap::from([("a1".to_owned(), 4), ("b2".to_owned(), 4)]);
        ensure!(answers == expected, "{whence}: {answers:?}");
    }
    for (whence, conversations) in &mut kept {
        all_go_on(conversations).with_context(|| format!("{whence}, after others have come"))?;
    }
    // A replica that came back serves again, and nothing breaks.
    mesh.place("web", "b1");
    mesh.apply()?;
    let target = mesh.frontend(1, WEB);
    let answers = spread(9, || ask(&world.client, target))?;
    ensure!(
        answers.len() == 3 && answers.values().all(|&times| times == 3),
        "{answers:?}"
    );
    for (whence, conversations) in &mut kept {
        all_go_on(conversations).with_context(|| format!("{whence}, after the drain was called off"))?;
    }
    Ok(())
}

pub(super) fn removal(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = conversations(&world.client, target, REPLICAS)?;
    let gone = ["a1", "a2"];
    for replica in gone {
        mesh.remove("web", replica);
    }
    mesh.apply()?;
    for replica in gone {
        let mut conversation = kept.remove(replica).context("it was met")?;
        match conversation.ask() {
            Ok(answer) => bail!("{} still answers after its removal", answer.replica),
            // The client is told, rather than left to wait.
            Err(error) if is_reset(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("the connection to {replica}")),
        }
    }
    all_go_on(&mut kept)?;
    for (whence, space, target) in sources(world, mesh) {
        let answers = spread(4, || ask(space, target)).context(whence)?;
        let expected = BTreeMap::from([("b1".to_owned(), 2), ("b2".to_owned(), 2)]);
        ensure!(answers == expected, "{whence}: {answers:?}");
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

pub(super) fn growth(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), &["a1"]);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = conversations(&world.client, target, &["a1"])?;
    for (count, replica) in (2..).zip(["a2", "b1", "b2"]) {
        mesh.place("web", replica);
        mesh.apply()?;
        for (whence, space, target) in sources(world, mesh) {
            let answers = spread(2 * count, || ask(space, target)).context(whence)?;
            ensure!(
                answers.len() == count && answers.values().all(|&times| times == 2),
                "{whence}, of {count}: {answers:?}"
            );
        }
    }
    all_go_on(&mut kept)
}

pub(super) fn again(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let mut kept = conversations(&world.client, target, REPLICAS)?;
    let before = state(&world.node(1).space)?;
    mesh.apply_again()?;
    let after = state(&world.node(1).space)?;
    let difference = difference(&before, &after);
    ensure!(difference.is_empty(), "it has changed:\n{difference}");
    all_go_on(&mut kept)?;
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
        mesh.place(&name, "a2");
        for number in 1..BACKENDS {
            mesh.place_elsewhere(&name, usize::from(service * BACKENDS + number));
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
