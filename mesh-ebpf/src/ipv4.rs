//! The IPv4 headers of packets that the mesh itself originates: tunnels, resets, ICMP errors.

use crate::{
    bytes::{Be16, Be32},
    checksum,
    headers::{IPV4_DONT_FRAGMENT, Ipv4},
};

/// Hops such a packet may take; Linux's default.
const TIME_TO_LIVE: u8 = 64;

/// A header without options, with its checksum. `length` is that of the header and its payload.
#[inline(always)]
pub fn header(source: Be32, destination: Be32, protocol: u8, length: u16) -> Ipv4 {
    let mut header = Ipv4 {
        version_and_length: 0x45,
        service_type: 0,
        total_length: Be16::new(length),
        identification: Be16::new(0),
        fragment: IPV4_DONT_FRAGMENT,
        time_to_live: TIME_TO_LIVE,
        protocol,
        checksum: Be16::new(0),
        source,
        destination,
    };
    header.checksum = checksum::ipv4(&header);
    header
}
