//! What is special about VLANs and bonds.

use std::{net::SocketAddrV4, os::fd::AsRawFd};

use anyhow::{Context, Result, ensure};
use mesh_agent::model::{Balance, Protocol, ServiceKey};
use mesh_agent_testing::frames::{Macs, Packet, SYN};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};

use super::changes::{connect_to_all, expect_all_open};
use crate::{
    mesh::{Mesh, WEB},
    talk::{PATIENCE, ask, spread},
    until,
    world::CLIENT,
};

/// A port that no other story uses, as counters of earlier ones may lag behind.
const TAGGED: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9330,
};

/// The tag of VLAN 5, as it is before a frame's type.
const TAG: [u8; 4] = [0x81, 0, 0, 5];

/// A frame of a VLAN comes to the card's hooks without its tag, but is not the card's. tc finds the tag
/// beside it and XDP does not, so XDP is off. The node here has no such VLAN, so the kernel drops it.
pub(super) fn tagged(mesh: &mut Mesh<'_>) -> Result<()> {
    mesh.publish("web", &[TAGGED], Balance::default());
    mesh.add_task("web", "a1");
    mesh.start()?;
    mesh.finds_vlans = true;
    mesh.apply()?;
    mesh.check_modes(1)?;
    let node = mesh.world.node(1);
    // The kernel ends a link whose file is removed a moment later.
    until("XDP is off", PATIENCE, || {
        let shown = node.netns.run_line("ip link show eth0")?;
        ensure!(!shown.contains("xdp"), "{shown}");
        Ok(())
    })?;
    let macs = Macs {
        source: [2, 0x99, 0, 0, 0, 200],
        destination: node.uplink.mac.unwrap_or_default().0,
    };
    let frontend = SocketAddrV4::new(node.address, TAGGED.port);
    let opening = |port| Packet::tcp(macs, SocketAddrV4::new(CLIENT, port), frontend, SYN).frame();
    let mut of_vlan = opening(40_001);
    of_vlan.splice(12..12, TAG);
    mesh.world.client.enter(|| send(&[of_vlan, opening(40_002)]))?;
    until("the frame without a tag is counted", PATIENCE, || {
        let traffic = mesh.traffic(1, TAGGED, "a1")?;
        ensure!(traffic.connections_total > 0, "{traffic:?}");
        Ok(())
    })?;
    let traffic = mesh.traffic(1, TAGGED, "a1")?;
    ensure!(
        traffic.connections_total == 1,
        "the frame of a VLAN opened a connection, too: {traffic:?}"
    );
    // When the last VLAN is gone, the card's hook is back.
    mesh.finds_vlans = false;
    mesh.apply()?;
    mesh.check_modes(1)?;
    Ok(())
}

/// Sends frames out of this namespace's `eth0`.
fn send(frames: &[Vec<u8>]) -> Result<()> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let card = getifaddrs()?
        .filter(|found| found.interface_name == "eth0")
        .find_map(|found| found.address?.as_link_addr().copied())
        .context("eth0 has no link address")?;
    for frame in frames {
        sendto(socket.as_raw_fd(), frame, &card, MsgFlags::empty())?;
    }
    Ok(())
}

/// Cables are pulled at the wire, first the one that carries.
pub(super) fn lost_cable(mesh: &mut Mesh<'_>) -> Result<()> {
    const REPLICAS: &[&str] = &["a1", "a2"];
    mesh.publish_web(Balance::default(), REPLICAS);
    mesh.start()?;
    let target = mesh.frontend(1, WEB);
    let mut open = connect_to_all(&mesh.world.client, target, REPLICAS)?;
    for (cable, remaining) in [("node1", "eth1"), ("node1-eth1", "eth0")] {
        let wire = &mesh.world.wire;
        wire.run_line(&format!("ip link set {cable} down"))?;
        until("the bond changes to the other card", PATIENCE, || {
            let bond = mesh.world.node(1).netns.enter(|| {
                std::fs::read_to_string("/proc/thread-self/net/bonding/bond0")
                    .context("the bond's state cannot be read")
            })?;
            let active = format!("Currently Active Slave: {remaining}");
            ensure!(bond.contains(&active), "{bond}");
            Ok(())
        })?;
        let doing = || format!("on {remaining} alone");
        expect_all_open(&mut open).with_context(doing)?;
        let answers = spread(4, || ask(&mesh.world.client, target)).with_context(doing)?;
        ensure!(
            answers.len() == REPLICAS.len(),
            "{}: only {answers:?} answered",
            doing()
        );
        wire.run_line(&format!("ip link set {cable} up"))?;
        until("the cable is back", PATIENCE, || {
            let links = mesh
                .world
                .node(1)
                .netns
                .run_line("ip -oneline link show type veth master bond0")?;
            ensure!(!links.contains("NO-CARRIER"), "{links}");
            Ok(())
        })?;
    }
    Ok(())
}
