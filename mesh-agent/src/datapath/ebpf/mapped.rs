//! The node's IPv6 addresses, as the programs that translate packets find them, and the IPv6 clients that
//! those have given an IPv4 address.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use aya::maps::MapError;
use mesh_ebpf::{
    abi::{self, Endpoint, Ipv6Address, is_mapped_client, is_mapped_own},
    bytes::{Be16, Be32},
};

use super::{
    super::{DatapathError, dump::DumpedIpv6, mapped::MappedClient},
    batch, failed,
    flows::BATCH,
    hooks::interface_name,
    maps::Maps,
};

/// Makes packets to an IPv6 address of the node ones to the IPv4 address that stands for it.
pub(super) fn add_own(maps: &mut Maps, address: Ipv6Addr, mapped: Ipv4Addr) -> Result<(), DatapathError> {
    let (ipv6, ipv4) = (Ipv6Address::from(address), Be32::from(mapped));
    // What replies come from first: packets come in as soon as the other one is there.
    maps.own_by_ipv4
        .insert(ipv4, ipv6, 0)
        .map_err(|error| failed(format!("write OWN_BY_IPV4[{mapped}]"), error))?;
    maps.own_by_ipv6
        .insert(ipv6, ipv4, 0)
        .map_err(|error| failed(format!("write OWN_BY_IPV6[{address}]"), error))
}

/// Ends that, unless another address has taken the IPv4 address over.
pub(super) fn remove_own(maps: &mut Maps, address: Ipv6Addr, mapped: Ipv4Addr) -> Result<(), DatapathError> {
    let (ipv6, ipv4) = (Ipv6Address::from(address), Be32::from(mapped));
    if matches!(maps.own_by_ipv6.get(&ipv6, 0), Ok(current) if current == ipv4) {
        removed(maps.own_by_ipv6.remove(&ipv6))
            .map_err(|error| failed(format!("remove OWN_BY_IPV6[{address}]"), error))?;
    }
    if matches!(maps.own_by_ipv4.get(&ipv4, 0), Ok(current) if current == ipv6) {
        removed(maps.own_by_ipv4.remove(&ipv4))
            .map_err(|error| failed(format!("remove OWN_BY_IPV4[{mapped}]"), error))?;
    }
    Ok(())
}

/// Removes what an earlier agent has left and is not wanted any more.
pub(super) fn retain_own(
    maps: &mut Maps,
    wanted: &BTreeMap<Ipv6Addr, Ipv4Addr>,
) -> Result<(), DatapathError> {
    for DumpedIpv6 { address, mapped } in own(maps)? {
        if wanted.get(&address) != Some(&mapped) {
            remove_own(maps, address, mapped)?;
        }
    }
    Ok(())
}

/// The addresses that are translated.
pub(super) fn own(maps: &Maps) -> Result<Vec<DumpedIpv6>, DatapathError> {
    let entries = maps.own_by_ipv6.iter().map(|entry| {
        let (address, mapped) = entry.map_err(|error| failed("read OWN_BY_IPV6", error))?;
        Ok(DumpedIpv6 {
            address: address.into(),
            mapped: mapped.into(),
        })
    });
    entries.collect()
}

/// An endpoint as the agent has it.
pub(super) fn socket(endpoint: Endpoint) -> SocketAddrV4 {
    SocketAddrV4::new(endpoint.address.into(), endpoint.port.get())
}

/// A client, by its own address where this node knows whom a mapped one stands for.
pub(super) fn client(maps: &Maps, client: Endpoint) -> SocketAddr {
    let known = is_mapped_client(client.address).then(|| maps.clients_by_ipv4.get(&client.address, 0));
    endpoint(client, known.and_then(Result::ok).map(|known| known.address))
}

/// What a client has dialled, by the node's own address that a mapped one stands for.
pub(super) fn dialled(maps: &Maps, frontend: Endpoint) -> SocketAddr {
    let known = is_mapped_own(frontend.address).then(|| maps.own_by_ipv4.get(&frontend.address, 0));
    endpoint(frontend, known.and_then(Result::ok))
}

/// An address of a packet: the IPv6 address that it stands for, if this node knows that.
pub(super) fn shown(maps: &Maps, address: IpAddr) -> IpAddr {
    let IpAddr::V4(mapped) = address else {
        return address;
    };
    let mapped = Endpoint::new(mapped.into(), Be16::default());
    match (is_mapped_client(mapped.address), is_mapped_own(mapped.address)) {
        (true, _) => client(maps, mapped).ip(),
        (_, true) => dialled(maps, mapped).ip(),
        _ => address,
    }
}

fn endpoint(endpoint: Endpoint, address: Option<Ipv6Address>) -> SocketAddr {
    match address {
        Some(address) => (Ipv6Addr::from(address), endpoint.port.get()).into(),
        None => socket(endpoint).into(),
    }
}

/// The IPv6 clients that the programs have given an address: that with an address, or all.
pub(super) fn clients(maps: &Maps, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
    let mut interfaces = BTreeMap::new();
    let mut shown = |mapped: Be32, client: &abi::MappedClient| MappedClient {
        address: client.address.into(),
        mapped: mapped.into(),
        interface: interfaces
            .entry(client.interface)
            .or_insert_with_key(|index| interface_name(*index).unwrap_or_else(|_| index.to_string()))
            .clone(),
    };
    if let Some(IpAddr::V4(mapped)) = of {
        let known = maps.clients_by_ipv4.get(&mapped.into(), 0).ok();
        return Ok(known
            .map(|client| shown(mapped.into(), &client))
            .into_iter()
            .collect());
    }
    let mut found = Vec::new();
    let visit = |mapped: &Be32, client: &abi::MappedClient| {
        if of.is_none_or(|address| address == IpAddr::V6(client.address.into())) {
            found.push(shown(*mapped, client));
        }
    };
    batch::for_each(&maps.clients_by_ipv4, BATCH, visit)
        .map_err(|error| failed("read CLIENTS_BY_IPV4", error))?;
    Ok(found)
}

/// An entry that is not there counts as removed.
fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        outcome => outcome,
    }
}
