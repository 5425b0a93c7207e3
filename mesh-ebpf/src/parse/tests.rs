//! Every way in which a frame is, or is not, a packet to balance.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::{
    abi::FlowKey,
    bytes::Be16,
    headers::{ETHERNET_LENGTH, PROTOCOL_ICMP},
    testing::{ACK, FIN, RST, SYN, Segment, TestFrame, at, tcp, udp},
};

const IP: usize = ETHERNET_LENGTH;
const L4: usize = ETHERNET_LENGTH + IPV4_LENGTH;

fn a_segment() -> TestFrame {
    let segment = Segment {
        flags: ACK,
        sequence: 1000,
        acknowledgement: 2000,
        payload: b"hello",
        ..Segment::default()
    };
    tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment)
}

fn a_datagram() -> TestFrame {
    udp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), b"hello")
}

fn the_key(protocol: u8) -> FlowKey {
    FlowKey {
        source: Ipv4Addr::new(192, 0, 2, 7).into(),
        destination: Ipv4Addr::new(10, 0, 0, 1).into(),
        source_port: Be16::new(40000),
        destination_port: Be16::new(9200),
        protocol: u32::from(protocol),
    }
}

fn check(frame: &TestFrame, expect: Result<Packet, Unparsed>) {
    assert_eq!(parse(frame, IP), expect);
}

/// The frame with a byte of its IP header, or behind, changed.
fn with(mut frame: TestFrame, offset: usize, bytes: &[u8]) -> TestFrame {
    frame.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_tcp_packet_gives_its_tuple_length_and_flags() {
    let packet = Packet {
        key: the_key(PROTOCOL_TCP),
        total_length: 45,
        tcp_flags: ACK,
        sequence: 1000,
        advance: 5,
        acknowledged: 2000,
        is_first_fragment: false,
    };
    check(&a_segment(), Ok(packet));
}

#[test]
fn a_syn_and_a_fin_have_a_sequence_number_of_their_own() {
    for (flags, payload, expected) in [
        (SYN, &b""[..], 1),
        (FIN | ACK, b"hello", 6),
        (RST, b"", 0),
        (ACK, b"", 0),
    ] {
        let segment = Segment {
            flags,
            sequence: u32::MAX,
            payload,
            ..Segment::default()
        };
        let packet = parse(&tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment), IP).expect("a packet");
        assert_eq!(packet.next_sequence(), u32::MAX.wrapping_add(expected), "{flags}");
    }
}

#[test]
fn a_udp_packet_has_no_flags() {
    let packet = Packet {
        key: the_key(PROTOCOL_UDP),
        total_length: 33,
        tcp_flags: 0,
        sequence: 0,
        advance: 0,
        acknowledged: 0,
        is_first_fragment: false,
    };
    check(&a_datagram(), Ok(packet));
}

#[test]
fn a_packet_is_found_at_any_offset() {
    let mut frame = a_segment();
    let expected = parse(&frame, IP);
    frame.bytes.splice(..0, [0; 48]);
    assert_eq!(parse(&frame, IP + 48), expected);
}

#[test]
fn trailing_padding_does_no_harm() {
    let mut frame = a_datagram();
    frame.bytes.resize(200, 0);
    assert_eq!(parse(&frame, IP).map(|packet| packet.total_length), Ok(33));
}

/// A packet whose ports say whose it is, and that cannot be balanced.
fn check_unsupported(frame: &TestFrame, reason: DropReason, protocol: u8) {
    check(frame, Err(Unparsed::Unsupported(reason, the_key(protocol))));
}

#[test]
fn a_frame_cut_anywhere_is_of_bad_length_or_cannot_be_judged() {
    for (frame, protocol) in [(a_segment(), PROTOCOL_TCP), (a_datagram(), PROTOCOL_UDP)] {
        for length in 0..frame.bytes.len() {
            let mut cut = frame.clone();
            cut.bytes.truncate(length);
            if length < L4 + 4 {
                check(&cut, Err(Unparsed::Other));
            } else {
                check_unsupported(&cut, DropReason::BadLength, protocol);
            }
        }
    }
}

#[test]
fn a_total_length_shorter_than_the_headers_is_truncated() {
    for (frame, headers, protocol) in [(a_segment(), 40, PROTOCOL_TCP), (a_datagram(), 28, PROTOCOL_UDP)] {
        for length in 0..headers {
            let frame = with(frame.clone(), IP + 2, &u16::to_be_bytes(length));
            check_unsupported(&frame, DropReason::Truncated, protocol);
        }
        assert!(parse(&with(frame, IP + 2, &u16::to_be_bytes(headers)), IP).is_ok());
    }
}

#[test]
fn a_total_length_beyond_the_frame_is_bad() {
    let frame = with(a_segment(), IP + 2, &46_u16.to_be_bytes());
    check_unsupported(&frame, DropReason::BadLength, PROTOCOL_TCP);
}

#[test]
fn an_aggregated_packet_is_as_long_as_its_frame_whatever_its_header_says() {
    for header in [0, 60_000_u16] {
        let mut frame = with(a_segment(), IP + 2, &header.to_be_bytes());
        frame.bytes.resize(IP + 185_000, 0);
        (frame.segments, frame.segment_size) = (128, 1448);
        let packet = parse(&frame, IP).expect("a packet");
        assert_eq!((packet.total_length, packet.advance), (185_000, 185_000 - 40));
    }
}

#[test]
fn other_versions_and_header_lengths_below_the_least_are_nothing_of_ours() {
    for version in (0..16_u8).filter(|version| *version != 4) {
        check(&with(a_segment(), IP, &[version << 4 | 5]), Err(Unparsed::Other));
    }
    for words in 0..5 {
        check(&with(a_segment(), IP, &[0x40 | words]), Err(Unparsed::Other));
    }
}

#[test]
fn tcp_header_lengths_below_the_least_are_bad() {
    for words in 0..5_u8 {
        let frame = with(a_segment(), L4 + 12, &[words << 4]);
        check_unsupported(&frame, DropReason::BadLength, PROTOCOL_TCP);
    }
}

#[test]
fn a_tcp_header_longer_than_its_packet_is_bad() {
    // 45 bytes in all: 20 of IP, 25 of TCP.
    for words in 7..16_u8 {
        let frame = with(a_segment(), L4 + 12, &[words << 4]);
        check_unsupported(&frame, DropReason::BadLength, PROTOCOL_TCP);
    }
    assert!(parse(&with(a_segment(), L4 + 12, &[6 << 4]), IP).is_ok());
}

#[test]
fn a_packet_with_options_is_known_by_its_ports_but_unsupported() {
    for words in 6..16_usize {
        let mut frame = a_segment();
        frame.bytes.splice(L4..L4, vec![1; (words - 5) * 4]);
        let frame = with(frame, IP, &[0x40 | words as u8]);
        check(
            &frame,
            Err(Unparsed::Unsupported(
                DropReason::IpOptions,
                the_key(PROTOCOL_TCP),
            )),
        );
    }
}

#[test]
fn options_beyond_the_frame_are_nothing_of_ours() {
    check(&with(a_segment(), IP, &[0x4f]), Err(Unparsed::Other));
}

#[test]
fn later_fragments_and_icmp_are_exceptional() {
    for fragment in [[0x20, 1], [0, 1], [0x1f, 0xff], [0x40, 1]] {
        for frame in [a_segment(), a_datagram()] {
            check(&with(frame, IP + 6, &fragment), Err(Unparsed::Exceptional));
        }
    }
    check(
        &with(a_segment(), IP + 9, &[PROTOCOL_ICMP]),
        Err(Unparsed::Exceptional),
    );
}

#[test]
fn a_first_fragment_is_a_packet() {
    for (fragment, is_first) in [([0x20, 0], true), ([0x60, 0], true), ([0x40, 0], false)] {
        let packet = parse(&with(a_datagram(), IP + 6, &fragment), IP).expect("a packet");
        assert_eq!(packet.is_first_fragment, is_first, "{fragment:?}");
    }
}

#[test]
fn later_fragments_with_options_are_nothing_of_ours() {
    for fragment in [[0x20, 1], [0, 1], [0x1f, 0xff], [0x40, 1]] {
        let mut optioned = a_segment();
        optioned.bytes.splice(L4..L4, [1; 4]);
        check(
            &with(with(optioned, IP + 6, &fragment), IP, &[0x46]),
            Err(Unparsed::Other),
        );
    }
}

#[test]
fn dont_fragment_is_no_fragment() {
    assert!(parse(&with(a_segment(), IP + 6, &[0x40, 0]), IP).is_ok());
}

#[test]
fn other_protocols_are_nothing_of_ours() {
    for protocol in [0, PROTOCOL_ICMP, 2, 41, 47, 50, 132, 255] {
        if protocol != PROTOCOL_ICMP {
            check(&with(a_segment(), IP + 9, &[protocol]), Err(Unparsed::Other));
        }
        let mut optioned = a_segment();
        optioned.bytes.splice(L4..L4, [1; 4]);
        check(
            &with(with(optioned, IP + 9, &[protocol]), IP, &[0x46]),
            Err(Unparsed::Other),
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_what_parses_fits(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
        plausible in any::<bool>(),
        tcp in any::<bool>(),
        syn_length in 0..100_u16,
    ) {
        if plausible && bytes.len() > L4 {
            bytes[IP] = 0x45;
            bytes[IP + 2..IP + 4].copy_from_slice(&syn_length.to_be_bytes());
            bytes[IP + 6..IP + 8].fill(0);
            bytes[IP + 9] = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        }
        let frame = TestFrame::new(bytes);
        if let Ok(packet) = parse(&frame, IP) {
            prop_assert!(IP + packet.total_length as usize <= frame.bytes.len());
            prop_assert!(packet.total_length >= 28);
            prop_assert!(packet.tcp_flags == 0 || packet.key.protocol == u32::from(PROTOCOL_TCP));
        }
    }

    #[test]
    fn every_flag_is_reported(flags in any::<u8>()) {
        let mut frame = tcp(at("192.0.2.7:1"), at("10.0.0.1:2"), SYN);
        frame.bytes[L4 + 13] = flags;
        prop_assert_eq!(parse(&frame, IP).map(|packet| packet.tcp_flags), Ok(flags));
    }
}
