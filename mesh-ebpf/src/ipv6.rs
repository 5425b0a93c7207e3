//! IPv6 headers as the programs keep them: aligned, as the verifier wants what is on the stack.

use crate::{
    abi::Ipv6Address,
    bytes::{Be16, Be32},
    frame::ReadFrame,
    headers::{IPV4_LENGTH, Ipv4, Ipv6},
    ipv4,
};

/// What an IPv6 header says.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Header {
    /// Version, traffic class and flow label.
    pub version_class_label: Be32,
    /// Bytes behind it.
    pub payload_length: Be16,
    /// Protocol of the payload, or the kind of the first extension header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Sender.
    pub source: Ipv6Address,
    /// Receiver.
    pub destination: Ipv6Address,
}

impl Header {
    /// Reads the header at an offset, if it is one of IPv6.
    #[inline(always)]
    pub fn read<F: ReadFrame>(frame: &F, offset: usize) -> Option<Self> {
        let ip = frame.at::<Ipv6>(offset)?;
        let first = ip.version_class_label;
        (first.get() >> 28 == 6).then_some(Self {
            version_class_label: first,
            payload_length: ip.payload_length,
            next_header: ip.next_header,
            hop_limit: ip.hop_limit,
            source: Ipv6Address(ip.source),
            destination: Ipv6Address(ip.destination),
        })
    }

    /// DSCP and ECN.
    #[inline(always)]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_label.get() >> 20) as u8
    }
}

/// The IPv6 header of what an IPv4 header says, with `payload` bytes behind it.
#[inline(always)]
pub fn of_ipv4(
    ip: &Ipv4,
    next_header: u8,
    payload: u32,
    source: &Ipv6Address,
    destination: &Ipv6Address,
) -> Ipv6 {
    Ipv6 {
        version_class_label: Be32::new(6 << 28 | u32::from(ip.service_type) << 20),
        payload_length: ipv4::length_field(payload),
        next_header,
        hop_limit: ip.time_to_live,
        source: source.0,
        destination: destination.0,
    }
}

/// The IPv4 header of what an IPv6 header says, with `payload` bytes behind it.
#[inline(always)]
pub fn to_ipv4(ip: &Header, protocol: u8, payload: u32, source: Be32, destination: Be32) -> Ipv4 {
    let length = ipv4::length_field(payload + IPV4_LENGTH as u32);
    let (hops, service_type) = (ip.hop_limit, ip.traffic_class());
    ipv4::header_with(hops, source, destination, protocol, length, service_type)
}
