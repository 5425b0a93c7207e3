//! How a data path starts and stops, and that it leaves what other programs made alone.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::{
    agent::{self, CleanOptions, Cleaned},
    model::{Balance, Protocol, ServiceKey},
};

use super::changes::{connect_to_all, expect_all_open};
use crate::{
    mesh::{ECHO, Mesh, WEB},
    state::{difference, state},
    talk::{Connection, PATIENCE, TCP_PORT, ask, ask_by_datagram, spread},
    until,
    world::{Family, World},
};

const REPLICAS: &[&str] = &["a1", "b1", "a2", "b2"];

/// A service on a port that Docker's mesh does not use.
const OTHER: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9300,
};

/// Uses all parts of a data path.
fn exercise(mesh: &Mesh<'_>) -> Result<()> {
    let node = mesh.world.node(1);
    let loopback = mesh.loopback(WEB);
    let mut askers = vec![
        ("the client", &mesh.world.client, mesh.frontend(1, WEB)),
        ("a local process", &node.netns, loopback),
    ];
    if mesh.world.family == Family::Ipv4 {
        let container = mesh.world.container("x1");
        askers.push(("a container", &container.netns, mesh.frontend(1, WEB)));
    }
    for (source, netns, target) in askers {
        // A replica may not have finished with an earlier connection from one of the client's ports. Its
        // challenge ACK (RFC 5961) costs a turn, so a second attempt counts as well.
        let mut answers = spread(4, || ask(netns, target)).context(source)?;
        if answers.len() != 4 {
            answers = spread(4, || ask(netns, target)).context(source)?;
        }
        ensure!(answers.len() == 4, "{source}: {answers:?}");
    }
    let target = mesh.frontend(1, ECHO);
    spread(4, || ask_by_datagram(&mesh.world.client, target))?;
    Ok(())
}

/// What each node has in its kernel.
fn states(world: &World) -> Result<Vec<Vec<String>>> {
    world.nodes.iter().map(|node| state(&node.netns)).collect()
}

pub(super) fn no_trace(mesh: &mut Mesh<'_>) -> Result<()> {
    let world = mesh.world;
    let before = states(world)?;
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    exercise(mesh)?;
    let during = state(&world.node(1).netns)?;
    ensure!(
        !difference(&before[0], &during).is_empty(),
        "the state shows nothing of a running data path"
    );
    mesh.stop()?;
    for (node, before) in world.nodes.iter().zip(&before) {
        let left = difference(before, &state(&node.netns)?);
        ensure!(left.is_empty(), "left on {}:\n{left}", node.netns.name);
    }
    Ok(())
}

pub(super) fn cleaned(mesh: &mut Mesh<'_>) -> Result<()> {
    let world = mesh.world;
    let before = states(world)?;
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    exercise(mesh)?;
    mesh.kill()?;
    let during = state(&world.node(1).netns)?;
    ensure!(
        !difference(&before[0], &during).is_empty(),
        "a killed agent has left nothing to clean"
    );
    for (node, before) in world.nodes.iter().zip(&before) {
        let removed = node.netns.enter(clean)?;
        ensure!(!removed.is_empty(), "{}: nothing was found", node.netns.name);
        let left = difference(before, &state(&node.netns)?);
        ensure!(left.is_empty(), "left on {}:\n{left}", node.netns.name);
        let again = node.netns.enter(clean)?;
        ensure!(again.is_empty(), "{}: still found {again:?}", node.netns.name);
    }
    Ok(())
}

/// `mesh-agent clean` with its default options.
fn clean() -> Result<Cleaned> {
    let options = CleanOptions {
        admin_socket: "/run/mesh/admin.sock".into(),
        bpffs: "/sys/fs/bpf".into(),
        sysctls: "/proc/sys".into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(agent::clean(&options))?)
}

/// What other programs may have on a node: a table, a virtual service, filters on our interfaces, a
/// redirected port.
fn foreign(mesh: &Mesh<'_>) -> Result<Vec<(&'static str, String)>> {
    let netns = &mesh.world.node(1).netns;
    let mut seen = vec![
        ("nft --stateless --handle list table ip foreign", String::new()),
        (
            "tc filter show dev eth0 ingress protocol ip pref 7",
            String::new(),
        ),
        ("tc filter show dev eth0 egress protocol ip pref 7", String::new()),
        (
            "tc filter show dev vetha1 ingress protocol ip pref 7",
            String::new(),
        ),
    ];
    if mesh.rung.has_virtual_services() {
        seen.push((
            "ipvsadm --list --numeric --tcp-service 10.99.0.1:7777",
            String::new(),
        ));
    }
    for (command, text) in &mut seen {
        *text = netns.run_line(command)?;
        ensure!(!text.trim().is_empty(), "`{command}` shows nothing");
    }
    Ok(seen)
}

fn make_foreign(mesh: &Mesh<'_>) -> Result<()> {
    let node = mesh.world.node(1);
    node.netns.run_with_input(
        "nft",
        &["-f", "-"],
        "table ip foreign {\n\
         set friends { type ipv4_addr; elements = { 192.0.2.7 } }\n\
         chain input { type filter hook input priority -150; ip saddr @friends tcp dport 9200 drop; }\n\
         chain prerouting { type nat hook prerouting priority -90; tcp dport 7778 redirect to :80; }\n}\n",
    )?;
    let mut script = String::new();
    for device in ["eth0", "vetha1"] {
        script.push_str(&format!(
            "qdisc add dev {device} clsact\n\
             filter add dev {device} ingress protocol ip pref 7 u32 match ip src 192.0.2.7/32 classid 1:7\n\
             filter add dev {device} egress protocol ip pref 7 u32 match ip dst 192.0.2.7/32 classid 1:7\n"
        ));
    }
    node.netns.run_with_input("tc", &["-batch", "-"], &script)?;
    if mesh.rung.has_virtual_services() {
        let container = node.containers[0].address;
        node.netns.run_with_input(
            "ipvsadm",
            &["--restore"],
            &format!(
                "-A -t 10.99.0.1:7777 -s wlc -p 120\n-a -t 10.99.0.1:7777 -r {container}:{TCP_PORT} -m -w 5\n"
            ),
        )?;
    }
    Ok(())
}

fn remove_foreign(mesh: &Mesh<'_>) -> Result<()> {
    let netns = &mesh.world.node(1).netns;
    netns.run_line("nft delete table ip foreign")?;
    for device in ["eth0", "vetha1"] {
        netns.run_line(&format!("tc qdisc del dev {device} clsact"))?;
    }
    if mesh.rung.has_virtual_services() {
        netns.run_line("ipvsadm --delete-service --tcp-service 10.99.0.1:7777")?;
    }
    Ok(())
}

pub(super) fn others(mesh: &mut Mesh<'_>) -> Result<()> {
    make_foreign(mesh)?;
    let before = foreign(mesh)?;
    let redirected = SocketAddr::new(mesh.world.node(1).frontend, 7778);
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    exercise(mesh)?;
    ensure!(
        foreign(mesh)? == before,
        "while it runs:\n{:?}\n{before:?}",
        foreign(mesh)?
    );
    let answer = ask(&mesh.world.client, redirected).context("another program's redirection")?;
    ensure!(answer.replica == "node1", "{answer:?}");
    mesh.kill()?;
    mesh.start()?;
    ensure!(
        foreign(mesh)? == before,
        "after the adoption:\n{:?}\n{before:?}",
        foreign(mesh)?
    );
    mesh.stop()?;
    ensure!(
        foreign(mesh)? == before,
        "after it stopped:\n{:?}\n{before:?}",
        foreign(mesh)?
    );
    let answer = ask(&mesh.world.client, redirected)?;
    ensure!(answer.replica == "node1", "{answer:?}");
    remove_foreign(mesh)
}

pub(super) fn adoption(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.publish("other", &[OTHER], Balance::default());
    mesh.add_task("other", "a2");
    mesh.start()?;
    let world = mesh.world;
    let target = mesh.frontend(1, WEB);
    let loopback = mesh.loopback(WEB);
    let mut kept = connect_to_all(&world.client, target, REPLICAS)?;
    let mut local = connect_to_all(&world.node(1).netns, loopback, REPLICAS)?;
    ask(&world.client, mesh.frontend(1, OTHER))?;
    let before = mesh.counters(1)?;
    mesh.kill()?;
    expect_all_open(&mut kept).context("while no agent runs")?;
    expect_all_open(&mut local).context("of a local process, while no agent runs")?;
    exercise(mesh).context("while no agent runs")?;
    // Meanwhile a replica is removed, another drains, and a service is removed.
    mesh.remove("web", "b2");
    mesh.drain("web", "b1");
    mesh.cluster.services.remove("other");
    mesh.remove("other", "a2");
    mesh.start()?;
    let mut gone: Connection = kept.remove("b2").context("it was reached")?;
    local.remove("b2");
    ensure!(gone.ask().is_err(), "b2 still answers after its removal");
    expect_all_open(&mut kept).context("after the adoption")?;
    expect_all_open(&mut local).context("of a local process, after the adoption")?;
    for (netns, target) in [(&world.client, target), (&world.node(1).netns, loopback)] {
        let answers = spread(4, || ask(netns, target))?;
        ensure!(
            answers.len() == 2 && answers.contains_key("a1") && answers.contains_key("a2"),
            "{answers:?}"
        );
    }
    match ask(&world.client, mesh.frontend(1, OTHER)) {
        Ok(answer) => bail!("{} still answers for a service that was removed", answer.replica),
        Err(error) => ensure!(
            error.kind() == ErrorKind::ConnectionRefused,
            "the port of a removed service: {error}"
        ),
    }
    // IPVS updates its counters every two seconds.
    until("the counters go on", PATIENCE, || {
        let after = mesh.counters(1)?;
        for (name, old) in &before.backends {
            if let Some(new) = after.backends.get(name) {
                ensure!(
                    new.connections_total > old.connections_total && new.bytes_in > old.bytes_in,
                    "the counters of {name:?} were reset: {old:?}, {new:?}"
                );
            }
        }
        Ok(())
    })
}
