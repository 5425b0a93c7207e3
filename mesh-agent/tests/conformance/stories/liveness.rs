//! A node that is cut off: its peer's probes notice, by the way that clients' packets take.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_agent::{
    model::{Balance, desired::vni},
    probes::{ProbeReport, Targets, probe},
};
use mesh_support::watched::Watched as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::changes::{connect_to_all, expect_all_open};
use crate::{
    mesh::{Mesh, WEB},
    netns::Netns,
    talk::{Connection, PATIENCE},
    until,
};

const LOCAL: &[&str] = &["a1", "b1"];
const ALL: &[&str] = &["a1", "b1", "a2", "b2"];

/// How long a node that is cut off may get new connections: a second, and the change of the tables, which
/// takes an emulated machine its time.
const NOTICED: Duration = Duration::from_secs(3);
/// How long it takes to come back: the hold-down of a second, and two answers.
const BACK: Duration = Duration::from_secs(4);
/// How long a client waits for one connection.
const BRIEFLY: Duration = Duration::from_millis(500);

pub(super) fn cut_off(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), ALL);
    mesh.start()?;
    let peer = mesh.world.node(2).address;
    let own = mesh.world.node(1).address;
    let medium = mesh.rung.medium(own, peer, vni(&mesh.cluster.cluster_id));
    let (_targets, targets) = watch::channel(Some(Targets {
        node_address: own,
        peers: [(peer, "node2".to_owned())].into(),
        medium,
    }));
    let (sender, report) = watch::channel(ProbeReport::default());
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        let _stop = stop.clone().drop_guard();
        let node = &mesh.world.node(1).netns;
        scope.spawn(move || node.enter(|| run(probe(targets, sender, stop))));
        follow(mesh, report)
    })
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(work);
}

/// Does with the prober's reports what an agent does, while the other node's cable is out and put back.
fn follow(mesh: &mut Mesh<'_>, report: watch::Receiver<ProbeReport>) -> Result<()> {
    let peer = mesh.world.node(2).address;
    let wire = &mesh.world.wire;
    let apply = |mesh: &mut Mesh<'_>, silent: bool| -> Result<()> {
        let report = report.current();
        ensure!(
            report.answered().contains(&peer) && report.silent().contains(&peer) == silent,
            "{report:?}"
        );
        mesh.probed = report;
        mesh.apply_on(1)
    };
    until("the other node answers probes", PATIENCE, || apply(mesh, false))?;
    let (client, target) = (&mesh.world.client, mesh.frontend(1, WEB));
    let mut open = connect_to_all(client, target, ALL)?;
    open.retain(|replica, _| LOCAL.contains(&replica.as_str()));

    let begin = Instant::now();
    forwards(wire, false)?;
    until("the other node is found to be silent", NOTICED, || {
        apply(mesh, true)
    })?;
    println!("    silent and out of rotation after {:?}", begin.elapsed());
    let answers = answers(client, target, 8)?;
    ensure!(
        answers.len() == 2 && LOCAL.iter().all(|replica| answers.get(*replica) == Some(&4)),
        "after it was found to be silent, {answers:?} answered"
    );
    expect_all_open(&mut open).context("to this node's own replicas")?;

    let begin = Instant::now();
    forwards(wire, true)?;
    until("the other node answers again", BACK, || apply(mesh, false))?;
    println!("    back in rotation after {:?}", begin.elapsed());
    let answers = self::answers(client, target, 8)?;
    ensure!(
        answers.len() == ALL.len(),
        "after its return only {answers:?} answered"
    );
    Ok(())
}

/// Whether the wire forwards to the other node, whose own link stays up.
fn forwards(wire: &Netns, whether: bool) -> Result<()> {
    let state = if whether { "3" } else { "0" };
    wire.run("bridge", &["link", "set", "dev", "node2", "state", state])?;
    Ok(())
}

/// New connections, one after the other: how many each replica answered.
fn answers(client: &Netns, target: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for number in 1..=count {
        let mut connection = Connection::open_within(client, target, BRIEFLY)
            .with_context(|| format!("connection {number} of {count}; so far {answers:?}"))?;
        *answers.entry(connection.ask()?.replica).or_insert(0) += 1;
    }
    Ok(answers)
}
