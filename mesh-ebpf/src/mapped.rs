//! Gives each IPv6 client the IPv4 address that stands for it: on every node the same one, as long as no two
//! clients of a node would have it.

use crate::{
    abi::{DropReason, FrontendKey, Ipv6Address, MappedClient, mapped_client},
    bytes::{Be16, Be32},
    hash::mix,
    mapped_tables::MappedTables,
};

/// Addresses that are tried for a client. With 100,000 others, all are taken once in 10^11 times.
const ATTEMPTS: u32 = 4;

/// The address that a client gets unless another one has it.
#[inline(always)]
pub fn preferred(address: &Ipv6Address) -> Be32 {
    attempt(address, 0)
}

#[inline(always)]
fn attempt(address: &Ipv6Address, number: u32) -> Be32 {
    let [first, second, third, fourth] = address.0;
    let mut bits = mix(first.get() ^ number);
    bits = mix(bits.wrapping_add(second.get()));
    bits = mix(bits.wrapping_add(third.get()));
    mapped_client(mix(bits.wrapping_add(fourth.get())))
}

/// The address that stands for the client of a packet that came in by an interface.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn client<T: MappedTables>(
    tables: &T,
    address: &Ipv6Address,
    interface: u32,
) -> Result<Be32, DropReason> {
    let client = MappedClient {
        address: *address,
        interface,
        padding: 0,
    };
    if let Some((mapped, known)) = known(tables, address) {
        if known.interface != interface {
            tables.map_client(&client, mapped);
        }
        return Ok(mapped);
    }
    if tables.own_mapped(address).is_some() {
        return Err(DropReason::Martian);
    }
    if !tables.may_map_client() {
        return Err(DropReason::NoClientAddress);
    }
    let mut number = 0;
    while number < ATTEMPTS {
        let mapped = attempt(address, number);
        if tables
            .mapped_client(mapped)
            .is_none_or(|other| other.address == *address)
        {
            tables.map_client(&client, mapped);
            if number != 0 {
                tables.displace(address, mapped);
            }
            return Ok(mapped);
        }
        number += 1;
    }
    Err(DropReason::NoClientAddress)
}

/// A client that has an address, with that. Almost all have their preferred one, so that this is one look-up.
#[inline(always)]
pub fn known<T: MappedTables>(tables: &T, address: &Ipv6Address) -> Option<(Be32, MappedClient)> {
    let is_its = |mapped: Be32| {
        let client = tables.mapped_client(mapped)?;
        (client.address == *address).then_some((mapped, client))
    };
    // Either table may have pushed it out.
    is_its(preferred(address)).or_else(|| is_its(tables.displaced(address)?))
}

/// Whether a port of one of the node's addresses is a frontend.
#[inline(always)]
pub fn is_frontend<T: MappedTables>(tables: &T, protocol: u8, address: Be32, port: Be16) -> bool {
    let frontend = FrontendKey {
        address,
        port,
        protocol: u16::from(protocol),
    };
    tables.is_published(protocol, port.get()) && tables.frontend(&frontend).is_some()
}

#[cfg(test)]
mod tests;
