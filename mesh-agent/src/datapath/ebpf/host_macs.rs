//! The MAC addresses of the node's interfaces, in their map. Depends on the maps.

use std::collections::BTreeSet;

use mesh_ebpf::abi::{MAX_HOST_MACS, mac_key};

use super::{failed, maps::Maps};
use crate::{datapath::DatapathError, model::MacAddress};

/// Adds addresses. Returns whether all are in the map, and there are any: a node that has more than it holds
/// cannot tell other machines' frames from its own.
pub(super) fn add(maps: &mut Maps, macs: &BTreeSet<MacAddress>) -> Result<bool, DatapathError> {
    if macs.is_empty() || macs.len() > MAX_HOST_MACS as usize {
        return Ok(false);
    }
    // Makes room: what an earlier agent left may fill it.
    let known = keys(maps)?;
    if known.len() + macs.len() > MAX_HOST_MACS as usize {
        retain(maps, macs)?;
    }
    for mac in macs {
        maps.host_macs
            .insert(mac_key(mac.0), 1, 0)
            .map_err(|error| failed(format!("add {mac} to HOST_MACS"), error))?;
    }
    Ok(true)
}

/// Removes all others.
pub(super) fn retain(maps: &mut Maps, macs: &BTreeSet<MacAddress>) -> Result<(), DatapathError> {
    let wanted: BTreeSet<u64> = macs.iter().map(|mac| mac_key(mac.0)).collect();
    for key in keys(maps)?.difference(&wanted) {
        super::tables::remove(&mut maps.host_macs, key, "HOST_MACS")?;
    }
    Ok(())
}

fn keys(maps: &Maps) -> Result<BTreeSet<u64>, DatapathError> {
    let keys: Result<_, _> = maps.host_macs.keys().collect();
    keys.map_err(|error| failed("read HOST_MACS", error))
}
