//! Packets from clients to remote backends: encapsulated to the backend's node, the inner packet unchanged.

use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_agent::model::{Location, NextHop, ReturnMode};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, NODE, PEER, PEER_MAC, WEB, arriving, backend_key, frontend, serve, to_peer},
    frames::{ACK, FORWARD, FORWARD_DIRECT, Packet, SYN, check_frame, outer_port},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_UNSPEC, XDP_PASS, XDP_REDIRECT, XDP_TX},
};

fn remote(node: &mut Node) {
    let state = node.serving(Location::Remote(PEER));
    node.apply(&state);
}

#[test]
fn xdp_encapsulates_to_the_node_of_a_remote_backend() {
    on_a_node(|node| {
        remote(node);
        let small = |flags| Packet::tcp(arriving(), CLIENT, frontend(WEB), flags).with_mss(536);
        let opening = node.xdp(&small(SYN).frame());
        assert_eq!(opening.verdict, XDP_TX);
        let port = outer_port(&opening.frame);
        check_frame(&opening.frame, &to_peer(WEB, FORWARD, port).around(&small(SYN)));

        let data = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK);
        let established = node.xdp(&data.frame());
        assert_eq!(established.verdict, XDP_TX);
        check_frame(&established.frame, &to_peer(WEB, FORWARD, port).around(&data));

        let traffic = node.traffic(backend_key(WEB, 5));
        let bytes = small(SYN).frame().len() + data.frame().len() - 2 * 14;
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
        assert_eq!(traffic.bytes_in, bytes as u64);
        assert!(node.drops().is_empty());
    });
}

#[test]
fn tc_encapsulates_as_xdp_does() {
    on_a_node(|node| {
        remote(node);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let by_xdp = node.xdp(&packet.frame());
        let by_tc = node.tc_uplink(&packet.frame());
        assert_eq!((by_xdp.verdict, by_tc.verdict), (XDP_TX, TC_REDIRECT));
        check_frame(&by_tc.frame, &by_xdp.frame);
        let port = outer_port(&by_tc.frame);
        check_frame(&by_tc.frame, &to_peer(DNS, FORWARD, port).around(&packet));
        let traffic = node.traffic(backend_key(DNS, 5));
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
    });
}

#[test]
fn the_mss_of_a_syn_is_clamped_to_what_fits_the_tunnel() {
    on_a_node(|node| {
        remote(node);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let clamped = syn.clone().with_mss(1500 - 56 - 40);
        for output in [node.xdp(&syn.frame()), node.tc_uplink(&syn.frame())] {
            let port = outer_port(&output.frame);
            check_frame(&output.frame, &to_peer(WEB, FORWARD, port).around(&clamped));
        }
    });
}

#[test]
fn the_mss_of_a_syn_is_clamped_to_what_the_way_to_its_peer_carries() {
    on_a_node(|node| {
        let mut state = node.serving(Location::Remote(PEER));
        let narrow = NextHop {
            mtu: Some(1400),
            ..node.next_hop(PEER_MAC)
        };
        state.peers.insert(PEER, Some(narrow));
        node.apply(&state);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let clamped = syn.clone().with_mss(1400 - 56 - 40);
        for output in [node.xdp(&syn.frame()), node.tc_uplink(&syn.frame())] {
            let port = outer_port(&output.frame);
            check_frame(&output.frame, &to_peer(WEB, FORWARD, port).around(&clamped));
        }
    });
}

#[test]
fn direct_return_is_asked_for_in_the_tunnel() {
    on_a_node(|node| {
        let mut state = node.serving(Location::Remote(PEER));
        state.settings.return_mode = ReturnMode::Dsr;
        node.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let output = node.xdp(&packet.frame());
        let port = outer_port(&output.frame);
        check_frame(&output.frame, &to_peer(DNS, FORWARD_DIRECT, port).around(&packet));
    });
}

#[test]
fn packets_for_a_peer_behind_another_interface_are_redirected() {
    on_a_node(|node| {
        let mut state = node.serving(Location::Remote(PEER));
        let elsewhere = NextHop {
            interface: node.container,
            ..node.next_hop([2, 0, 0, 0, 0, 2])
        };
        state.peers.insert(PEER, Some(elsewhere));
        node.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let output = node.xdp(&packet.frame());
        assert_eq!(output.verdict, XDP_REDIRECT);
        let port = outer_port(&output.frame);
        check_frame(&output.frame, &to_peer(DNS, FORWARD, port).around(&packet));
    });
}

#[test]
fn the_kernel_resolves_the_next_hop_to_a_peer_until_it_is_known() {
    on_a_node(|node| {
        let mut state = node.serving(Location::Remote(PEER));
        state.peers.insert(PEER, None);
        node.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let by_xdp = node.xdp(&packet.frame());
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &packet.frame());
        let by_tc = node.tc_uplink(&packet.frame());
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        let port = outer_port(&by_tc.frame);
        let expected = to_peer(DNS, FORWARD, port).around(&packet);
        // The kernel fills in the Ethernet header.
        check_frame(&by_tc.frame[14..], &expected[14..]);
        assert_eq!(node.traffic(backend_key(DNS, 5)).packets_in, 1);
    });
}

#[test]
fn other_packets_pass_unchanged() {
    on_a_node(|node| {
        remote(node);
        let at_node = |port| SocketAddrV4::new(NODE, port);
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), WEB.port);
        let mut arp = arriving().destination.to_vec();
        arp.extend(arriving().source);
        arp.extend([0x08, 0x06]);
        arp.extend([0; 46]);
        let mut icmp = Packet::udp(arriving(), CLIENT, frontend(DNS)).frame();
        icmp[23] = 1;
        let frames = [
            arp,
            icmp,
            Packet::tcp(arriving(), CLIENT, at_node(22), SYN).frame(),
            // Another protocol than the published one; another address.
            Packet::udp(arriving(), CLIENT, at_node(WEB.port)).frame(),
            Packet::tcp(arriving(), CLIENT, elsewhere, SYN).frame(),
            // A connection that is older than the mesh.
            Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).frame(),
            // Geneve of another network.
            {
                let mut tunnel = mesh_agent_testing::cluster::from_peer(WEB, FORWARD);
                tunnel.vni = 7;
                tunnel.around(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN))
            },
        ];
        for frame in frames {
            for (output, pass) in [(node.xdp(&frame), XDP_PASS), (node.tc_uplink(&frame), TC_UNSPEC)] {
                assert_eq!(output.verdict, pass);
                check_frame(&output.frame, &frame);
            }
        }
        assert!(node.drops().is_empty());
        assert_eq!(node.traffic(backend_key(WEB, 5)).connections_total, 0);
    });
}

#[test]
fn ten_flows_over_five_backends_are_two_for_each() {
    on_a_node(|node| {
        let mut state = node.without_services();
        let backends: Vec<_> = (1..=5).map(|number| (number, Location::Remote(PEER))).collect();
        serve(&mut state, WEB, &backends);
        node.apply(&state);
        for port in 50_000..50_010 {
            let client = SocketAddrV4::new(*CLIENT.ip(), port);
            let syn = Packet::tcp(arriving(), client, frontend(WEB), SYN);
            assert_eq!(node.xdp(&syn.frame()).verdict, XDP_TX);
            // Retransmitted: the flow stays, and is no new connection.
            assert_eq!(node.xdp(&syn.frame()).verdict, XDP_TX);
        }
        for number in 1..=5 {
            let traffic = node.traffic(backend_key(WEB, number));
            assert_eq!(
                (traffic.connections_total, traffic.packets_in),
                (2, 4),
                "backend {number}"
            );
        }
    });
}
