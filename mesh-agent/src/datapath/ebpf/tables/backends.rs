//! Backends in the maps. Part of [`Tables`].

use std::collections::BTreeMap;

use aya::maps::MapError;
use mesh_ebpf::{
    abi::{self, BACKEND_LOCAL, BACKEND_REMOTE},
    bytes::Be16,
};

use super::{BackendSlot, Maps, Tables, keys::abi_key, remove};
use crate::{
    datapath::{DatapathError, ebpf::failed},
    model::{Backend, BackendKey, Location, desired::task_tag},
};

impl Tables {
    /// Writes a backend. A change that packets could notice (location, port, task) makes it a new backend in
    /// a new slot.
    pub(in super::super) fn upsert_backend(
        &mut self,
        maps: &mut Maps,
        key: BackendKey,
        backend: &Backend,
    ) -> Result<(), DatapathError> {
        let doing = || format!("write backend {} of port {}", key.address, key.service.port);
        let service = self
            .service_index(key.service)
            .ok_or_else(|| failed(doing(), "the table of services is full"))?;
        let mut value = self
            .backend_value(key, backend, service)
            .ok_or_else(|| failed(doing(), "its node is not a known peer"))?;
        if let Some(slot) = self.backends.get_mut(&key) {
            value.generation = slot.value.generation;
            if slot.value == value {
                slot.adopted = false;
                if (slot.weight, slot.share) != (backend.weight, backend.share) {
                    (slot.weight, slot.share) = (backend.weight, backend.share);
                    self.dirty.insert(key.service);
                }
                return Ok(());
            }
        }
        let index = self
            .backend_slots
            .allocate()
            .ok_or_else(|| failed(doing(), "the table of backends is full"))?;
        value.generation = self.backend_slots.next_generation();
        // Its first reply must find the bit set.
        let written = match self.backend_ports.add(maps, &value) {
            Ok(()) => write(maps, key, index, value).map_err(|error| failed(doing(), error)),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.backend_slots.release(index);
            self.backend_ports.remove(maps, &value)?;
            return Err(error);
        }
        if let Some(old) = self.backends.insert(
            key,
            BackendSlot {
                index,
                weight: backend.weight,
                share: backend.share,
                value,
                in_ring: false,
                adopted: false,
            },
        ) {
            self.retiring.push((key.service, old.index));
        }
        self.dirty.insert(key.service);
        Ok(())
    }

    /// Removes a backend. Its slot is retired when the round of changes ends.
    pub(in super::super) fn remove_backend(
        &mut self,
        maps: &mut Maps,
        key: BackendKey,
    ) -> Result<(), DatapathError> {
        let Some(slot) = self.backends.remove(&key) else {
            return Ok(());
        };
        remove(&mut maps.backend_index, &abi_key(key), "BACKEND_INDEX")?;
        self.retiring.push((key.service, slot.index));
        self.dirty.insert(key.service);
        Ok(())
    }

    /// The generation of each backend by index. A flow with another generation belongs to a backend that is
    /// gone.
    pub(in super::super) fn current_generations(&self) -> BTreeMap<u32, u32> {
        self.backends
            .values()
            .map(|slot| (slot.index, slot.value.generation))
            .collect()
    }

    /// Each backend by index, with its generation.
    pub(in super::super) fn backends_by_index(&self) -> BTreeMap<u32, (u32, BackendKey)> {
        self.backends
            .iter()
            .map(|(key, slot)| (slot.index, (slot.value.generation, *key)))
            .collect()
    }

    fn backend_value(&self, key: BackendKey, backend: &Backend, service: u32) -> Option<abi::Backend> {
        let mut value = abi::Backend {
            service,
            key: abi_key(key),
            target_port: Be16::new(backend.target_port),
            tag: Be16::new(task_tag(&backend.task)),
            ..abi::Backend::default()
        };
        match backend.location {
            Location::Local(container) => {
                value.location = BACKEND_LOCAL;
                value.address = container.address.into();
                value.interface = container.host_interface;
                value.mac = container.mac.0;
                value.gateway_mac = container.gateway_mac.0;
            }
            Location::Remote(address) => {
                value.location = BACKEND_REMOTE;
                value.peer = self.peers.get(&address)?.index;
            }
        }
        Some(value)
    }
}

/// Writes a backend to a free slot, whole before its generation makes it valid.
fn write(maps: &mut Maps, key: BackendKey, index: u32, value: abi::Backend) -> Result<(), MapError> {
    maps.clear_backend_traffic(index)?;
    let invalid = abi::Backend {
        generation: 0,
        ..value
    };
    maps.backends.set(index, invalid, 0)?;
    maps.backends.set(index, value, 0)?;
    maps.backend_index.insert(abi_key(key), index, 0)
}
