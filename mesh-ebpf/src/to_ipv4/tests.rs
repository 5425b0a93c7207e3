use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::{
    abi::is_mapped_client,
    bytes::Be16,
    testing::{
        ACK, Replica, SYN, Segment, TestFrame, TestTables, at_v6, decide, run as run_hook, tcp_v6, udp_v6,
        view,
    },
    verdict::Verdict,
};

const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const MAPPED: Ipv4Addr = Ipv4Addr::new(252, 1, 2, 3);

/// Node 1 with an IPv6 address and ports of both protocols.
fn node() -> TestTables {
    let replicas = [Replica::on(1, 7)];
    TestTables::node(1)
        .publish(PROTOCOL_TCP, 8080, &replicas)
        .publish(PROTOCOL_UDP, 5353, &replicas)
        .with_ipv6(OWN, MAPPED)
}

fn syn(destination: &str) -> TestFrame {
    tcp_v6(at_v6("[2001:db8::99]:40000"), at_v6(destination), SYN)
}

#[track_caller]
fn passes(tables: &TestTables, mut frame: TestFrame) {
    let before = frame.bytes.clone();
    assert_eq!(run(&mut frame, tables, Hook::TcUplink), Next::Pass);
    assert_eq!(frame.bytes, before, "it is as it came");
    assert!(!frame.was_ipv6);
    assert_eq!(tables.mapped_clients(), 0, "no client was noted");
}

#[test]
fn a_packet_to_a_frontend_becomes_one_between_mapped_addresses() {
    let tables = node();
    let segment = Segment {
        flags: ACK,
        sequence: 77,
        payload: b"hello",
        ..Segment::default()
    };
    let mut frame = tcp_v6(
        at_v6("[2001:db8::99]:40000"),
        at_v6("[2001:db8::1]:8080"),
        segment,
    );
    frame.bytes[14] |= 0x0b;
    frame.bytes[15] |= 0x80;
    assert_eq!(run(&mut frame, &tables, Hook::TcUplink), Next::Pipeline);
    let found = view(&frame);
    assert!(is_mapped_client((*found.source.ip()).into()), "{found:?}");
    assert_eq!(found.source.port(), 40000);
    assert_eq!(found.destination, std::net::SocketAddrV4::new(MAPPED, 8080));
    assert_eq!((found.sequence, found.payload.as_slice()), (77, &b"hello"[..]));
    assert_eq!(frame.bytes[15], 0xb8, "DSCP and ECN");
    assert_eq!(frame.bytes[22], 61, "hops left");
    assert!(frame.was_ipv6);
}

#[test]
fn the_pipeline_takes_what_was_ipv6_and_nothing_that_only_looks_like_it() {
    let tables = node();
    let mut frame = syn("[2001:db8::1]:8080");
    run(&mut frame, &tables, Hook::TcUplink);
    let forged = TestFrame {
        was_ipv6: false,
        ..frame.clone()
    };
    assert!(matches!(
        decide(&forged, &tables, Hook::TcUplink).verdict(),
        Verdict::Drop(DropReason::Martian)
    ));
    assert!(matches!(
        decide(&frame, &tables, Hook::TcUplink).verdict(),
        Verdict::Deliver { .. }
    ));
    run_hook(&tables, Hook::TcUplink, &mut frame);
    assert_eq!(view(&frame).destination, "172.18.0.7:80".parse().unwrap());
}

#[test]
fn an_unfinished_checksum_stays_one() {
    let tables = node();
    let mut frame = syn("[2001:db8::1]:8080");
    // The sum of the pseudo header, as the kernel leaves it for the card.
    let pseudo = |words: &[u16]| words.iter().fold(0_u32, |sum, word| sum + u32::from(*word));
    let [a, b] = [OWN, "2001:db8::99".parse().unwrap()].map(|ip| ip.segments());
    let sum = pseudo(&a) + pseudo(&b) + 20 + u32::from(PROTOCOL_TCP);
    let folded = (sum & 0xffff) + (sum >> 16);
    frame.bytes[70..72].copy_from_slice(&(folded as u16).to_be_bytes());
    frame.partial = true;
    assert_eq!(run(&mut frame, &tables, Hook::TcUplink), Next::Pipeline);
    view(&frame);
}

#[test]
fn what_is_not_for_a_frontend_passes_as_it_came() {
    let tables = node();
    passes(&tables, syn("[2001:db8::1]:8081"));
    passes(&tables, syn("[2001:db8::2]:8080"));
    // Of one link: there is no way back by routes.
    passes(
        &tables,
        tcp_v6(at_v6("[fe80::9]:40000"), at_v6("[2001:db8::1]:8080"), SYN),
    );
    // A hop-by-hop extension header.
    let mut extended = syn("[2001:db8::1]:8080");
    extended.bytes[20] = 0;
    passes(&tables, extended);
    let mut short = syn("[2001:db8::1]:8080");
    short.bytes.truncate(56);
    passes(&tables, short);
    let mut other = syn("[2001:db8::1]:8080");
    other.bytes[14] = 0x45;
    passes(&tables, other);
}

#[test]
fn an_answer_to_a_process_that_uses_a_published_port_itself_passes() {
    let tables = node();
    let remote = "2001:db8::53".parse::<Ipv6Addr>().unwrap();
    crate::tables::Tables::note_own(
        &tables,
        &OwnKey {
            remote: mapped::preferred(&remote.into()),
            remote_port: Be16::new(53),
            local_port: Be16::new(5353),
        },
    );
    let answer = udp_v6(at_v6("[2001:db8::53]:53"), at_v6("[2001:db8::1]:5353"), b"answer");
    passes(&tables, answer);
    let mut other = udp_v6(at_v6("[2001:db8::53]:54"), at_v6("[2001:db8::1]:5353"), b"other");
    assert_eq!(run(&mut other, &tables, Hook::TcUplink), Next::Pipeline);
}

#[test]
fn what_another_machine_is_to_get_and_datagrams_without_a_checksum_are_the_kernels() {
    let tables = node();
    let mut elsewhere = syn("[2001:db8::1]:8080");
    elsewhere.bytes[5] ^= 1;
    passes(&tables, elsewhere);
    assert_eq!(tables.events(Event::OtherMachine), 1);
    let mut without = udp_v6(at_v6("[2001:db8::99]:40000"), at_v6("[2001:db8::1]:5353"), b"x");
    without.bytes[60..62].fill(0);
    passes(&tables, without);
}

#[test]
fn an_address_of_the_node_is_no_clients() {
    let tables = node();
    let mut frame = tcp_v6(at_v6("[2001:db8::1]:40000"), at_v6("[2001:db8::1]:8080"), SYN);
    assert_eq!(run(&mut frame, &tables, Hook::TcUplink), Next::Drop);
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::Martian), 1);
    assert_eq!(tables.mapped_clients(), 0);
}

#[test]
fn lengths_that_contradict_each_other_are_dropped() {
    let tables = node();
    for (payload, reason) in [(21_u16, DropReason::BadLength), (19, DropReason::Truncated)] {
        let mut frame = syn("[2001:db8::1]:8080");
        frame.bytes[18..20].copy_from_slice(&payload.to_be_bytes());
        assert_eq!(run(&mut frame, &tables, Hook::TcUplink), Next::Drop);
        assert_eq!(tables.drops(Hook::TcUplink, reason), 1);
    }
}

#[test]
fn an_aggregated_packet_is_as_long_as_its_frame() {
    let tables = node();
    let segment = Segment {
        flags: ACK,
        payload: &[5; 3000],
        ..Segment::default()
    };
    let mut frame = tcp_v6(
        at_v6("[2001:db8::99]:40000"),
        at_v6("[2001:db8::1]:8080"),
        segment,
    );
    // As BIG TCP leaves it (Linux 5.19), where it does not add a header.
    frame.bytes[18..20].fill(0);
    (frame.segments, frame.segment_size) = (3, 1440);
    assert_eq!(run(&mut frame, &tables, Hook::TcUplink), Next::Pipeline);
    assert_eq!(view(&frame).payload.len(), 3000);
}

#[test]
fn what_the_pipeline_leaves_over_is_refused_to_the_client() {
    let tables = node();
    let mut frame = tcp_v6(at_v6("[2001:db8::99]:40000"), at_v6("[2001:db8::1]:8080"), ACK);
    run(&mut frame, &tables, Hook::TcUplink);
    let client = view(&frame).source;
    assert!(matches!(
        decide(&frame, &tables, Hook::TcUplink).verdict(),
        Verdict::Pass
    ));
    let action = crate::left_over::refuse(&mut frame, &tables, Hook::TcUplink);
    assert!(matches!(action, crate::verdict::Action::Answer), "{action:?}");
    let answer = view(&frame);
    assert_eq!(
        (answer.destination, answer.flags & 0x04),
        (client, 0x04),
        "a RST to the client"
    );
}
