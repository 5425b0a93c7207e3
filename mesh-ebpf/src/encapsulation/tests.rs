//! The outer headers, read back by etherparse, and the packet inside.

use std::net::Ipv4Addr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::{
    bytes::Be32,
    frame::ReadFrame,
    tables::Tables,
    testing::{
        ACK, GENEVE_PORT, Replica, Segment, TestFrame, TestTables, VNI, at, node_address, tcp, udp, view,
        view_inner,
    },
};

/// Node 1, where a replica of port 9200 is to be found on node 2.
fn entry_node() -> TestTables {
    TestTables::node(1).publish(6, 9200, &[Replica::on(2, 5)])
}

fn key(source_port: u16) -> FlowKey {
    FlowKey {
        source: Ipv4Addr::new(192, 0, 2, 7).into(),
        destination: node_address(1).into(),
        source_port: Be16::new(source_port),
        destination_port: Be16::new(9200),
        protocol: 6,
    }
}

fn wrap(frame: &mut TestFrame, kind: GeneveKind) -> Result<(), Refused> {
    let tables = entry_node();
    let config = tables.config().expect("settings");
    let next_hop = tables.next_hop(2).expect("a way to node 2");
    let backend = tables.backend(0).expect("a backend");
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    encapsulate(frame, config, next_hop, 0, backend, kind, &key(40000), &ip)
}

fn a_segment() -> TestFrame {
    let segment = Segment {
        flags: ACK,
        payload: b"GET / HTTP/1.1",
        ..Segment::default()
    };
    tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment)
}

#[test]
fn the_outer_headers_say_who_sends_what_to_whom() {
    let mut frame = a_segment();
    let inner_length = frame.bytes.len() - ETHERNET_LENGTH;
    wrap(&mut frame, GeneveKind::Forward).expect("room");
    let packet = SlicedPacket::from_ethernet(&frame.bytes).expect("a packet");
    let ethernet = packet
        .link
        .as_ref()
        .and_then(|link| link.to_header())
        .expect("Ethernet");
    let ethernet = ethernet.ethernet2().expect("Ethernet II");
    assert_eq!(ethernet.source, [2, 1, 0, 0, 0, 1]);
    assert_eq!(ethernet.destination, [2, 1, 0, 0, 0, 2]);
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        panic!("not IPv4");
    };
    let ip = ip.header();
    assert_eq!(
        (ip.source_addr(), ip.destination_addr()),
        (node_address(1), node_address(2))
    );
    assert_eq!(usize::from(ip.total_len()), inner_length + OUTER_LENGTH);
    assert_eq!((ip.ihl(), ip.ttl()), (5, 64));
    assert!(ip.dont_fragment() && !ip.more_fragments());
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("not UDP");
    };
    assert_eq!(udp.destination_port(), GENEVE_PORT);
    assert!(udp.source_port() >= 0xc000);
    assert_eq!(udp.checksum(), 0);
    assert_eq!(
        usize::from(udp.length()),
        inner_length + OUTER_LENGTH - IPV4_LENGTH
    );
    let vni = VNI.to_be_bytes();
    let expected = [
        // Version 0 and 3 words of options; critical options; IPv4 inside; VNI.
        [0x03, 0x40, 0x08, 0x00],
        vni,
        // Class, kind, length; the backend's address; port 80 and tag.
        [0xff, 0x5a, 0x81, 0x02],
        [10, 200, 0, 5],
        [0, 80, 0x7a, 0x05],
    ];
    assert_eq!(udp.payload()[..20], expected.concat());
}

#[test]
fn the_option_tells_the_kind() {
    for (kind, byte) in [
        (GeneveKind::Forward, 0x81),
        (GeneveKind::ForwardDirect, 0x82),
        (GeneveKind::Reply, 0x83),
        (GeneveKind::Undeliverable, 0x84),
    ] {
        let mut frame = a_segment();
        wrap(&mut frame, kind).expect("room");
        assert_eq!(frame.bytes[ETHERNET_LENGTH + 28 + 10], byte);
        assert_eq!(GeneveKind::from_option(byte), Some(kind));
    }
    assert_eq!((0..=255).filter_map(GeneveKind::from_option).count(), 6);
}

#[test]
fn the_packet_inside_is_untouched() {
    for frame in [
        a_segment(),
        a_segment().unfinished(),
        udp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), b"odd"),
    ] {
        let mut wrapped = frame.clone();
        wrap(&mut wrapped, GeneveKind::Forward).expect("room");
        assert_eq!(
            wrapped.bytes[ETHERNET_LENGTH + OUTER_LENGTH..],
            frame.bytes[ETHERNET_LENGTH..]
        );
        assert_eq!(view_inner(&wrapped), view(&frame));
    }
}

#[test]
fn without_room_it_is_refused_and_nothing_is_written() {
    let mut frame = a_segment();
    frame.elastic = false;
    let before = frame.bytes.clone();
    assert_eq!(wrap(&mut frame, GeneveKind::Forward), Err(Refused));
    assert_eq!(frame.bytes, before);
}

#[test]
fn both_directions_of_a_flow_take_the_same_port() {
    let forward = key(40000);
    assert_eq!(entropy_port(&forward), entropy_port(&forward.reversed()));
}

#[test]
fn flows_of_one_client_spread_over_ports() {
    let ports: std::collections::BTreeSet<_> =
        (32_768..33_768).map(|port| entropy_port(&key(port))).collect();
    assert!(ports.len() > 900, "1000 flows take {} ports", ports.len());
}

proptest! {
    #[test]
    fn the_port_is_a_dynamic_one_and_stays(
        source in any::<u32>(), destination in any::<u32>(), ports in any::<(u16, u16)>(),
    ) {
        let key = FlowKey {
            source: Be32::new(source),
            destination: Be32::new(destination),
            source_port: Be16::new(ports.0),
            destination_port: Be16::new(ports.1),
            protocol: 6,
        };
        prop_assert!(entropy_port(&key).get() >= 0xc000);
        prop_assert_eq!(entropy_port(&key), entropy_port(&key.reversed()));
        // The protocol is no part of it: callers do not always know it.
        prop_assert_eq!(entropy_port(&key), entropy_port(&FlowKey { protocol: 0, ..key }));
    }
}
