//! IPv6 headers as the programs keep them: aligned, as the verifier wants what is on the stack.

use crate::{
    abi::Ipv6Address,
    bytes::{Be16, Be32},
    frame::ReadFrame,
    headers::Ipv6,
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
