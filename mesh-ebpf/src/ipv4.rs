//! IPv4: the headers of packets that the mesh itself originates (tunnels, resets, ICMP errors), and lengths.

use crate::{
    bytes::{Be16, Be32},
    checksum,
    frame::ReadFrame,
    headers::{IPV4_DONT_FRAGMENT, Ipv4},
};

/// Hops such a packet may take; Linux's default.
const TIME_TO_LIVE: u8 = 64;

/// A header without options, with its checksum. `length` is that of the header and its payload;
/// `service_type` has DSCP and ECN.
#[inline(always)]
pub fn header(source: Be32, destination: Be32, protocol: u8, length: Be16, service_type: u8) -> Ipv4 {
    header_with(TIME_TO_LIVE, source, destination, protocol, length, service_type)
}

/// The same with another time to live.
#[inline(always)]
pub fn header_with(
    time_to_live: u8,
    source: Be32,
    destination: Be32,
    protocol: u8,
    length: Be16,
    service_type: u8,
) -> Ipv4 {
    let mut header = Ipv4 {
        version_and_length: 0x45,
        service_type,
        total_length: length,
        identification: Be16::new(0),
        fragment: IPV4_DONT_FRAGMENT,
        time_to_live,
        protocol,
        checksum: Be16::new(0),
        source,
        destination,
    };
    header.checksum = checksum::ipv4(&header);
    header
}

/// Bytes of the IP packet at `offset`, header included. What GRO or TSO has aggregated can be more than its
/// header can say (BIG TCP, Linux 6.3: the field is 0), and has no padding behind it.
#[inline(always)]
pub fn length<F: ReadFrame>(frame: &F, offset: usize, ip: &Ipv4) -> u32 {
    if frame.segment_size() == 0 {
        u32::from(ip.total_length.get())
    } else {
        frame.length().wrapping_sub(offset as u32)
    }
}

/// How a header says a length: an aggregated packet's can be more than that, and is 0 then. Its segments
/// get theirs when the kernel or the card makes them.
#[inline(always)]
pub fn length_field(length: u32) -> Be16 {
    Be16::new(u16::try_from(length).unwrap_or(0))
}

/// Whether no client or frontend has this address (RFC 1122, 3.2.1.3): 0.0.0.0/8, loopback, multicast,
/// broadcast. (169.254.0.0/16 is the service address's.)
#[inline(always)]
pub fn is_never_on_a_wire(address: Be32) -> bool {
    let first = address.get() >> 24;
    first == 0 || first == 127 || first & 0xf0 == 224 || address.get() == u32::MAX
}
