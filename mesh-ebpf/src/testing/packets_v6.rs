//! IPv6 packets as other programs make and read them, as those of `packets` are.

use std::net::{Ipv6Addr, SocketAddrV6};

use etherparse::{Icmpv6Slice, IpNumber, Ipv6Header, PacketBuilder, TcpHeader, UdpHeader};

use super::{
    Segment, TestFrame,
    packets::{RECEIVER_MAC, SENDER_MAC, tcp_header},
};
use crate::headers::{ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP};

/// An address and port written as usual.
pub(crate) fn at_v6(text: &str) -> SocketAddrV6 {
    text.parse().expect("an IPv6 address and port")
}

/// A TCP packet.
pub(crate) fn tcp_v6<'a>(
    source: SocketAddrV6,
    destination: SocketAddrV6,
    segment: impl Into<Segment<'a>>,
) -> TestFrame {
    let segment = segment.into();
    let header = tcp_header(source.port(), destination.port(), &segment);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv6(source.ip().octets(), destination.ip().octets(), 61)
        .tcp_header(header)
        .write(&mut bytes, segment.payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// A UDP packet.
pub(crate) fn udp_v6(source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) -> TestFrame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv6(source.ip().octets(), destination.ip().octets(), 61)
        .udp(source.port(), destination.port())
        .write(&mut bytes, payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// An ICMPv6 message. Of an error, the payload is what it quotes: a packet from its IP header on.
pub(crate) fn icmp_v6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (kind, code, rest): (u8, u8, [u8; 4]),
    payload: &[u8],
) -> TestFrame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv6(source.octets(), destination.octets(), 61)
        .icmpv6_raw(kind, code, rest)
        .write(&mut bytes, payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// What a packet contains, besides its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ViewV6 {
    pub(crate) source: SocketAddrV6,
    pub(crate) destination: SocketAddrV6,
    pub(crate) protocol: u8,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

/// Reads a TCP or UDP packet, and asserts that its checksum is what a full computation gives.
pub(crate) fn view_v6(frame: &TestFrame) -> ViewV6 {
    assert_eq!(frame.bytes[12..14], [0x86, 0xdd], "EtherType");
    let (ip, l4) = ip_at(&frame.bytes);
    let (ports, payload, found, computed) = match ip.next_header {
        IpNumber::TCP => {
            let (header, payload) = TcpHeader::from_slice(l4).expect("a TCP header");
            let computed = header.calc_checksum_ipv6(&ip, payload);
            let ports = [header.source_port, header.destination_port];
            (ports, payload, header.checksum, computed)
        }
        IpNumber::UDP => {
            let (header, payload) = UdpHeader::from_slice(l4).expect("a UDP header");
            let computed = header.calc_checksum_ipv6(&ip, payload);
            let ports = [header.source_port, header.destination_port];
            (ports, payload, header.checksum, computed)
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    assert_eq!(found, computed.expect("lengths that fit"), "L4 checksum");
    ViewV6 {
        source: SocketAddrV6::new(ip.source.into(), ports[0], 0, 0),
        destination: SocketAddrV6::new(ip.destination.into(), ports[1], 0, 0),
        protocol: if ip.next_header == IpNumber::TCP {
            PROTOCOL_TCP
        } else {
            PROTOCOL_UDP
        },
        traffic_class: ip.traffic_class,
        hop_limit: ip.hop_limit,
        payload: payload.to_vec(),
    }
}

/// An ICMPv6 error: its own addresses, its header without the checksum, and the packet that it quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorViewV6 {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) header: (u8, u8, [u8; 4]),
    pub(crate) quoted_source: SocketAddrV6,
    pub(crate) quoted_destination: SocketAddrV6,
}

/// Reads an ICMPv6 error, and asserts that its checksum is right.
pub(crate) fn view_error_v6(frame: &TestFrame) -> ErrorViewV6 {
    let (ip, message) = ip_at(&frame.bytes);
    assert_eq!(ip.next_header, IpNumber::IPV6_ICMP);
    let slice = Icmpv6Slice::from_slice(message).expect("an ICMPv6 message");
    assert!(
        slice.is_checksum_valid(ip.source, ip.destination),
        "ICMPv6 checksum"
    );
    let (quoted, l4) = Ipv6Header::from_slice(&message[8..]).expect("a quoted IPv6 header");
    let port = |index| u16::from_be_bytes([l4[index], l4[index + 1]]);
    ErrorViewV6 {
        source: ip.source.into(),
        destination: ip.destination.into(),
        header: message[..8]
            .try_into()
            .map(|[kind, code, _, _, rest @ ..]: [u8; 8]| (kind, code, rest))
            .expect("8 bytes"),
        quoted_source: SocketAddrV6::new(quoted.source.into(), port(0), 0, 0),
        quoted_destination: SocketAddrV6::new(quoted.destination.into(), port(2), 0, 0),
    }
}

/// The IPv6 header behind the Ethernet header, and its payload.
fn ip_at(frame: &[u8]) -> (Ipv6Header, &[u8]) {
    let (ip, rest) = Ipv6Header::from_slice(&frame[ETHERNET_LENGTH..]).expect("an IPv6 header");
    let length = usize::from(ip.payload_length);
    assert!(length <= rest.len(), "the frame ends before its packet");
    (ip, &rest[..length])
}
