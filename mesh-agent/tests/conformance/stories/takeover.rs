//! How the next release takes a data path over.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_agent::model::Balance;

use super::changes::{connect_to_all, expect_all_open};
use crate::{
    mesh::{Mesh, WEB},
    netns::Netns,
    talk::{Connection, PATIENCE},
    until,
};

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// Less than the second after which a lost SYN, or the answer to it, is sent again.
const WITHOUT_A_LOSS: Duration = Duration::from_millis(900);

/// New connections, one after the other, until the end; returns how many there were.
fn stream(netns: &Netns, target: SocketAddr, ended: &AtomicBool) -> io::Result<usize> {
    let mut count = 0;
    while !ended.load(Ordering::Relaxed) {
        Connection::open_within(netns, target, WITHOUT_A_LOSS)?.ask()?;
        count += 1;
    }
    Ok(count)
}

pub(super) fn other_maps(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let loopback = mesh.loopback(WEB);
    let mut kept = connect_to_all(&world.client, target, REPLICAS)?;
    let mut local = connect_to_all(&world.node(1).netns, loopback, REPLICAS)?;
    let before = mesh.counters(1)?;

    let ended = &AtomicBool::new(false);
    let (replaced, streams) = thread::scope(|scope| {
        let streams = [
            ("the client", &world.client, target),
            ("a local process", &world.node(1).netns, loopback),
        ]
        .map(|(name, netns, target)| (name, scope.spawn(move || stream(netns, target, ended))));
        thread::sleep(Duration::from_millis(200));
        let replaced = mesh.kill().and_then(|()| {
            mesh.next_release = true;
            mesh.start()
        });
        thread::sleep(Duration::from_millis(200));
        ended.store(true, Ordering::Relaxed);
        (replaced, streams.map(|(name, stream)| (name, stream.join())))
    });
    replaced?;
    for (name, stream) in streams {
        let count = stream.ok().context("a stream has panicked")?;
        let count = count.with_context(|| format!("a new connection of {name} was lost"))?;
        ensure!(count > 10, "{name} has opened {count} connections only");
    }
    expect_all_open(&mut kept).context("after the takeover")?;
    expect_all_open(&mut local).context("of a local process, after the takeover")?;
    // IPVS sums up every two seconds.
    until("every backend has counted more packets", PATIENCE, || {
        let after = mesh.counters(1)?;
        for (name, old) in &before.backends {
            let new = after.backends.get(name).context("a backend has no counters")?;
            ensure!(
                new.packets_in > old.packets_in || name.service != WEB,
                "the counters of {name:?} were reset: {old:?}, {new:?}"
            );
        }
        Ok(())
    })
}
