//! On which ports this node's backends listen: what a container sends from another port is no reply. Part of
//! [`Tables`](super::Tables).

use std::collections::BTreeMap;

use aya::maps::{Array, MapData, MapError};
use mesh_ebpf::abi::{self, BACKEND_LOCAL, PORT_FILTER_ENTRIES, port_filter_bit};

use super::Maps;
use crate::datapath::{DatapathError, ebpf::failed};

/// How many backends of this node listen on each port, by protocol and port inside the container.
#[derive(Default)]
pub(super) struct BackendPorts(BTreeMap<(u8, u16), u32>);

impl BackendPorts {
    /// Makes the map say what an earlier agent's backends need: one of an earlier version did not write it.
    pub(super) fn adopt<'a>(
        maps: &mut Maps,
        backends: impl Iterator<Item = &'a abi::Backend>,
    ) -> Result<Self, DatapathError> {
        let mut ports = Self::default();
        for port in backends.filter_map(port_of) {
            *ports.0.entry(port).or_default() += 1;
        }
        let mut filter = BTreeMap::new();
        for (protocol, port) in ports.0.keys() {
            let (index, bit) = port_filter_bit(*protocol, *port);
            *filter.entry(index).or_insert(0) |= 1_u64 << bit;
        }
        for index in 0..PORT_FILTER_ENTRIES {
            let bits = filter.get(&index).copied().unwrap_or_default();
            write(&mut maps.backend_ports, index, bits)
                .map_err(|error| failed(format!("write BACKEND_PORTS[{index}]"), error))?;
        }
        Ok(ports)
    }

    /// Counts a backend that is about to be written.
    pub(super) fn add(&mut self, maps: &mut Maps, backend: &abi::Backend) -> Result<(), DatapathError> {
        let Some(port) = port_of(backend) else {
            return Ok(());
        };
        *self.0.entry(port).or_default() += 1;
        set(maps, port, true)
    }

    /// Forgets a backend that no packet finds any more.
    pub(super) fn remove(&mut self, maps: &mut Maps, backend: &abi::Backend) -> Result<(), DatapathError> {
        let Some(port) = port_of(backend) else {
            return Ok(());
        };
        let left = self.0.get(&port).map_or(0, |count| count.saturating_sub(1));
        if left > 0 {
            self.0.insert(port, left);
            return Ok(());
        }
        self.0.remove(&port);
        set(maps, port, false)
    }
}

/// Protocol and port of a backend of this node.
fn port_of(backend: &abi::Backend) -> Option<(u8, u16)> {
    (backend.location == BACKEND_LOCAL).then(|| (backend.key.protocol as u8, backend.target_port.get()))
}

fn set(maps: &mut Maps, (protocol, port): (u8, u16), is_used: bool) -> Result<(), DatapathError> {
    set_port(&mut maps.backend_ports, protocol, port, is_used)
        .map_err(|error| failed(format!("write port {port} to BACKEND_PORTS"), error))
}

/// Sets or clears a port's bit in a filter of ports.
pub(super) fn set_port(
    filter: &mut Array<MapData, u64>,
    protocol: u8,
    port: u16,
    is_set: bool,
) -> Result<(), MapError> {
    let (index, bit) = port_filter_bit(protocol, port);
    let old = filter.get(&index, 0)?;
    let new = if is_set { old | 1 << bit } else { old & !(1 << bit) };
    write(filter, index, new)
}

/// Writes an entry if it is another.
fn write(filter: &mut Array<MapData, u64>, index: u32, new: u64) -> Result<(), MapError> {
    match filter.get(&index, 0)? == new {
        true => Ok(()),
        false => filter.set(index, new, 0),
    }
}
