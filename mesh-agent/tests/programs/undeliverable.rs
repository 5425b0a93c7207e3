//! Packets that this node cannot deliver, and packets that a peer could not.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use mesh_agent::model::{Location, ServiceKey, desired::task_tag};
use mesh_agent_testing::{
    cluster::{
        CLIENT, DNS, PEER, ROUTER_MAC, WEB, arriving, backend_key, from_peer, frontend, into_container,
        leaving_to, serve, target, to_peer,
    },
    frames::{ACK, FORWARD, Packet, RST, SYN, Transport, Tunnel, UNDELIVERABLE, check_frame, outer_port},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, XDP_PASS, XDP_TX},
};

/// The frame as the peer sends it back.
fn back(service: ServiceKey, number: u8, port: u16, inner: &Packet) -> Vec<u8> {
    let mut tunnel = from_peer(service, UNDELIVERABLE);
    tunnel.source_port = port;
    name(&mut tunnel, number);
    tunnel.around(inner)
}

/// Names another replica than 5.
fn name(tunnel: &mut Tunnel, number: u8) {
    tunnel.backend.set_ip(Ipv4Addr::new(10, 255, 0, number));
    tunnel.tag = task_tag(&format!("task{number}"));
}

/// Replicas 5 and 6 of both services, the first of them on the peer.
fn two_replicas(node: &mut Node, other: Location) {
    let mut state = node.without_services();
    for service in [WEB, DNS] {
        serve(&mut state, service, &[(5, Location::Remote(PEER)), (6, other)]);
    }
    node.apply(&state);
}

#[test]
fn what_is_for_an_unknown_backend_goes_back_as_it_came() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let inner = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let mut other_task = from_peer(WEB, FORWARD);
        other_task.tag ^= 1;
        let mut other_port = from_peer(WEB, FORWARD);
        other_port.backend.set_port(81);
        let mut other_address = from_peer(WEB, FORWARD);
        other_address.backend.set_ip(Ipv4Addr::new(10, 255, 0, 77));
        for tunnel in [other_task, other_port, other_address] {
            let frame = tunnel.around(&inner);
            let output = node.xdp(&frame);
            assert_eq!(output.verdict, XDP_PASS);
            check_frame(&output.frame, &frame);
            let output = node.tc_uplink(&frame);
            assert_eq!(output.verdict, TC_REDIRECT);
            let expected = Tunnel {
                backend: tunnel.backend,
                tag: tunnel.tag,
                ..to_peer(WEB, UNDELIVERABLE, tunnel.source_port)
            };
            check_frame(&output.frame, &expected.around(&inner));
        }
        let counted = BTreeMap::from([(("tc_uplink".to_owned(), "unknown_backend".to_owned()), 3)]);
        assert_eq!(node.drops(), counted);
    });
}

#[test]
fn what_came_back_goes_to_another_peers_backend_once() {
    on_a_node(|node| {
        two_replicas(node, Location::Remote(PEER));
        for (service, packet) in [
            (
                WEB,
                Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).with_mss(536),
            ),
            (
                DNS,
                Packet::udp(arriving(), CLIENT, frontend(DNS)).with_payload(30),
            ),
        ] {
            let first = node.tc_uplink(&packet.frame());
            let port = outer_port(&first.frame);
            check_frame(&first.frame, &to_peer(service, FORWARD, port).around(&packet));
            let returned = back(service, 5, port, &packet);
            assert_eq!(node.xdp(&returned).verdict, XDP_PASS);

            let second = node.tc_uplink(&returned);
            assert_eq!(second.verdict, TC_REDIRECT);
            let mut expected = to_peer(service, FORWARD, port);
            name(&mut expected, 6);
            check_frame(&second.frame, &expected.around(&packet));

            let answer = node.tc_uplink(&back(service, 6, port, &packet));
            assert_eq!(answer.verdict, TC_REDIRECT);
            assert_eq!(answer.frame[..12], [ROUTER_MAC, arriving().destination].concat());
            let traffic = node.traffic(backend_key(service, 6));
            assert_eq!((traffic.connections_total, traffic.packets_in), (1, 1));
        }
        let counted = BTreeMap::from([(("tc_uplink".to_owned(), "undeliverable".to_owned()), 2)]);
        assert_eq!(node.drops(), counted);
    });
}

/// As when a container has ended while there is no agent: its veth has gone, its backend has not.
#[test]
fn a_container_that_has_gone_is_passed_over() {
    on_a_node(|node| {
        let Location::Local(mut container) = node.local() else {
            unreachable!("it is local");
        };
        container.host_interface = 99_999;
        two_replicas(node, Location::Local(container));
        for port in 40_000..40_010 {
            let client = SocketAddrV4::new(*CLIENT.ip(), port);
            let packet = Packet::tcp(arriving(), client, frontend(WEB), SYN).with_mss(536);
            let output = node.xdp(&packet.frame());
            assert_eq!(output.verdict, XDP_TX);
            let expected = to_peer(WEB, FORWARD, outer_port(&output.frame));
            check_frame(&output.frame, &expected.around(&packet));
        }
        let mut from_peer = from_peer(WEB, FORWARD);
        name(&mut from_peer, 6);
        let frame = from_peer.around(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN));
        assert_eq!(node.tc_uplink(&frame).verdict, TC_REDIRECT, "back to the peer");
        let counted = BTreeMap::from([(("tc_uplink".to_owned(), "unknown_backend".to_owned()), 1)]);
        assert_eq!(node.drops(), counted);
    });
}

#[test]
fn what_came_back_goes_to_a_container_of_this_node() {
    on_a_node(|node| {
        let local = node.local();
        two_replicas(node, local);
        let packet = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let port = outer_port(&node.tc_uplink(&packet.frame()).frame);
        let output = node.tc_uplink(&back(WEB, 5, port, &packet));
        assert_eq!(output.verdict, TC_REDIRECT);
        let expected = packet.routed(into_container(), CLIENT, target(WEB));
        check_frame(&output.frame, &expected.frame());
        assert!(node.drops().is_empty());
    });
}

#[test]
fn an_open_connection_is_reset_when_its_packet_came_back() {
    on_a_node(|node| {
        two_replicas(node, Location::Remote(PEER));
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let port = outer_port(&node.tc_uplink(&syn.frame()).frame);
        let data = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK);
        let output = node.tc_uplink(&back(WEB, 5, port, &data));
        assert_eq!(output.verdict, TC_REDIRECT);
        let mut reset = Packet::tcp(leaving_to(ROUTER_MAC), frontend(WEB), CLIENT, RST);
        reset.transport = Transport::Tcp {
            flags: RST,
            sequence: 0x0506_0708,
            acknowledgement: 0,
            window: 0,
            mss: None,
        };
        check_without_identification(&output.frame, &reset.frame());
    });
}

/// The mesh's own packets are not fragmented, and have no identification.
#[track_caller]
fn check_without_identification(actual: &[u8], expected: &[u8]) {
    let without = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[18..20].fill(0);
        frame[24..26].fill(0);
        frame
    };
    check_frame(&without(actual), &without(expected));
}

#[test]
fn only_what_this_node_has_sent_comes_back() {
    on_a_node(|node| {
        two_replicas(node, Location::Remote(PEER));
        let other = SocketAddrV4::new(*CLIENT.ip(), 50_000);
        let packet = Packet::tcp(arriving(), other, frontend(WEB), SYN);
        let output = node.tc_uplink(&back(WEB, 5, 0xc001, &packet));
        assert_eq!(output.verdict, TC_SHOT);
        let counted = BTreeMap::from([(("tc_uplink".to_owned(), "unknown_flow".to_owned()), 1)]);
        assert_eq!(node.drops(), counted);
    });
}
