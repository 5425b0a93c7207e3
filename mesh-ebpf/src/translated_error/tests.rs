use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::Hook,
    mapped,
    testing::{
        ACK, CLIENT_ROUTE, Replica, SYN, TestFrame, TestTables, at, at_v6, icmp, icmp_v6, tcp, tcp_v6,
        udp_v6, view_error, view_error_v6,
    },
    to_ipv4::{self, Next},
    to_ipv6,
    verdict::Action,
};

const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const MAPPED: Ipv4Addr = Ipv4Addr::new(252, 1, 2, 3);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 1);

fn node() -> (TestTables, Ipv4Addr) {
    let tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 8080, &[Replica::on(1, 7)])
        .publish(PROTOCOL_UDP, 5353, &[Replica::on(1, 7)])
        .with_ipv6(OWN, MAPPED);
    let client = mapped::client(&tables, &CLIENT.into(), 2).unwrap();
    (tables, client.into())
}

fn error(header: (u8, u8, [u8; 4]), quote: &TestFrame) -> TestFrame {
    icmp_v6(ROUTER, OWN, header, &quote.bytes[ETHERNET_LENGTH..])
}

/// What the frontend has sent.
fn reply() -> TestFrame {
    tcp_v6(at_v6("[2001:db8::1]:8080"), at_v6("[2001:db8::99]:40000"), ACK)
}

#[test]
fn a_routers_error_about_a_reply_is_one_of_icmp() {
    let (tables, client) = node();
    for (header, expected) in [
        ((2, 0, [0, 0, 0x05, 0x14]), (3, 4, [0, 0, 0x05, 0x00])),
        ((2, 0, [0, 1, 0, 0]), (3, 4, [0, 0, 0xff, 0xec])),
        ((1, 4, [0; 4]), (3, 3, [0; 4])),
        ((1, 1, [0; 4]), (3, 10, [0; 4])),
        ((1, 0, [0; 4]), (3, 1, [0; 4])),
        ((3, 0, [0; 4]), (11, 0, [0; 4])),
    ] {
        let mut frame = error(header, &reply());
        let next = to_ipv4::run(&mut frame, &tables, Hook::TcUplink);
        assert_eq!(next, Next::Exceptional, "{header:?}");
        let found = view_error(&frame, ETHERNET_LENGTH);
        assert_eq!(found.header, expected);
        assert_eq!(found.destination, MAPPED);
        assert_eq!(found.quoted_source, SocketAddrV4::new(MAPPED, 8080));
        assert_eq!(found.quoted_destination, SocketAddrV4::new(client, 40000));
        assert_eq!(frame.bytes[12..14], [8, 0], "EtherType");
    }
}

/// With the header of a fragment that begins at an offset.
fn fragment(mut whole: TestFrame, offset: u16) -> TestFrame {
    let ip = &mut whole.bytes[ETHERNET_LENGTH..];
    let protocol = std::mem::replace(&mut ip[6], IPV6_FRAGMENT);
    ip[5] += 8;
    let [high, low] = (offset | 1).to_be_bytes();
    let extension = [protocol, 0, high, low, 0, 0, 0x4d, 0x53];
    whole.bytes.splice(IPV6_L4_OFFSET..IPV6_L4_OFFSET, extension);
    whole
}

#[test]
fn too_big_a_datagram_can_be_split_by_the_length_that_its_sender_learns() {
    let (tables, client) = node();
    let whole = || {
        udp_v6(
            at_v6("[2001:db8::1]:5353"),
            at_v6("[2001:db8::99]:40000"),
            b"datagram",
        )
    };
    for quote in [whole(), fragment(whole(), 0)] {
        let mut frame = error((2, 0, [0, 0, 0x05, 0x14]), &quote);
        let next = to_ipv4::run(&mut frame, &tables, Hook::TcUplink);
        assert_eq!(next, Next::Exceptional);
        let found = view_error(&frame, ETHERNET_LENGTH);
        // 1,300 bytes, of which the headers of IPv6 and of a fragment take 28 more than IPv4's.
        assert_eq!(found.header, (3, 4, [0, 0, 0x04, 0xf8]));
        assert_eq!(found.quoted_source, SocketAddrV4::new(MAPPED, 5353));
        assert_eq!(found.quoted_destination, SocketAddrV4::new(client, 40000));
    }
    let mut later = error((2, 0, [0, 0, 0x05, 0x14]), &fragment(whole(), 1448));
    assert_eq!(to_ipv4::run(&mut later, &tables, Hook::TcUplink), Next::Pass);
}

#[test]
fn an_error_that_is_not_about_a_frontends_reply_passes_as_it_came() {
    let (tables, _) = node();
    let other_port = tcp_v6(at_v6("[2001:db8::1]:22"), at_v6("[2001:db8::99]:40000"), ACK);
    let other_client = tcp_v6(at_v6("[2001:db8::1]:8080"), at_v6("[2001:db8::98]:40000"), ACK);
    let other_node = tcp_v6(at_v6("[2001:db8::2]:8080"), at_v6("[2001:db8::99]:40000"), ACK);
    let datagram = udp_v6(at_v6("[2001:db8::1]:8080"), at_v6("[2001:db8::99]:40000"), b"");
    let too_big = (2, 0, [0, 0, 0x05, 0x14]);
    for mut frame in [
        error(too_big, &other_port),
        error(too_big, &other_client),
        error(too_big, &other_node),
        error(too_big, &datagram),
        // Less than any IPv6 link carries.
        error((2, 0, [0, 0, 0x04, 0xff]), &reply()),
        // An echo request, a neighbour solicitation.
        error((128, 0, [0; 4]), &reply()),
        error((135, 0, [0; 4]), &reply()),
    ] {
        let before = frame.bytes.clone();
        assert_eq!(to_ipv4::run(&mut frame, &tables, Hook::TcUplink), Next::Pass);
        assert_eq!(frame.bytes, before);
    }
}

#[test]
fn an_error_about_what_a_client_has_sent_is_one_of_icmpv6() {
    let (tables, client) = node();
    let dialled = SocketAddrV4::new(MAPPED, 8080);
    let quote = tcp(SocketAddrV4::new(client, 40000), dialled, SYN);
    for (header, expected) in [
        ((3, 4, [0, 0, 0x05, 0xaa]), (2, 0, [0, 0, 0x05, 0xbe])),
        ((3, 4, [0, 0, 0x02, 0x00]), (2, 0, [0, 0, 0x05, 0x00])),
        ((3, 3, [0; 4]), (1, 4, [0; 4])),
        ((3, 2, [0; 4]), (4, 1, [0, 0, 0, 6])),
        ((3, 13, [0; 4]), (1, 1, [0; 4])),
        ((3, 1, [0; 4]), (1, 0, [0; 4])),
        ((11, 0, [0; 4]), (3, 0, [0; 4])),
    ] {
        let quoted = &quote.bytes[ETHERNET_LENGTH..];
        let mut frame = icmp(MAPPED, client, header, quoted).routed(CLIENT_ROUTE);
        let action = to_ipv6::run(&mut frame, &tables, Hook::TcMesh0);
        assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
        let found = view_error_v6(&frame);
        assert_eq!(found.header, expected);
        assert_eq!((found.source, found.destination), (OWN, CLIENT));
        assert_eq!(found.quoted_source, at_v6("[2001:db8::99]:40000"));
        assert_eq!(found.quoted_destination, at_v6("[2001:db8::1]:8080"));
    }
}

#[test]
fn an_error_about_another_packet_is_not_sent_to_a_client() {
    let (tables, client) = node();
    let other = tcp(at("10.0.0.1:8080"), SocketAddrV4::new(client, 40000), SYN);
    let mut frame = icmp(MAPPED, client, (3, 3, [0; 4]), &other.bytes[ETHERNET_LENGTH..]);
    assert!(matches!(
        to_ipv6::run(&mut frame, &tables, Hook::TcMesh0),
        Action::Drop
    ));
}

proptest! {
    #[test]
    fn no_message_makes_it_panic_or_leaves_a_wrong_checksum(
        kind in 0_u8..6, code in any::<u8>(), rest in any::<[u8; 4]>(), flip in any::<(u16, u8)>(), cut in 0_usize..90,
    ) {
        let (tables, _) = node();
        let mut frame = error((kind, code, rest), &reply());
        let at = ETHERNET_LENGTH + usize::from(flip.0) % (frame.bytes.len() - ETHERNET_LENGTH);
        frame.bytes[at] ^= flip.1;
        frame.bytes.truncate(frame.bytes.len() - cut.min(60));
        if to_ipv4::run(&mut frame, &tables, Hook::TcUplink) == Next::Exceptional {
            view_error(&frame, ETHERNET_LENGTH);
        }
    }
}
