//! The tunnel's device and entries as `ip` lists them: new, changed, repaired, removed.

use std::net::Ipv4Addr;

use mesh_agent::datapath::ipvs::tunnel::{Tunnel, TunnelError, TunnelPlan};
use mesh_support::error_chain;

use crate::{
    namespace::{Namespace, docker_bridge, ip, link, output, traces, until_it_carries},
    table::{NODE, PEER},
};

pub(crate) fn plan() -> TunnelPlan {
    TunnelPlan {
        bridge: "docker_gwbridge".to_owned(),
        vni: 77,
        port: 6081,
        node_address: NODE,
        peers: [PEER, Ipv4Addr::new(192, 0, 2, 3)].into(),
        remote: [(Ipv4Addr::new(250, 0, 0, 6), PEER)].into(),
        local: [Ipv4Addr::new(250, 0, 0, 5)].into(),
    }
}

#[track_caller]
pub(crate) fn apply(tunnel: &mut Tunnel, plan: &TunnelPlan) {
    tunnel
        .apply(plan)
        .unwrap_or_else(|error| panic!("{}", error_chain(&error)));
}

/// A node with an uplink and Docker's bridge, on which a container is.
fn node() -> (Namespace, Namespace) {
    let node = Namespace::new();
    node.run(|| {
        docker_bridge();
        ip("link add up0 type veth peer name up1");
        ip("address add 192.0.2.1/24 dev up0");
        ip("link set up0 up");
        ip("link set up1 up");
        until_it_carries("up0");
        until_it_carries("up1");
    });
    let container = node.container("box5", "172.18.0.5");
    (node, container)
}

#[test]
fn the_tunnel_is_a_quiet_port_of_the_bridge() {
    let (node, _container) = node();
    node.run(|| {
        ip("link set docker_gwbridge mtu 1400");
        apply(&mut Tunnel::new().unwrap(), &plan());
        let device = link("mesh-vx");
        for part in [
            "master docker_gwbridge",
            ",UP",
            "mtu 1400",
            "fe:4d:c0:00:02:01",
            "vxlan id 77 local 192.0.2.1",
            "dstport 6081 nolearning ttl 64",
            "noudpcsum",
            "learning off flood off",
            "mcast_flood off bcast_flood off",
            "addrgenmode none",
        ] {
            assert!(device.contains(part), "{part}: {device}");
        }
        let bridge = link("docker_gwbridge");
        for its_own in ["mtu 1400", "02:42:00:00:00:01"] {
            assert!(bridge.contains(its_own), "{its_own}: {bridge}");
        }
        let forwarding = output("bridge", "fdb show dev mesh-vx", "");
        for line in [
            "fe:4d:c0:00:02:02 master docker_gwbridge static",
            "fe:4d:c0:00:02:02 dst 192.0.2.2 self permanent",
            "fe:4d:c0:00:02:03 dst 192.0.2.3 self permanent",
        ] {
            assert!(forwarding.contains(line), "{line}: {forwarding}");
        }
        let route = |to: &str| ip(&format!("route get {to}"));
        assert!(route("250.0.0.6").contains("via 192.0.2.2 dev docker_gwbridge"));
        assert!(route("250.0.0.5").starts_with("local 250.0.0.5"));
        assert!(
            route("192.0.2.2").contains("dev up0"),
            "the node's own way to the peer"
        );
        assert!(route("192.0.2.2 from 250.0.0.5").contains("dev docker_gwbridge"));
    });
}

#[test]
fn only_differences_are_applied() {
    let (node, _container) = node();
    node.run(|| {
        let mut tunnel = Tunnel::new().unwrap();
        apply(&mut tunnel, &plan());
        let before = traces();
        apply(&mut tunnel, &plan());
        assert_eq!(traces(), before);

        let mut moved = plan();
        moved.peers = [PEER, Ipv4Addr::new(192, 0, 2, 4)].into();
        moved.remote = [
            (Ipv4Addr::new(250, 0, 0, 6), Ipv4Addr::new(192, 0, 2, 4)),
            (Ipv4Addr::new(250, 0, 0, 7), PEER),
        ]
        .into();
        moved.local = [Ipv4Addr::new(250, 0, 0, 8)].into();
        apply(&mut tunnel, &moved);
        let after = traces();
        assert!(
            !after.contains("192.0.2.3") && !after.contains("250.0.0.5"),
            "{after}"
        );
        assert!(ip("route get 250.0.0.6").contains("via 192.0.2.4"));
        // Another agent adopts what this one made.
        apply(&mut Tunnel::new().unwrap(), &plan());
        assert_eq!(traces(), before);
    });
}

#[test]
fn a_device_for_another_network_or_port_is_replaced() {
    let (node, _container) = node();
    node.run(|| {
        let mut tunnel = Tunnel::new().unwrap();
        apply(&mut tunnel, &plan());
        for other in [
            TunnelPlan { vni: 78, ..plan() },
            TunnelPlan { port: 6082, ..plan() },
            TunnelPlan {
                node_address: Ipv4Addr::new(192, 0, 2, 9),
                ..plan()
            },
        ] {
            apply(&mut tunnel, &other);
            let device = link("mesh-vx");
            for part in [
                format!("vxlan id {} local {}", other.vni, other.node_address),
                format!("dstport {}", other.port),
                "master docker_gwbridge".to_owned(),
            ] {
                assert!(device.contains(&part), "{part}: {device}");
            }
            assert_eq!(ip("route show 250.0.0.6").lines().count(), 1);
        }
    });
}

#[test]
fn without_the_bridge_there_is_no_tunnel_until_it_is_back() {
    let (node, _container) = node();
    node.run(|| {
        let mut tunnel = Tunnel::new().unwrap();
        apply(&mut tunnel, &plan());
        let (forwarding, routes) = (
            output("bridge", "fdb show dev mesh-vx", ""),
            ip("route show table all"),
        );
        ip("link del docker_gwbridge");
        assert!(matches!(tunnel.apply(&plan()), Err(TunnelError::NoBridge(_))));
        docker_bridge();
        apply(&mut tunnel, &plan());
        assert_eq!(output("bridge", "fdb show dev mesh-vx", ""), forwarding);
        let mended = ip("route show table all");
        for line in routes.lines().filter(|line| line.contains("proto 77")) {
            assert!(mended.contains(line), "{line}: {mended}");
        }
    });
}

#[test]
fn removal_leaves_no_trace() {
    let (node, _container) = node();
    node.run(|| {
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        ip("rule add from 198.51.100.1 lookup 5067592 pref 78");
        let before = traces();
        let mut tunnel = Tunnel::new().unwrap();
        tunnel.remove().unwrap();
        apply(&mut tunnel, &plan());
        tunnel.remove().unwrap();
        tunnel.remove().unwrap();
        assert_eq!(traces(), before);

        apply(&mut tunnel, &plan());
        ip("link del mesh-vx");
        tunnel.remove().unwrap();
        assert_eq!(traces(), before);
    });
}

#[test]
fn an_interface_of_another_program_is_left_alone() {
    let (node, _container) = node();
    node.run(|| {
        ip("link add mesh-vx type bridge");
        let mut tunnel = Tunnel::new().unwrap();
        assert!(matches!(tunnel.apply(&plan()), Err(TunnelError::NameTaken)));
        assert!(matches!(tunnel.remove(), Err(TunnelError::NameTaken)));
        ip("link show mesh-vx");
    });
}
