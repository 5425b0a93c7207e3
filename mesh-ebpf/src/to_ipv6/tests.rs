use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::*;
use crate::{
    abi::NextHop,
    mapped,
    testing::{ACK, CLIENT_ROUTE, Segment, TestFrame, TestTables, at_v6, tcp, udp, view_v6},
};

const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const MAPPED: Ipv4Addr = Ipv4Addr::new(252, 1, 2, 3);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);

/// A node that knows the client, and what stands for that.
fn node() -> (TestTables, Ipv4Addr) {
    let tables = TestTables::node(1).with_ipv6(OWN, MAPPED);
    let client = mapped::client(&tables, &CLIENT.into(), 4).unwrap();
    (tables, client.into())
}

fn reply(client: Ipv4Addr) -> TestFrame {
    let segment = Segment {
        flags: ACK,
        payload: b"answer",
        ..Segment::default()
    };
    tcp(
        SocketAddrV4::new(MAPPED, 8080),
        SocketAddrV4::new(client, 40000),
        segment,
    )
}

fn sent(tables: &TestTables, frame: &mut TestFrame) -> Action {
    run(frame, tables, Hook::TcMesh0)
}

#[test]
fn a_reply_comes_from_the_address_that_the_client_dialled() {
    let (tables, client) = node();
    let mut frame = reply(client).routed(CLIENT_ROUTE);
    frame.bytes[15] = 0xb8;
    crate::testing::fix_ip_checksum(&mut frame.bytes, ETHERNET_LENGTH);
    let action = sent(&tables, &mut frame);
    assert!(matches!(action, Action::Transmit { interface: 3 }), "{action:?}");
    let found = view_v6(&frame);
    assert_eq!(found.source, at_v6("[2001:db8::1]:8080"));
    assert_eq!(found.destination, at_v6("[2001:db8::99]:40000"));
    assert_eq!((found.traffic_class, found.hop_limit), (0xb8, 61));
    assert_eq!(found.payload, b"answer");
    assert_eq!(
        frame.bytes[..12],
        [2, 3, 0, 0, 0, 2, 2, 3, 0, 0, 0, 1],
        "MAC addresses"
    );
}

#[test]
fn a_datagram_keeps_its_checksum_right_and_needs_one() {
    let (tables, client) = node();
    let datagram = || {
        udp(
            SocketAddrV4::new(MAPPED, 5353),
            SocketAddrV4::new(client, 40000),
            b"answer",
        )
        .routed(CLIENT_ROUTE)
    };
    let mut frame = datagram();
    sent(&tables, &mut frame);
    assert_eq!(view_v6(&frame).payload, b"answer");
    let mut without = datagram().without_checksum();
    assert!(matches!(sent(&tables, &mut without), Action::Drop));
    assert_eq!(tables.drops(Hook::TcMesh0, DropReason::NoChecksum), 1);
}

#[test]
fn the_kernel_finds_the_way_where_it_is_not_known() {
    let (tables, client) = node();
    for (route, interface) in [
        (Route::Unresolved { interface: 5 }, 5),
        // The interface that the client's packets come in by.
        (Route::Unreachable, 4),
        // A device without MAC addresses.
        (
            Route::Resolved(NextHop {
                interface: 6,
                ..NextHop::default()
            }),
            6,
        ),
    ] {
        let mut frame = reply(client).routed(route);
        let action = sent(&tables, &mut frame);
        assert!(
            matches!(action, Action::Route { interface: found } if found == interface),
            "{action:?}"
        );
        view_v6(&frame);
    }
}

#[test]
fn what_is_from_no_address_of_the_node_or_for_no_client_is_dropped() {
    let (tables, client) = node();
    let other = tcp(
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 8080),
        SocketAddrV4::new(client, 40000),
        ACK,
    );
    let stranger = reply(Ipv4Addr::new(248, 0, 0, 1));
    for mut frame in [other, stranger] {
        assert!(matches!(sent(&tables, &mut frame), Action::Drop));
    }
    assert_eq!(tables.drops(Hook::TcMesh0, DropReason::NotAFrontend), 2);
}

#[test]
fn fragments_get_the_header_that_says_so() {
    let (tables, client) = node();
    let payload = [7; 64];
    for (fragment, in_ipv6) in [(0x2000_u16, 0x0001_u16), (0x2003, 0x0019), (0x0009, 0x0048)] {
        let mut frame = udp(
            SocketAddrV4::new(MAPPED, 5353),
            SocketAddrV4::new(client, 40000),
            &payload,
        )
        .routed(CLIENT_ROUTE);
        frame.bytes[18..20].copy_from_slice(&0x1234_u16.to_be_bytes());
        frame.bytes[20..22].copy_from_slice(&fragment.to_be_bytes());
        let behind = frame.bytes[L4_OFFSET..].to_vec();
        assert!(matches!(sent(&tables, &mut frame), Action::Transmit { .. }));
        assert_eq!(
            frame.bytes[18..20],
            80_u16.to_be_bytes(),
            "72 bytes and 8 of the header"
        );
        assert_eq!(frame.bytes[20], 44, "next header");
        let header = &frame.bytes[54..62];
        assert_eq!((header[0], header[1]), (17, 0));
        assert_eq!(header[2..4], in_ipv6.to_be_bytes());
        assert_eq!(header[4..8], 0x1234_u32.to_be_bytes());
        let is_first = fragment == 0x2000;
        let differs = frame.bytes[62..] != behind[..];
        assert_eq!(differs, is_first, "only the first one has a checksum");
    }
}
