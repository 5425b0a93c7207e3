//! Node-wide settings: the configuration, the filter of published ports, and what sockets dialled.

use crate::{
    bytes::{Be16, Be32},
    headers::PROTOCOL_UDP,
};

/// Entries, of 64 bits each, of a filter of ports: 65,536 bits for each of TCP and UDP.
pub const PORT_FILTER_ENTRIES: u32 = 2 * 65_536 / 64;

/// Node-wide settings, one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Seconds since the data path was first loaded; written by the agent.
    pub now: u32,
    /// This node's address as its peers know it.
    pub node_address: Be32,
    /// The address that local processes' connections are redirected to.
    pub service_address: Be32,
    /// Geneve VNI, in the high 24 bits as in the header.
    pub vni: Be32,
    /// UDP port of Geneve.
    pub geneve_port: Be16,
    /// Largest client packet, in bytes from its IP header on, that fits into the tunnel on every uplink; for
    /// peers whose own is unknown.
    pub inner_mtu: u16,
    /// 1 if replies of remote backends go to the client directly.
    pub direct_return: u32,
    /// Interface index of mesh0; 0 while there is none.
    pub mesh0: u32,
    /// MAC address of mesh0.
    pub mesh0_mac: [u8; 6],
    /// 1 if all MAC addresses of this node are known ([`mac_key`]), so that no other is taken.
    pub knows_macs: u16,
    /// Zero.
    pub padding: [u8; 4],
    /// Cookie of the host's network namespace; sockets of other namespaces are left alone.
    pub netns_cookie: u64,
}

/// What a local process dialled before its connection was redirected to the service address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Dialled {
    /// Address, IPv4.
    pub address: Be32,
    /// 1 if it was `::1` rather than an IPv4 address.
    pub ipv6_loopback: u32,
}

/// A MAC address of this node, as a key: its bytes in the order of transmission, then zeros.
#[inline(always)]
pub const fn mac_key(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// Index and bit of a port in a filter of ports.
#[inline(always)]
pub fn port_filter_bit(protocol: u8, port: u16) -> (u32, u32) {
    let half = if protocol == PROTOCOL_UDP { 1024 } else { 0 };
    (half + u32::from(port >> 6), u32::from(port & 63))
}

const _: () = assert!(size_of::<Config>() == 48);
const _: () = assert!(size_of::<Dialled>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::PROTOCOL_TCP;

    #[test]
    fn every_port_has_a_bit_of_its_own() {
        let mut bits: Vec<u32> = [PROTOCOL_TCP, PROTOCOL_UDP]
            .into_iter()
            .flat_map(|protocol| {
                (0..=u16::MAX).map(move |port| {
                    let (word, bit) = port_filter_bit(protocol, port);
                    assert!(bit < 64);
                    word * 64 + bit
                })
            })
            .collect();
        bits.sort_unstable();
        assert!(bits.into_iter().eq(0..PORT_FILTER_ENTRIES * 64));
    }
}
