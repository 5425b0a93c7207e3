//! Packets that are not whole, not small, or about other packets: fragments and ICMP errors.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::{
    datapath::DropCount,
    model::{Balance, Protocol, PublishedPort, ServiceKey},
};

use netlink_packet_route::link::LinkAttribute;
use nix::net::if_::if_nametoindex;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::{
    mesh::{ECHO, Mesh, WEB},
    netns::Netns,
    talk::{
        Connection, TCP_PORT, UDP_PORT, ask_backwards, ask_by_connected_datagram, ask_from_port, ask_with,
    },
    world::{BRIDGE, CLIENT, Family},
};

/// One byte less and one more than Ethernet carries, what a DNS answer may have, and the most that UDP can
/// say.
const SIZES: [usize; 4] = [1472, 1473, 4096, 65_507];

/// A published port behind which nothing listens.
const CLOSED: ServiceKey = ServiceKey {
    protocol: Protocol::Udp,
    port: 9340,
};

/// Runs with a replica on the entry node, then with one on the other node.
fn with_each_replica(mesh: &mut Mesh<'_>, mut run: impl FnMut(&Mesh<'_>) -> Result<()>) -> Result<()> {
    for replica in ["a1", "a2"] {
        mesh.cluster.tasks.clear();
        mesh.publish_web(Balance::default(), &[replica]);
        if let Some(service) = mesh.cluster.services.get_mut("web") {
            service.ports.push(PublishedPort {
                protocol: Protocol::Udp,
                published: CLOSED.port,
                target: 5353,
            });
        }
        if replica == "a1" {
            mesh.start()?;
        } else {
            mesh.apply()?;
        }
        run(mesh).with_context(|| format!("with the replica {replica}"))?;
    }
    Ok(())
}

pub(super) fn datagrams_of_any_size(mesh: &mut Mesh<'_>) -> Result<()> {
    with_each_replica(mesh, |mesh| {
        let entry = mesh.frontend(1, ECHO);
        let mut askers: Vec<_> = mesh
            .askers()
            .into_iter()
            .map(|(who, netns)| (who, netns, entry))
            .collect();
        let node = &mesh.world.node(1).netns;
        askers.push((
            "a local process by its loopback address",
            node,
            mesh.loopback(ECHO),
        ));
        for (who, netns, target) in askers {
            let takes_all = mesh.rung.capabilities.takes_every_size;
            // A process's datagrams to an IPv6 address are served by connected sockets only.
            if who != "the client" && (!takes_all || target.is_ipv6()) {
                continue;
            }
            for size in SIZES.into_iter().filter(|size| takes_all || *size > 1472) {
                ask_with(netns, target, size).with_context(|| format!("{size} bytes of {who}"))?;
            }
        }
        Ok(())
    })
}

pub(super) fn last_fragment_first(mesh: &mut Mesh<'_>) -> Result<()> {
    with_each_replica(mesh, |mesh| {
        // Of one that does not come in fragments the other node's answer may be lost, see `ask_with`.
        for size in &SIZES[1..] {
            let source = mesh.client();
            ask_backwards(&mesh.world.client, source, mesh.frontend(1, ECHO), *size)
                .with_context(|| format!("{size} bytes"))?;
        }
        Ok(())
    })
}

pub(super) fn closed_port(mesh: &mut Mesh<'_>) -> Result<()> {
    with_each_replica(mesh, |mesh| {
        for (who, netns) in mesh.askers() {
            match ask_by_connected_datagram(netns, mesh.frontend(1, CLOSED)) {
                Ok(answer) => bail!("{} answers {who}", answer.replica),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context(who),
            }
        }
        Ok(())
    })
}

/// A name server that asks others from its own port, say, on a node where that port is also published.
pub(super) fn own_datagrams(mesh: &mut Mesh<'_>) -> Result<()> {
    if !mesh.rung.capabilities.knows_own_datagrams {
        return Ok(());
    }
    with_each_replica(mesh, |mesh| {
        let outside = SocketAddr::new(mesh.client(), UDP_PORT);
        for (who, netns) in mesh.askers().into_iter().skip(1) {
            let answer = ask_from_port(netns, ECHO.port, outside).context(who)?;
            ensure!(
                answer.replica == "client",
                "{who} got the answer of {}",
                answer.replica
            );
        }
        // And clients from the same machine are served as before.
        let answer = ask_with(&mesh.world.client, mesh.frontend(1, ECHO), 100)?;
        ensure!(answer.replica != "client", "{answer:?}");
        Ok(())
    })
}

/// BIG TCP (Linux 6.3): packets whose length their own header cannot say. A container sends them to replicas,
/// and to a server that is none.
pub(super) fn big_tcp(mesh: &mut Mesh<'_>) -> Result<()> {
    const BYTES: usize = 3_000_000;
    let world = mesh.world;
    for name in ["x1", "a1"] {
        allow_big_tcp(&world.container(name).netns, "eth0")?;
        allow_big_tcp(&world.node(1).netns, &format!("veth{name}"))?;
    }
    allow_big_tcp(&world.node(1).netns, BRIDGE)?;
    with_each_replica(mesh, |mesh| {
        for target in [SocketAddr::new(CLIENT.into(), TCP_PORT), mesh.frontend(1, WEB)] {
            let mut connection = Connection::open(&mesh.world.container("x1").netns, target)?;
            let (down, up) = (connection.download(BYTES)?, connection.upload(BYTES)?);
            ensure!(
                (down, up) == (BYTES, BYTES),
                "{down} down and {up} up of {BYTES} bytes are right by {target}"
            );
        }
        Ok(())
    })?;
    let is_lost =
        |drop: &&DropCount| drop.packets != 0 && ["truncated", "bad_length"].contains(&&*drop.reason);
    let drops = mesh.counters(1)?.drops;
    ensure!(!drops.iter().any(|drop| is_lost(&drop)), "{drops:?}");
    Ok(())
}

/// Lets a card send and receive packets of 185 kB. (iproute2 can since 6.3.)
fn allow_big_tcp(netns: &Netns, card: &str) -> Result<()> {
    netns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let message = LinkMessageBuilder::<LinkUnspec>::new()
                .index(if_nametoindex(card)?)
                .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(185_000))
                .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(185_000))
                .build();
            let done = handle.link().set(message).execute().await;
            connection.abort();
            match done {
                Ok(()) => Ok(()),
                // A kernel before 6.3: then there are no such packets.
                Err(rtnetlink::Error::NetlinkError(error)) => {
                    ensure!(
                        error.raw_code() == -libc::EOPNOTSUPP || error.raw_code() == -libc::EINVAL,
                        "{error}"
                    );
                    Ok(())
                }
                Err(error) => Err(error.into()),
            }
        })
    })
}

/// A client behind a router whose way to it carries less than both ends' cards: only the router knows, and
/// then the entry node does.
pub(super) fn narrow_way(mesh: &mut Mesh<'_>) -> Result<()> {
    const BYTES: usize = 3_000_000;
    let router = &mesh.world.client;
    let far = Netns::new("far")?;
    let family = mesh.world.family;
    let (way, forwarding, [inside, outside], length) = match family {
        Family::Ipv4 => (
            "10.98.0.0/24",
            "ipv4/ip_forward",
            ["10.98.0.1", "10.98.0.2"],
            "24",
        ),
        Family::Ipv6 => {
            far.enable_ipv6()?;
            (
                "fd00:98::/64",
                "ipv6/conf/all/forwarding",
                ["fd00:98::1", "fd00:98::2"],
                "64 nodad",
            )
        }
    };
    let gateway = family.clients()[0];
    router.sysctl(forwarding, "1")?;
    router.run_with_input(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add far0 mtu 1300 type veth peer name eth0 mtu 1500 netns {}\n\
             address add {inside}/{length} dev far0\nlink set far0 up\n",
            far.network_path()
        ),
    )?;
    // It knows what it can send, and lets others send as much as its card takes.
    far.run_with_input(
        "ip",
        &["-batch", "-"],
        &format!(
            "address add {outside}/{length} dev eth0\nlink set eth0 up\nroute add default via {inside} mtu lock 1300 advmss 1440\n"
        ),
    )?;
    for number in [1, 2] {
        let node = &mesh.world.node(number).netns;
        node.run_line(&format!("ip route add {way} via {gateway}"))?;
    }
    with_each_replica(mesh, |mesh| {
        let entry_node = &mesh.world.node(1).netns;
        // The least that IPv6 links carry (RFC 8200, section 5).
        for mtu in ["", "mtu 1280"] {
            entry_node.run_line(&format!("ip route replace {way} via {gateway} {mtu}"))?;
            let mut connection = Connection::open(&far, mesh.frontend(1, WEB))?;
            let right = connection.download(BYTES)?;
            ensure!(right == BYTES, "{right} of {BYTES} bytes are right ({mtu})");
            ask_with(&far, mesh.frontend(1, ECHO), 4096).with_context(|| format!("a datagram ({mtu})"))?;
        }
        Ok(())
    })?;
    for number in [1, 2] {
        mesh.world
            .node(number)
            .netns
            .run_line(&format!("ip route del {way}"))?;
    }
    router.run_line("ip link del far0")?;
    router.sysctl(forwarding, "0")
}
