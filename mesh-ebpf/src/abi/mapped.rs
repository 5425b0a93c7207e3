//! IPv6 addresses, and the IPv4 addresses that stand for them in the pipeline.
//!
//! The pipeline is IPv4. At the edge of the entry node, a client's IPv6 packet becomes one between two
//! mapped addresses, and its reply becomes IPv6 again. Both blocks are of 240.0.0.0/4, which no network has
//! (RFC 1112, 4) and Linux handles as unicast.

use crate::bytes::Be32;

/// An IPv6 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct Ipv6Address(pub [Be32; 4]);

impl Ipv6Address {
    /// What an IPv4 address counts as in a checksum over IPv6 addresses.
    #[inline(always)]
    pub const fn padded(address: Be32) -> Self {
        let zero = Be32::new(0);
        Self([address, zero, zero, zero])
    }

    /// An IPv4 address as an IPv6 one (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub const fn of_ipv4(address: Be32) -> Self {
        Self([Be32::new(0), Be32::new(0), Be32::new(0xffff), address])
    }

    /// Whether a packet from elsewhere can have it as its source: unicast, and not of one link or one host
    /// only (RFC 4291, 2.4).
    #[inline(always)]
    pub const fn is_global(&self) -> bool {
        let first = self.0[0].get();
        let is_low = first == 0 && self.0[1].get() == 0 && self.0[2].get() == 0;
        first >> 24 != 0xff && first >> 22 != 0xfe80 >> 6 && !is_low
    }
}

impl From<core::net::Ipv6Addr> for Ipv6Address {
    fn from(address: core::net::Ipv6Addr) -> Self {
        let bits = address.to_bits();
        Self([96, 64, 32, 0].map(|shift| Be32::new((bits >> shift) as u32)))
    }
}

impl From<Ipv6Address> for core::net::Ipv6Addr {
    fn from(Ipv6Address(parts): Ipv6Address) -> Self {
        let join = |bits: u128, part: Be32| bits << 32 | u128::from(part.get());
        Self::from_bits(parts.into_iter().fold(0, join))
    }
}

/// An IPv6 client, by the IPv4 address that stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct MappedClient {
    /// Its address.
    pub address: Ipv6Address,
    /// The interface that its packets come in by.
    pub interface: u32,
    /// Zero.
    pub padding: u32,
}

/// The block of the addresses that stand for clients: 248.0.0.0/6.
const CLIENTS: u32 = 248 << 24;
const CLIENTS_MASK: u32 = 0xfc00_0000;
/// The block of those that stand for the node's own: 252.0.0.0/8.
const OWN: u32 = 252 << 24;
const OWN_MASK: u32 = 0xff00_0000;

/// Whether an IPv4 address stands for an IPv6 client's.
#[inline(always)]
pub const fn is_mapped_client(address: Be32) -> bool {
    address.raw() & CLIENTS_MASK.to_be() == CLIENTS.to_be()
}

/// Whether an IPv4 address stands for an IPv6 address of a node.
#[inline(always)]
pub const fn is_mapped_own(address: Be32) -> bool {
    address.raw() & OWN_MASK.to_be() == OWN.to_be()
}

/// The address of the clients' block with these low bits.
#[inline(always)]
pub const fn mapped_client(bits: u32) -> Be32 {
    Be32::new(CLIENTS | bits & !CLIENTS_MASK)
}

/// IPv6 clients that are known at a time. New ones push out old ones, which get the same address again.
pub const MAX_MAPPED_CLIENTS: u32 = 131_072;
/// IPv6 addresses of a node.
pub const MAX_OWN_IPV6: u32 = 4_096;
/// New IPv6 clients that each processor takes in about a second.
pub const MAX_NEW_CLIENTS: u64 = 16_384;

const _: () = assert!(size_of::<Ipv6Address>() == 16);
const _: () = assert!(size_of::<MappedClient>() == 24);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn an_address_is_the_same_on_the_way_back() {
        let address: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let mapped = Ipv6Address::from(address);
        assert_eq!(mapped.0[0].get(), 0x2001_0db8);
        assert_eq!(Ipv6Addr::from(mapped), address);
    }

    #[test]
    fn only_unicast_addresses_of_more_than_a_link_are_global() {
        for (address, is_global) in [
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("::1", false),
            ("::", false),
            ("::192.0.2.1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("ff02::1", false),
            ("fec0::1", true),
        ] {
            let parsed: Ipv6Addr = address.parse().unwrap();
            assert_eq!(Ipv6Address::from(parsed).is_global(), is_global, "{address}");
        }
    }

    #[test]
    fn the_blocks_do_not_overlap_and_hold_no_broadcast_address() {
        for (address, client, own) in [
            ([247, 255, 255, 255], false, false),
            ([248, 0, 0, 0], true, false),
            ([251, 255, 255, 255], true, false),
            ([252, 0, 0, 0], false, true),
            ([252, 255, 255, 255], false, true),
            ([253, 0, 0, 0], false, false),
            ([255, 255, 255, 255], false, false),
        ] {
            let address = Be32::from(Ipv4Addr::from(address));
            assert_eq!(
                (is_mapped_client(address), is_mapped_own(address)),
                (client, own),
                "{address:?}"
            );
        }
        assert_eq!(mapped_client(u32::MAX), Ipv4Addr::new(251, 255, 255, 255).into());
        assert_eq!(mapped_client(0), Ipv4Addr::new(248, 0, 0, 0).into());
    }
}
