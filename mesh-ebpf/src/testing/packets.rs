//! Packets as other programs make and read them: built, parsed and summed by etherparse, never by the code
//! under test.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder, TcpHeader, UdpHeader};

use super::TestFrame;
use crate::headers::{ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// MAC addresses of the frames made here: the sender's and the receiver's.
pub(crate) const SENDER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 1];
pub(crate) const RECEIVER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 2];

/// An address and port written as usual.
pub(crate) fn at(text: &str) -> SocketAddrV4 {
    text.parse().expect("an IPv4 address and port")
}

/// What a TCP packet has besides its tuple.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment<'a> {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// A segment of the given flags and nothing else.
impl From<u8> for Segment<'_> {
    fn from(flags: u8) -> Self {
        Self {
            flags,
            ..Self::default()
        }
    }
}

/// A segment of the client's side (`sequence` counts from its SYN's) or of the backend's.
pub(crate) fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Segment<'static> {
    Segment {
        flags,
        sequence,
        acknowledgement,
        ..Segment::default()
    }
}

/// A TCP packet. Its options are padded with zeros to a multiple of 4 bytes.
pub(crate) fn tcp<'a>(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    segment: impl Into<Segment<'a>>,
) -> TestFrame {
    let segment = segment.into();
    let header = tcp_header(source.port(), destination.port(), &segment);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv4(source.ip().octets(), destination.ip().octets(), 61)
        .tcp_header(header)
        .write(&mut bytes, segment.payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// A segment's header, without its checksum.
pub(super) fn tcp_header(source: u16, destination: u16, segment: &Segment<'_>) -> TcpHeader {
    let mut header = TcpHeader::new(source, destination, segment.sequence, 64_000);
    header.acknowledgment_number = segment.acknowledgement;
    header.fin = segment.flags & FIN != 0;
    header.syn = segment.flags & SYN != 0;
    header.rst = segment.flags & RST != 0;
    header.psh = segment.flags & PSH != 0;
    header.ack = segment.flags & ACK != 0;
    header
        .set_options_raw(segment.options)
        .expect("at most 40 bytes of options");
    header
}

/// A UDP packet.
pub(crate) fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> TestFrame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv4(source.ip().octets(), destination.ip().octets(), 61)
        .udp(source.port(), destination.port())
        .write(&mut bytes, payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// An ICMP message. Of an error, the payload is what it quotes: a packet from its IP header on.
pub(crate) fn icmp(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    (kind, code, rest): (u8, u8, [u8; 4]),
    payload: &[u8],
) -> TestFrame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, RECEIVER_MAC)
        .ipv4(source.octets(), destination.octets(), 61)
        .icmpv4_raw(kind, code, rest)
        .write(&mut bytes, payload)
        .expect("the payload fits");
    TestFrame::new(bytes)
}

/// What the receiver of a packet would answer.
pub(crate) fn reply_to(received: &View, flags: u8, payload: &[u8]) -> TestFrame {
    if received.protocol == PROTOCOL_TCP {
        let segment = Segment {
            flags,
            sequence: 0x7000_0000,
            acknowledgement: received.sequence.wrapping_add(1),
            payload,
            ..Segment::default()
        };
        tcp(received.destination, received.source, segment)
    } else {
        udp(received.destination, received.source, payload)
    }
}

impl TestFrame {
    /// The same packet with its checksum left to the hardware.
    pub(crate) fn unfinished(mut self) -> Self {
        let (ip, l4) = ip_at(&self.bytes, ETHERNET_LENGTH);
        let field = ETHERNET_LENGTH + ip.header_len() + checksum_offset(ip.protocol.0);
        let sum = pseudo_sum(&ip, l4.len());
        self.bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        self.partial = true;
        self
    }

    /// The same UDP packet without a checksum.
    pub(crate) fn without_checksum(mut self) -> Self {
        let field = ETHERNET_LENGTH + 20 + checksum_offset(PROTOCOL_UDP);
        self.bytes[field..field + 2].fill(0);
        self
    }
}

/// What a packet contains, besides its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) protocol: u8,
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Reads a TCP or UDP packet, and asserts that all its checksums are what a full computation gives.
pub(crate) fn view(frame: &TestFrame) -> View {
    view_at(frame, ETHERNET_LENGTH)
}

/// The same of the packet inside an encapsulated one.
pub(crate) fn view_inner(frame: &TestFrame) -> View {
    let (outer, _) = ip_at(&frame.bytes, ETHERNET_LENGTH);
    assert_eq!(
        outer.header_checksum,
        outer.calc_header_checksum(),
        "outer IP checksum"
    );
    let options = usize::from(frame.bytes[ETHERNET_LENGTH + 28] & 0x3f) * 4;
    view_at(frame, ETHERNET_LENGTH + 36 + options)
}

fn view_at(frame: &TestFrame, offset: usize) -> View {
    let (ip, l4) = ip_at(&frame.bytes, offset);
    assert_eq!(
        ip.header_checksum,
        ip.calc_header_checksum(),
        "IP checksum of {ip:?}"
    );
    let (source, destination) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
    let (view, found, computed) = match ip.protocol {
        IpNumber::TCP => {
            let (header, payload) = TcpHeader::from_slice(l4).expect("a TCP header");
            let view = View {
                source: SocketAddrV4::new(source, header.source_port),
                destination: SocketAddrV4::new(destination, header.destination_port),
                protocol: PROTOCOL_TCP,
                flags: l4[13],
                sequence: header.sequence_number,
                acknowledgement: header.acknowledgment_number,
                options: header.options.as_slice().to_vec(),
                payload: payload.to_vec(),
            };
            (view, header.checksum, header.calc_checksum_ipv4(&ip, payload))
        }
        IpNumber::UDP => {
            let (header, payload) = UdpHeader::from_slice(l4).expect("a UDP header");
            let view = View {
                source: SocketAddrV4::new(source, header.source_port),
                destination: SocketAddrV4::new(destination, header.destination_port),
                protocol: PROTOCOL_UDP,
                flags: 0,
                sequence: 0,
                acknowledgement: 0,
                options: Vec::new(),
                payload: payload.to_vec(),
            };
            let computed = header.calc_checksum_ipv4(&ip, payload);
            (view, header.checksum, computed)
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    let expected = if frame.partial {
        pseudo_sum(&ip, l4.len())
    } else if found == 0 && view.protocol == PROTOCOL_UDP {
        0
    } else {
        computed.expect("lengths that fit")
    };
    assert_eq!(found, expected, "L4 checksum of {view:?}");
    view
}

/// What an ICMP error says: its own addresses, type, code and rest of the header, and between which endpoints
/// the packet that it quotes went. Asserts that all checksums are right, also the quoted one of a packet that
/// is quoted whole.
pub(crate) fn view_error(frame: &TestFrame, offset: usize) -> ErrorView {
    let (ip, message) = ip_at(&frame.bytes, offset);
    assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IP checksum");
    assert_eq!(ip.protocol, IpNumber::ICMP);
    let mut padded = message.to_vec();
    padded.resize(message.len().next_multiple_of(2), 0);
    assert_eq!(words(&padded), 0xffff, "ICMP checksum");
    let quote = &message[8..];
    assert!(ip_checksum_is_right(quote, 0), "quoted IP checksum");
    let (quoted, l4) = Ipv4Header::from_slice(quote).expect("a quoted IPv4 header");
    let port = |index| u16::from_be_bytes([l4[index], l4[index + 1]]);
    if quote.len() == usize::from(quoted.total_len) {
        view_at(&TestFrame::new(quote.to_vec()), 0);
    }
    ErrorView {
        source: ip.source.into(),
        destination: ip.destination.into(),
        header: message[..8]
            .try_into()
            .map(|[kind, code, _, _, rest @ ..]: [u8; 8]| (kind, code, rest))
            .expect("8 bytes"),
        quoted_source: SocketAddrV4::new(quoted.source.into(), port(0)),
        quoted_destination: SocketAddrV4::new(quoted.destination.into(), port(2)),
    }
}

/// An ICMP error, without its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorView {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) header: (u8, u8, [u8; 4]),
    pub(crate) quoted_source: SocketAddrV4,
    pub(crate) quoted_destination: SocketAddrV4,
}

/// The IPv4 header at an offset, and its payload.
pub(crate) fn ip_at(frame: &[u8], offset: usize) -> (Ipv4Header, &[u8]) {
    let (ip, rest) = Ipv4Header::from_slice(&frame[offset..]).expect("an IPv4 header");
    let length = usize::from(ip.total_len) - ip.header_len();
    assert!(length <= rest.len(), "the frame ends before its packet");
    (ip, &rest[..length])
}

/// Whether there is an IPv4 header of 20 bytes at the offset whose checksum is right.
pub(crate) fn ip_checksum_is_right(frame: &[u8], offset: usize) -> bool {
    let Some(header) = frame.get(offset..offset + 20) else {
        return false;
    };
    words(header) == 0xffff
}

/// Corrects the checksum of the header of 20 bytes at the offset.
pub(crate) fn fix_ip_checksum(frame: &mut [u8], offset: usize) {
    if let Some(header) = frame.get_mut(offset..offset + 20) {
        header[10..12].fill(0);
        let checksum = !words(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn checksum_offset(protocol: u8) -> usize {
    if protocol == PROTOCOL_TCP { 16 } else { 6 }
}

fn pseudo_sum(ip: &Ipv4Header, length: usize) -> u16 {
    let mut header = Vec::new();
    header.extend_from_slice(&ip.source);
    header.extend_from_slice(&ip.destination);
    header.extend_from_slice(&[0, ip.protocol.0]);
    header.extend_from_slice(&(length as u16).to_be_bytes());
    words(&header)
}

/// The plain one's-complement sum, word by word, of a whole number of words.
fn words(bytes: &[u8]) -> u16 {
    bytes.chunks_exact(2).fold(0, |sum, word| {
        let (sum, carry) = u16::from_be_bytes([word[0], word[1]]).overflowing_add(sum);
        sum + u16::from(carry)
    })
}
