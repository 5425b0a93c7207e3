//! Clients' packets to remote backends: encapsulated to the backend's node, the packet inside untouched.

use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_agent::model::{Location, NextHop, ReturnMode};

use crate::{
    frames::{ACK, FORWARD, FORWARD_DIRECT, Packet, SYN, check_frame, outer_port},
    space::{
        CLIENT, DNS, NODE, PEER, Space, TC_REDIRECT, TC_UNSPEC, WEB, XDP_PASS, XDP_REDIRECT, XDP_TX,
        arriving, backend_key, frontend, in_space, serve, to_peer,
    },
};

fn remote(space: &mut Space) {
    let state = space.serving(Location::Remote(PEER));
    space.apply(&state);
}

#[test]
fn xdp_encapsulates_to_the_node_of_a_remote_backend() {
    in_space(|space| {
        remote(space);
        let small = |flags| Packet::tcp(arriving(), CLIENT, frontend(WEB), flags).with_mss(536);
        let opening = space.xdp(&small(SYN).frame());
        assert_eq!(opening.verdict, XDP_TX);
        let port = outer_port(&opening.frame);
        check_frame(&opening.frame, &to_peer(WEB, FORWARD, port).around(&small(SYN)));

        let data = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK);
        let established = space.xdp(&data.frame());
        assert_eq!(established.verdict, XDP_TX);
        check_frame(&established.frame, &to_peer(WEB, FORWARD, port).around(&data));

        let traffic = space.traffic(backend_key(WEB, 5));
        let bytes = small(SYN).frame().len() + data.frame().len() - 2 * 14;
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
        assert_eq!(traffic.bytes_in, bytes as u64);
        assert!(space.drops().is_empty());
    });
}

#[test]
fn tc_encapsulates_as_xdp_does() {
    in_space(|space| {
        remote(space);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let by_xdp = space.xdp(&packet.frame());
        let by_tc = space.tc_uplink(&packet.frame());
        assert_eq!((by_xdp.verdict, by_tc.verdict), (XDP_TX, TC_REDIRECT));
        check_frame(&by_tc.frame, &by_xdp.frame);
        let port = outer_port(&by_tc.frame);
        check_frame(&by_tc.frame, &to_peer(DNS, FORWARD, port).around(&packet));
        let traffic = space.traffic(backend_key(DNS, 5));
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 2));
    });
}

#[test]
fn the_mss_of_a_syn_is_clamped_to_what_the_tunnel_takes() {
    in_space(|space| {
        remote(space);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let clamped = syn.clone().with_mss(1500 - 48 - 40);
        for output in [space.xdp(&syn.frame()), space.tc_uplink(&syn.frame())] {
            let port = outer_port(&output.frame);
            check_frame(&output.frame, &to_peer(WEB, FORWARD, port).around(&clamped));
        }
    });
}

#[test]
fn direct_return_is_asked_for_in_the_tunnel() {
    in_space(|space| {
        let mut state = space.serving(Location::Remote(PEER));
        state.settings.return_mode = ReturnMode::Dsr;
        space.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let output = space.xdp(&packet.frame());
        let port = outer_port(&output.frame);
        check_frame(&output.frame, &to_peer(DNS, FORWARD_DIRECT, port).around(&packet));
    });
}

#[test]
fn a_peer_behind_another_interface_is_redirected_to() {
    in_space(|space| {
        let mut state = space.serving(Location::Remote(PEER));
        let elsewhere = NextHop {
            interface: space.container,
            ..space.way([2, 0, 0, 0, 0, 2])
        };
        state.peers.insert(PEER, Some(elsewhere));
        space.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let output = space.xdp(&packet.frame());
        assert_eq!(output.verdict, XDP_REDIRECT);
        let port = outer_port(&output.frame);
        check_frame(&output.frame, &to_peer(DNS, FORWARD, port).around(&packet));
    });
}

#[test]
fn before_the_way_to_a_peer_is_known_the_kernel_resolves_it() {
    in_space(|space| {
        let mut state = space.serving(Location::Remote(PEER));
        state.peers.insert(PEER, None);
        space.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let by_xdp = space.xdp(&packet.frame());
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &packet.frame());
        let by_tc = space.tc_uplink(&packet.frame());
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        let port = outer_port(&by_tc.frame);
        let expected = to_peer(DNS, FORWARD, port).around(&packet);
        // The kernel fills in the Ethernet header.
        check_frame(&by_tc.frame[14..], &expected[14..]);
        assert_eq!(space.traffic(backend_key(DNS, 5)).packets_in, 1);
    });
}

#[test]
fn what_is_not_the_meshs_passes_untouched() {
    in_space(|space| {
        remote(space);
        let node = |port| SocketAddrV4::new(NODE, port);
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
            Packet::tcp(arriving(), CLIENT, node(22), SYN).frame(),
            // Published for another protocol, or at another address.
            Packet::udp(arriving(), CLIENT, node(WEB.port)).frame(),
            Packet::tcp(arriving(), CLIENT, elsewhere, SYN).frame(),
            // A connection that is older than the mesh.
            Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).frame(),
            // Somebody else's Geneve.
            {
                let mut tunnel = crate::space::from_peer(WEB, FORWARD);
                tunnel.vni = 7;
                tunnel.around(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN))
            },
        ];
        for frame in frames {
            for (output, pass) in [
                (space.xdp(&frame), XDP_PASS),
                (space.tc_uplink(&frame), TC_UNSPEC),
            ] {
                assert_eq!(output.verdict, pass);
                check_frame(&output.frame, &frame);
            }
        }
        assert!(space.drops().is_empty());
        assert_eq!(space.traffic(backend_key(WEB, 5)).connections_total, 0);
    });
}

#[test]
fn ten_flows_over_five_backends_are_two_for_each() {
    in_space(|space| {
        let mut state = space.node();
        let backends: Vec<_> = (1..=5).map(|number| (number, Location::Remote(PEER))).collect();
        serve(&mut state, WEB, &backends);
        space.apply(&state);
        for port in 50_000..50_010 {
            let client = SocketAddrV4::new(*CLIENT.ip(), port);
            let syn = Packet::tcp(arriving(), client, frontend(WEB), SYN);
            assert_eq!(space.xdp(&syn.frame()).verdict, XDP_TX);
            // Retransmitted: the flow stays, and is no new connection.
            assert_eq!(space.xdp(&syn.frame()).verdict, XDP_TX);
        }
        for number in 1..=5 {
            let traffic = space.traffic(backend_key(WEB, number));
            assert_eq!(
                (traffic.connections_total, traffic.packets_in),
                (2, 4),
                "backend {number}"
            );
        }
    });
}
