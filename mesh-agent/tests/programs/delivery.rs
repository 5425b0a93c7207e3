//! Packets into a container of this node: from clients, from a peer, from a local process.

use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_agent::model::{Frontend, MacAddress, Masquerade, ServiceKey};
use mesh_agent_testing::{
    cluster::{
        CLIENT, DNS, MESH0_MAC, NODE, SERVICE_ADDRESS, WEB, arriving, backend_key, from_peer, frontend,
        into_container, out_of_container, target,
    },
    frames::{ACK, FORWARD, FORWARD_DIRECT, Macs, Packet, SYN, check_frame},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_UNSPEC, XDP_PASS},
};

fn local(node: &mut Node) {
    let state = node.serving(node.local());
    node.apply(&state);
}

/// The frame that the container gets: it has the client's address.
fn delivered(packet: &Packet, service: ServiceKey) -> Vec<u8> {
    packet
        .routed(into_container(), packet.source, target(service))
        .frame()
}

#[test]
fn xdp_leaves_local_delivery_to_tc() {
    on_a_node(|node| {
        local(node);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let by_xdp = node.xdp(&syn.frame());
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &syn.frame());
        let by_tc = node.tc_uplink(&syn.frame());
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        check_frame(&by_tc.frame, &delivered(&syn, WEB));
        let traffic = node.traffic(backend_key(WEB, 5));
        assert_eq!((traffic.connections_total, traffic.packets_in), (1, 1));
    });
}

#[test]
fn tc_delivers_with_every_checksum_right() {
    on_a_node(|node| {
        local(node);
        let mut packets = vec![
            (Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN), WEB),
            (Packet::udp(arriving(), CLIENT, frontend(DNS)), DNS),
        ];
        for length in [0, 1, 2, 7, 512, 1400] {
            let segment = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).with_payload(length);
            let datagram = Packet::udp(arriving(), CLIENT, frontend(DNS)).with_payload(length);
            packets.extend([(segment, WEB), (datagram, DNS)]);
        }
        for (packet, service) in &packets {
            let output = node.tc_uplink(&packet.frame());
            assert_eq!(output.verdict, TC_REDIRECT);
            check_frame(&output.frame, &delivered(packet, *service));
        }
        let traffic = node.traffic(backend_key(WEB, 5));
        let bytes: usize = packets
            .iter()
            .filter(|(_, service)| *service == WEB)
            .map(|(packet, _)| packet.frame().len() - 14)
            .sum();
        assert_eq!((traffic.packets_in, traffic.bytes_in), (7, bytes as u64));
    });
}

#[test]
fn what_has_another_machines_mac_address_passes_until_the_node_has_that_address() {
    on_a_node(|node| {
        local(node);
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let other = MacAddress([2, 0x77, 0, 0, 0, 1]);
        let mut frame = syn.frame();
        frame[..6].copy_from_slice(&other.0);
        assert_eq!(node.xdp(&frame).verdict, XDP_PASS);
        let output = node.tc_uplink(&frame);
        assert_eq!(output.verdict, TC_UNSPEC);
        check_frame(&output.frame, &frame);
        // Such as a macvlan's, whose address moves here with its frontends.
        let mut state = node.serving(node.local());
        state.macs.insert(other);
        node.apply(&state);
        assert_eq!(node.tc_uplink(&frame).verdict, TC_REDIRECT);
        state.macs.clear();
        node.apply(&state);
        assert_eq!(
            node.tc_uplink(&syn.frame()).verdict,
            TC_REDIRECT,
            "they are not known"
        );
    });
}

#[test]
fn a_udp_packet_without_a_checksum_gets_none() {
    on_a_node(|node| {
        local(node);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let without = |mut frame: Vec<u8>| {
            frame[40..42].fill(0);
            frame
        };
        let output = node.tc_uplink(&without(packet.frame()));
        check_frame(&output.frame, &without(delivered(&packet, DNS)));
    });
}

#[test]
fn an_aggregated_packet_counts_as_its_segments() {
    on_a_node(|node| {
        local(node);
        node.tc_uplink(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let three = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).with_payload(3000);
        let output = node.tc_uplink_aggregated(&three.frame(), 3);
        assert_eq!(output.verdict, TC_REDIRECT);
        check_frame(&output.frame, &delivered(&three, WEB));
        assert_eq!(node.traffic(backend_key(WEB, 5)).packets_in, 4);
    });
}

#[test]
fn an_encapsulated_packet_is_unpacked_into_the_container() {
    on_a_node(|node| {
        local(node);
        let entry = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), WEB.port);
        for kind in [FORWARD, FORWARD_DIRECT] {
            for flags in [SYN, ACK] {
                let inner = Packet::tcp(arriving(), CLIENT, entry, flags);
                let frame = from_peer(WEB, kind).around(&inner);
                assert_eq!(node.xdp(&frame).verdict, XDP_PASS);
                let output = node.tc_uplink(&frame);
                assert_eq!(output.verdict, TC_REDIRECT);
                check_frame(&output.frame, &delivered(&inner, WEB));
            }
        }
        // The entry node counts them.
        let traffic = node.traffic(backend_key(WEB, 5));
        assert_eq!((traffic.connections_total, traffic.packets_in), (0, 0));
        assert!(node.drops().is_empty());
    });
}

#[test]
fn a_local_process_reaches_a_container_by_mesh0() {
    on_a_node(|node| {
        local(node);
        let own = Macs {
            source: MESH0_MAC,
            destination: MESH0_MAC,
        };
        let process = SocketAddrV4::new(NODE, 41_000);
        let service = SocketAddrV4::new(SERVICE_ADDRESS, WEB.port);
        let syn = Packet::tcp(own, process, service, SYN);
        let output = node.tc_mesh0(&syn.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        check_frame(&output.frame, &delivered(&syn, WEB));

        let answer = Packet::tcp(out_of_container(), target(WEB), process, SYN | ACK);
        let output = node.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        check_frame(&output.frame, &answer.routed(own, service, process).frame());
    });
}

#[test]
fn a_container_that_dials_its_own_node_has_the_nodes_address() {
    on_a_node(|node| {
        local(node);
        let dialler = SocketAddrV4::new(*target(WEB).ip(), 42_000);
        let syn = Packet::tcp(out_of_container(), dialler, frontend(WEB), SYN);
        let output = node.tc_container(&syn.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let presented = SocketAddrV4::new(NODE, 42_000);
        check_frame(
            &output.frame,
            &syn.routed(into_container(), presented, target(WEB)).frame(),
        );
    });
}

#[test]
fn flows_that_would_collide_at_the_container_get_different_ports() {
    on_a_node(|node| {
        let mut state = node.serving(node.local());
        let second = Ipv4Addr::new(10, 0, 0, 11);
        state.frontends.insert(Frontend {
            address: second,
            service: WEB,
        });
        node.apply(&state);
        let first = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        check_frame(&node.tc_uplink(&first.frame()).frame, &delivered(&first, WEB));
        let other = SocketAddrV4::new(second, WEB.port);
        let syn = Packet::tcp(arriving(), CLIENT, other, SYN);
        let output = node.tc_uplink(&syn.frame());
        let port = u16::from_be_bytes([output.frame[34], output.frame[35]]);
        assert_ne!(port, CLIENT.port());
        let presented = SocketAddrV4::new(*CLIENT.ip(), port);
        check_frame(
            &output.frame,
            &syn.routed(into_container(), presented, target(WEB)).frame(),
        );
        // The answer goes to the port the client used, from the address it dialled.
        let answer = Packet::tcp(out_of_container(), target(WEB), presented, SYN | ACK);
        let output = node.tc_container(&answer.frame());
        let back = Macs {
            source: arriving().destination,
            destination: arriving().source,
        };
        check_frame(&output.frame, &answer.routed(back, other, CLIENT).frame());
    });
}

#[test]
fn a_client_whom_the_container_would_answer_by_its_own_network_has_another_source() {
    on_a_node(|node| {
        let mut state = node.serving(node.local());
        let container = node.container;
        // The longest prefix decides, and of this container only.
        for (interface, clients, source) in [
            (container, "192.0.2.0/24", NODE),
            (container, "192.0.0.0/16", Ipv4Addr::new(172, 18, 0, 1)),
            (container + 1, "192.0.2.10/32", Ipv4Addr::new(172, 18, 0, 1)),
        ] {
            let clients = clients.parse().expect("a subnet");
            state
                .masquerades
                .insert(Masquerade { interface, clients }, source);
        }
        node.apply(&state);
        let presented = SocketAddrV4::new(NODE, CLIENT.port());
        let seen = |packet: &Packet, service| {
            packet
                .routed(into_container(), presented, target(service))
                .frame()
        };
        let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        assert_eq!(node.xdp(&syn.frame()).verdict, XDP_PASS);
        check_frame(&node.tc_uplink(&syn.frame()).frame, &seen(&syn, WEB));
        let query = Packet::udp(arriving(), CLIENT, frontend(DNS));
        check_frame(&node.tc_uplink(&query.frame()).frame, &seen(&query, DNS));
        let entry = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), WEB.port);
        let other = SocketAddrV4::new(*CLIENT.ip(), 41_000);
        let inner = Packet::tcp(arriving(), other, entry, SYN);
        let output = node.tc_uplink(&from_peer(WEB, FORWARD).around(&inner));
        let presented_other = SocketAddrV4::new(NODE, 41_000);
        let expected = inner.routed(into_container(), presented_other, target(WEB));
        check_frame(&output.frame, &expected.frame());
        let answer = Packet::tcp(out_of_container(), target(WEB), presented, SYN | ACK);
        let output = node.tc_container(&answer.frame());
        let back = Macs {
            source: arriving().destination,
            destination: arriving().source,
        };
        check_frame(&output.frame, &answer.routed(back, frontend(WEB), CLIENT).frame());
        // Once the container has left the networks, clients are seen as they are; and so after a restart.
        state.masquerades.retain(|key, _| key.interface != container);
        node.apply(&state);
        let late = Packet::tcp(
            arriving(),
            SocketAddrV4::new(*CLIENT.ip(), 42_000),
            frontend(WEB),
            SYN,
        );
        check_frame(&node.tc_uplink(&late.frame()).frame, &delivered(&late, WEB));
    });
}
