//! The node's IPv6 addresses, as the programs that translate packets find them, and the IPv6 clients that
//! those have given an IPv4 address.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use mesh_ebpf::{
    abi::{self, Endpoint, Ipv6Address, is_mapped_client, is_mapped_own},
    bytes::Be32,
    mapped,
};

use super::{
    super::{DatapathError, dump::DumpedIpv6, mapped::MappedClient},
    batch, failed,
    hooks::interface_name,
    maps::Maps,
    tables::remove,
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
        remove(&mut maps.own_by_ipv6, &ipv6, "OWN_BY_IPV6")?;
    }
    if matches!(maps.own_by_ipv4.get(&ipv4, 0), Ok(current) if current == ipv6) {
        remove(&mut maps.own_by_ipv4, &ipv4, "OWN_BY_IPV4")?;
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

/// A client or what it dialled, by the IPv6 address that a mapped one stands for, if this node knows that.
pub(super) fn shown_socket(maps: &Maps, endpoint: Endpoint) -> SocketAddr {
    let address = Ipv4Addr::from(endpoint.address).into();
    SocketAddr::new(shown(maps, address), endpoint.port.get())
}

/// The same of an address.
pub(super) fn shown(maps: &Maps, address: IpAddr) -> IpAddr {
    let IpAddr::V4(mapped) = address else {
        return address;
    };
    let mapped = Be32::from(mapped);
    let known = if is_mapped_client(mapped) {
        maps.clients_by_ipv4.get(&mapped, 0).map(|client| client.address)
    } else if is_mapped_own(mapped) {
        maps.own_by_ipv4.get(&mapped, 0)
    } else {
        return address;
    };
    known.map_or(address, |known| Ipv6Addr::from(known).into())
}

/// All IPv6 clients, by the addresses that stand for them.
pub(super) fn ipv6_clients(maps: &Maps) -> Result<BTreeMap<Be32, Ipv6Addr>, DatapathError> {
    let mut clients = BTreeMap::new();
    batch::for_each(&maps.clients_by_ipv4, |mapped, client| {
        clients.insert(*mapped, client.address.into());
    })
    .map_err(|error| failed("read CLIENTS_BY_IPV4", error))?;
    Ok(clients)
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
    let mapped = match of {
        Some(IpAddr::V4(mapped)) => vec![mapped.into()],
        Some(IpAddr::V6(address)) => {
            let displaced = maps.clients_by_ipv6.get(&address.into(), 0);
            [Ok(mapped::preferred(&address.into())), displaced]
                .into_iter()
                .flatten()
                .collect()
        }
        None => {
            let mut all = Vec::new();
            batch::for_each(&maps.clients_by_ipv4, |mapped, client| {
                all.push(shown(*mapped, client));
            })
            .map_err(|error| failed("read CLIENTS_BY_IPV4", error))?;
            return Ok(all);
        }
    };
    let found = mapped.into_iter().filter_map(|mapped| {
        let client = maps.clients_by_ipv4.get(&mapped, 0).ok()?;
        Some(shown(mapped, &client))
    });
    // An address may be another client's.
    Ok(found
        .filter(|client| of.is_some_and(|of| client.is(of)))
        .collect())
}
