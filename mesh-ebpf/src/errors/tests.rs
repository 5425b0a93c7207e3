//! Answers as the refused sender's stack reads them.

use etherparse::{Icmpv4Slice, Icmpv4Type, IpNumber, icmpv4::DestUnreachableHeader};
use proptest::prelude::*;

use super::*;
use crate::testing::{ACK, FIN, PSH, RST, SYN, Segment, TestFrame, View, at, ip_at, tcp, udp, view};

const SEQUENCE: u32 = 0xffff_fff0;
const ACKNOWLEDGEMENT: u32 = 0x1234_5678;

fn segment(flags: u8, payload: &[u8]) -> TestFrame {
    let segment = Segment {
        flags,
        sequence: SEQUENCE,
        acknowledgement: ACKNOWLEDGEMENT,
        options: &[2, 4, 5, 0xb4, 1, 3, 3, 7],
        payload,
    };
    tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), segment)
}

/// The RST of RFC 9293, 3.10.7.1: `<SEQ=SEG.ACK><CTL=RST>`, or `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`.
fn check_reset(mut frame: TestFrame, flags: u8, sequence: u32, acknowledgement: u32) {
    let asked = frame.clone();
    refuse(&mut frame).expect("an answer");
    let expected = View {
        source: at("10.0.0.1:9200"),
        destination: at("192.0.2.7:40000"),
        protocol: PROTOCOL_TCP,
        flags,
        sequence,
        acknowledgement,
        options: Vec::new(),
        payload: Vec::new(),
    };
    assert_eq!(view(&frame), expected);
    check_frame(&frame, &asked, RESET_LENGTH);
}

/// Back by the way the packet came, of the right length.
fn check_frame(answer: &TestFrame, asked: &TestFrame, l3_length: usize) {
    assert_eq!(answer.bytes.len(), ETHERNET_LENGTH + l3_length);
    assert_eq!(answer.bytes[..6], asked.bytes[6..12]);
    assert_eq!(answer.bytes[6..12], asked.bytes[..6]);
    assert_eq!(answer.bytes[12..14], [0x08, 0x00]);
    let (ip, _) = ip_at(&answer.bytes, ETHERNET_LENGTH);
    assert_eq!(usize::from(ip.total_len), l3_length);
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert!(ip.dont_fragment && ip.time_to_live == 64);
    assert!(!answer.partial);
}

/// The ICMP error an answer carries, its quote compared with the packet it is about.
fn check_icmp(answer: &TestFrame, asked: &TestFrame, expected: DestUnreachableHeader) {
    check_frame(answer, asked, ERROR_LENGTH);
    let (ip, payload) = ip_at(&answer.bytes, ETHERNET_LENGTH);
    assert_eq!(ip.protocol, IpNumber::ICMP);
    assert_eq!((ip.source, ip.destination), ([10, 0, 0, 1], [192, 0, 2, 7]));
    let icmp = Icmpv4Slice::from_slice(payload).expect("ICMP");
    let header = icmp.header();
    assert_eq!(header.icmp_type, Icmpv4Type::DestinationUnreachable(expected));
    assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()));
    assert_eq!(
        icmp.payload(),
        &asked.bytes[ETHERNET_LENGTH..ETHERNET_LENGTH + QUOTE_LENGTH]
    );
}

#[test]
fn a_syn_is_reset_with_its_number_acknowledged() {
    check_reset(segment(SYN, b""), RST | ACK, 0, SEQUENCE + 1);
}

#[test]
fn a_syn_with_data_has_its_data_acknowledged_too() {
    check_reset(segment(SYN, &[1; 100]), RST | ACK, 0, SEQUENCE.wrapping_add(101));
}

#[test]
fn an_ack_is_reset_at_the_number_it_expects() {
    check_reset(segment(ACK, b"data"), RST, ACKNOWLEDGEMENT, 0);
    check_reset(segment(ACK | PSH, b"data"), RST, ACKNOWLEDGEMENT, 0);
    check_reset(segment(SYN | ACK, b""), RST, ACKNOWLEDGEMENT, 0);
}

#[test]
fn a_fin_with_data_is_reset_by_whether_it_acknowledges() {
    check_reset(segment(FIN | ACK, b"last words"), RST, ACKNOWLEDGEMENT, 0);
    check_reset(
        segment(FIN, b"last words"),
        RST | ACK,
        0,
        SEQUENCE.wrapping_add(11),
    );
}

#[test]
fn a_segment_without_flags_has_its_data_acknowledged() {
    check_reset(segment(0, b"?"), RST | ACK, 0, SEQUENCE + 1);
}

#[test]
fn a_syn_with_an_unfinished_checksum_gets_a_finished_answer() {
    check_reset(segment(SYN, b"").unfinished(), RST | ACK, 0, SEQUENCE + 1);
}

#[test]
fn trailing_padding_is_not_acknowledged() {
    let mut frame = tcp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), SYN);
    frame.bytes.resize(60, 0);
    check_reset(frame, RST | ACK, 0, 1);
}

#[test]
fn a_reset_is_never_answered() {
    for flags in [RST, RST | ACK, RST | SYN] {
        let mut frame = segment(flags, b"");
        let before = frame.bytes.clone();
        assert_eq!(refuse(&mut frame), Err(Refused));
        assert_eq!(frame.bytes, before);
    }
}

#[test]
fn a_datagram_is_answered_with_port_unreachable() {
    for payload in [&b""[..], b"odd", &[7; 1400]] {
        let mut frame = udp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), payload);
        let asked = frame.clone();
        refuse(&mut frame).expect("an answer");
        check_icmp(&frame, &asked, DestUnreachableHeader::Port);
    }
}

#[test]
fn a_packet_too_big_is_answered_with_the_mtu() {
    for asked in [
        segment(ACK, &[3; 1440]),
        segment(ACK, &[3; 1440]).unfinished(),
        udp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), &[3; 1440]),
    ] {
        let mut frame = asked.clone();
        too_big(&mut frame, 1452).expect("an answer");
        let expected = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1452 };
        check_icmp(&frame, &asked, expected);
    }
}

#[test]
fn a_quoted_header_with_a_wrong_checksum_is_summed_as_it_is() {
    let mut asked = udp(at("192.0.2.7:40000"), at("10.0.0.1:9200"), b"x");
    asked.bytes[ETHERNET_LENGTH + 10] ^= 0x5a;
    let mut frame = asked.clone();
    refuse(&mut frame).expect("an answer");
    check_icmp(&frame, &asked, DestUnreachableHeader::Port);
}

#[test]
fn what_cannot_be_resized_is_not_answered() {
    for mut frame in [segment(SYN, b""), udp(at("192.0.2.7:1"), at("10.0.0.1:2"), b"")] {
        frame.elastic = false;
        let before = frame.bytes.clone();
        assert_eq!(refuse(&mut frame), Err(Refused));
        assert_eq!(too_big(&mut frame, 1452), Err(Refused));
        assert_eq!(frame.bytes, before);
    }
}

#[test]
fn what_ends_within_its_headers_is_not_answered() {
    for (whole, headers) in [
        (segment(SYN, b""), 54),
        (udp(at("192.0.2.7:1"), at("10.0.0.1:2"), b""), 42),
    ] {
        for length in 0..headers {
            let mut frame = whole.clone();
            frame.bytes.truncate(length);
            assert_eq!(refuse(&mut frame), Err(Refused), "cut at {length}");
        }
    }
}

proptest! {
    #[test]
    fn every_answer_is_sound(
        source in any::<(u32, u16)>(),
        destination in any::<(u32, u16)>(),
        sequence in any::<u32>(),
        acknowledgement in any::<u32>(),
        flags in 0..32_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        big in any::<bool>(),
    ) {
        let source = std::net::SocketAddrV4::new(source.0.into(), source.1);
        let destination = std::net::SocketAddrV4::new(destination.0.into(), destination.1);
        let segment = Segment { flags, sequence, acknowledgement, options: &[], payload: &payload };
        let mut frame = tcp(source, destination, segment);
        if big {
            too_big(&mut frame, 1452).expect("an answer");
            let (ip, payload) = ip_at(&frame.bytes, ETHERNET_LENGTH);
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let icmp = Icmpv4Slice::from_slice(payload).expect("ICMP").header();
            prop_assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(&payload[8..]));
        } else if flags & RST == 0 {
            refuse(&mut frame).expect("an answer");
            let answer = view(&frame);
            prop_assert_eq!((answer.source, answer.destination), (destination, source));
        } else {
            prop_assert_eq!(refuse(&mut frame), Err(Refused));
        }
    }
}
