//! Slots of services, backends and peers in the maps, and the writes that change them safely.
//!
//! Invariants: a place is never rewritten while packets may read it as somebody else's. A backend is
//! written whole before its generation makes it valid, and its place waits at the back of the queue
//! after it is gone; a service's new ring is written where no ring is, and then named in one atomic
//! write; what a ring still names is not retired.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use aya::maps::{HashMap, MapData, MapError};
use mesh_ebpf::abi::{
    self, BACKEND_LOCAL, BACKEND_REMOTE, Choice, FrontendKey, Load, MAX_BACKENDS, MAX_FRONTENDS, MAX_PEERS,
    MAX_RING, MAX_SERVICES, Service, port_filter_bit,
};
use mesh_ebpf::bytes::{Be16, Be32};

use super::{
    super::{Counters, DatapathError, MapUsage, Traffic},
    failed,
    handles::Handles,
    rings::{Candidate, load_step, ring},
    slots::{Ranges, Slots},
};
use crate::model::{
    Backend, BackendKey, Balance, Frontend, Location, NextHop, Protocol, ServiceEntry, ServiceKey,
    desired::task_tag,
};

/// What is where.
pub(super) struct Tables {
    services: BTreeMap<ServiceKey, ServiceSlot>,
    backends: BTreeMap<BackendKey, BackendSlot>,
    peers: BTreeMap<Ipv4Addr, PeerSlot>,
    frontends: BTreeMap<Frontend, Adopted>,
    service_slots: Slots,
    backend_slots: Slots,
    peer_slots: Slots,
    ring: Ranges,
    /// Services whose ring must be written anew.
    dirty: BTreeSet<ServiceKey>,
    /// Backends that no ring will name once the dirty ones are written.
    retiring: Vec<(ServiceKey, u32)>,
    /// Ring ranges that packets may still be reading.
    stale_ranges: Vec<(u32, u32)>,
}

/// Whether something was found at start and not yet asked for.
type Adopted = bool;

struct ServiceSlot {
    index: u32,
    offset: u32,
    entries: Vec<u32>,
    /// How it is balanced; unknown until it has been asked for.
    balance: Balance,
    active: Vec<BackendKey>,
    choice: Choice,
    retired: Traffic,
    adopted: Adopted,
}

struct BackendSlot {
    index: u32,
    weight: u32,
    value: abi::Backend,
    adopted: Adopted,
}

struct PeerSlot {
    index: u32,
    adopted: Adopted,
}

impl Tables {
    /// Reads what an agent before has left in the maps (nothing, when they are new).
    pub(super) fn adopt(maps: &Handles) -> Result<Self, DatapathError> {
        let mut tables = Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            peers: BTreeMap::new(),
            frontends: BTreeMap::new(),
            service_slots: Slots::new(MAX_SERVICES),
            backend_slots: Slots::new(MAX_BACKENDS),
            peer_slots: Slots::new(MAX_PEERS),
            ring: Ranges::new(MAX_RING),
            dirty: BTreeSet::new(),
            retiring: Vec::new(),
            stale_ranges: Vec::new(),
        };
        let reading =
            |map: &'static str| move |error: MapError| failed(format!("read the pinned map {map}"), error);
        for entry in maps.services.iter() {
            let (index, service) = entry.map_err(reading("SERVICES"))?;
            let Some(key) = service_key(service.protocol, service.port) else {
                continue;
            };
            let mut entries = Vec::new();
            for position in service.ring_offset
                ..service
                    .ring_offset
                    .saturating_add(service.ring_length)
                    .min(MAX_RING)
            {
                entries.push(maps.ring.get(&position, 0).map_err(reading("RING"))?);
            }
            tables.service_slots.take(index);
            tables.ring.take(service.ring_offset, service.ring_length);
            tables.services.insert(
                key,
                ServiceSlot {
                    index,
                    offset: service.ring_offset,
                    entries,
                    balance: Balance::default(),
                    active: Vec::new(),
                    choice: service.choice,
                    retired: Traffic::default(),
                    adopted: true,
                },
            );
        }
        for entry in maps.backend_index.iter() {
            let (key, index) = entry.map_err(reading("BACKEND_INDEX"))?;
            let Some(service) = service_key(key.protocol, key.port) else {
                continue;
            };
            let value = maps.backends.get(&index, 0).map_err(reading("BACKENDS"))?;
            tables.backend_slots.take(index);
            let key = BackendKey {
                service,
                address: key.address.into(),
            };
            tables.backends.insert(
                key,
                BackendSlot {
                    index,
                    weight: 1,
                    value,
                    adopted: true,
                },
            );
        }
        for entry in maps.peer_index.iter() {
            let (address, index) = entry.map_err(reading("PEER_INDEX"))?;
            tables.peer_slots.take(index);
            tables
                .peers
                .insert(address.into(), PeerSlot { index, adopted: true });
        }
        for entry in maps.frontends.iter() {
            let (key, _) = entry.map_err(reading("FRONTENDS"))?;
            if let Some(service) = service_key(key.protocol, key.port) {
                tables.frontends.insert(
                    Frontend {
                        address: key.address.into(),
                        service,
                    },
                    true,
                );
            }
        }
        Ok(tables)
    }

    pub(super) fn backend_count(&self) -> usize {
        self.backends.len()
    }

    pub(super) fn upsert_peer(
        &mut self,
        maps: &mut Handles,
        address: Ipv4Addr,
        hop: Option<NextHop>,
    ) -> Result<(), DatapathError> {
        let doing = || format!("write the way to peer {address}");
        let index = match self.peers.get_mut(&address) {
            Some(peer) => {
                peer.adopted = false;
                peer.index
            }
            None => self
                .peer_slots
                .allocate()
                .ok_or_else(|| failed(doing(), "the table of peers is full"))?,
        };
        let mut value = abi::NextHop {
            address: address.into(),
            ..abi::NextHop::default()
        };
        if let Some(hop) = hop {
            value.interface = hop.interface;
            value.source_mac = hop.source_mac.0;
            value.destination_mac = hop.destination_mac.0;
        }
        maps.next_hops
            .set(index, value, 0)
            .map_err(|error| failed(doing(), error))?;
        maps.peer_index
            .insert(Be32::from(address), index, 0)
            .map_err(|error| failed(doing(), error))?;
        self.peers.insert(
            address,
            PeerSlot {
                index,
                adopted: false,
            },
        );
        Ok(())
    }

    pub(super) fn remove_peer(&mut self, maps: &mut Handles, address: Ipv4Addr) -> Result<(), DatapathError> {
        let Some(peer) = self.peers.remove(&address) else {
            return Ok(());
        };
        remove(&mut maps.peer_index, &Be32::from(address), "PEER_INDEX")?;
        maps.next_hops
            .set(peer.index, abi::NextHop::default(), 0)
            .map_err(|error| failed(format!("forget the way to peer {address}"), error))?;
        self.peer_slots.release(peer.index);
        Ok(())
    }

    /// Writes a backend. What packets could notice (place, port, task) makes it a new one in a new place.
    pub(super) fn upsert_backend(
        &mut self,
        maps: &mut Handles,
        key: BackendKey,
        backend: &Backend,
    ) -> Result<(), DatapathError> {
        let doing = || format!("write backend {} of port {}", key.address, key.service.port);
        let service = self
            .service_index(key.service)
            .ok_or_else(|| failed(doing(), "too many services"))?;
        let mut value = self
            .backend_value(key, backend, service)
            .ok_or_else(|| failed(doing(), "its node is no known peer"))?;
        if let Some(slot) = self.backends.get_mut(&key) {
            value.generation = slot.value.generation;
            if slot.value == value {
                slot.adopted = false;
                if slot.weight != backend.weight {
                    slot.weight = backend.weight;
                    self.dirty.insert(key.service);
                }
                return Ok(());
            }
        }
        let index = self
            .backend_slots
            .allocate()
            .ok_or_else(|| failed(doing(), "the table of backends is full"))?;
        let write = |maps: &mut Handles, value: &abi::Backend| {
            maps.backends
                .set(index, value, 0)
                .map_err(|error| failed(doing(), error))
        };
        maps.clear_backend_traffic(index)?;
        value.generation = 0;
        write(maps, &value)?;
        value.generation = self.backend_slots.next_generation();
        write(maps, &value)?;
        maps.backend_index
            .insert(abi_key(key), index, 0)
            .map_err(|error| failed(doing(), error))?;
        if let Some(old) = self.backends.insert(
            key,
            BackendSlot {
                index,
                weight: backend.weight,
                value,
                adopted: false,
            },
        ) {
            self.retiring.push((key.service, old.index));
        }
        self.dirty.insert(key.service);
        Ok(())
    }

    pub(super) fn remove_backend(
        &mut self,
        maps: &mut Handles,
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

    pub(super) fn upsert_service(
        &mut self,
        maps: &mut Handles,
        key: ServiceKey,
        entry: &ServiceEntry,
    ) -> Result<(), DatapathError> {
        self.service_index(key).ok_or_else(|| {
            failed(
                format!("write the service on port {}", key.port),
                "the table of services is full",
            )
        })?;
        if let Some(service) = self.services.get_mut(&key) {
            service.balance = entry.balance;
            service.active.clone_from(&entry.active);
            service.adopted = false;
        }
        self.dirty.insert(key);
        publish(maps, key, true)
    }

    pub(super) fn remove_service(
        &mut self,
        maps: &mut Handles,
        key: ServiceKey,
    ) -> Result<(), DatapathError> {
        publish(maps, key, false)?;
        let Some(service) = self.services.remove(&key) else {
            return Ok(());
        };
        remove(&mut maps.services, &service.index, "SERVICES")?;
        self.stale_ranges
            .push((service.offset, service.entries.len() as u32));
        self.service_slots.release(service.index);
        self.dirty.remove(&key);
        Ok(())
    }

    pub(super) fn add_frontend(
        &mut self,
        maps: &mut Handles,
        frontend: Frontend,
    ) -> Result<(), DatapathError> {
        let doing = || format!("answer at {} port {}", frontend.address, frontend.service.port);
        let index = self
            .service_index(frontend.service)
            .ok_or_else(|| failed(doing(), "the table of services is full"))?;
        // The service must be there before anybody is led to it.
        self.write_ring(maps, frontend.service)?;
        maps.frontends
            .insert(abi_frontend(frontend), index, 0)
            .map_err(|error| failed(doing(), error))?;
        self.frontends.insert(frontend, false);
        Ok(())
    }

    pub(super) fn remove_frontend(
        &mut self,
        maps: &mut Handles,
        frontend: Frontend,
    ) -> Result<(), DatapathError> {
        self.frontends.remove(&frontend);
        remove(&mut maps.frontends, &abi_frontend(frontend), "FRONTENDS")
    }

    /// Ends a round of changes: writes the rings that changed, retires the backends that none names any
    /// more.
    pub(super) fn settle(&mut self, maps: &mut Handles) -> Result<(), DatapathError> {
        // Ranges left in the round before: no packet that read their service is still under way.
        for (offset, length) in std::mem::take(&mut self.stale_ranges) {
            self.ring.release(offset, length);
        }
        for key in std::mem::take(&mut self.dirty) {
            self.write_ring(maps, key)?;
        }
        for (service, index) in std::mem::take(&mut self.retiring) {
            let traffic = traffic_of(maps, index, 0)?;
            maps.backends
                .set(index, abi::Backend::default(), 0)
                .map_err(|error| failed(format!("retire BACKENDS[{index}]"), error))?;
            if let Some(service) = self.services.get_mut(&service) {
                service.retired += traffic;
            }
            self.backend_slots.release(index);
        }
        Ok(())
    }

    /// Removes what was adopted and has not been asked for since.
    pub(super) fn remove_unclaimed(&mut self, maps: &mut Handles) -> Result<(), DatapathError> {
        let frontends: Vec<_> = self
            .frontends
            .iter()
            .filter(|(_, adopted)| **adopted)
            .map(|(key, _)| *key)
            .collect();
        let services: Vec<_> = self
            .services
            .iter()
            .filter(|(_, slot)| slot.adopted)
            .map(|(key, _)| *key)
            .collect();
        let backends: Vec<_> = self
            .backends
            .iter()
            .filter(|(_, slot)| slot.adopted)
            .map(|(key, _)| *key)
            .collect();
        let peers: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, slot)| slot.adopted)
            .map(|(key, _)| *key)
            .collect();
        frontends
            .into_iter()
            .try_for_each(|key| self.remove_frontend(maps, key))?;
        services
            .into_iter()
            .try_for_each(|key| self.remove_service(maps, key))?;
        backends
            .into_iter()
            .try_for_each(|key| self.remove_backend(maps, key))?;
        peers.into_iter().try_for_each(|key| self.remove_peer(maps, key))
    }

    /// Writes a service's ring to a fresh range and names it, if it differs from what is in force.
    fn write_ring(&mut self, maps: &mut Handles, key: ServiceKey) -> Result<(), DatapathError> {
        let Some(service) = self.services.get_mut(&key) else {
            return Ok(());
        };
        let candidates: Vec<Candidate> = service
            .active
            .iter()
            .filter_map(|key| {
                let slot = self.backends.get(key)?;
                Some(Candidate {
                    key: *key,
                    index: slot.index,
                    weight: slot.weight,
                })
            })
            .collect();
        let (choice, entries) = ring(service.balance, &candidates);
        let doing = || format!("write the rotation of port {}", key.port);
        if choice == Choice::LEAST {
            for candidate in &candidates {
                let step = load_step(service.balance, candidate.weight);
                let mut load = maps
                    .loads
                    .get(&candidate.index, 0)
                    .map_err(|error| failed(doing(), error))?;
                if load.step != step {
                    load = Load { value: 0, step };
                    maps.loads
                        .set(candidate.index, load, 0)
                        .map_err(|error| failed(doing(), error))?;
                }
            }
        }
        let known = maps.services.get(&service.index, 0).is_ok();
        if known && entries == service.entries && choice == service.choice {
            return Ok(());
        }
        let length = entries.len() as u32;
        let offset = self
            .ring
            .allocate(length)
            .ok_or_else(|| failed(doing(), "the ring table is full"))?;
        for (position, index) in (offset..).zip(&entries) {
            maps.ring
                .set(position, *index, 0)
                .map_err(|error| failed(doing(), error))?;
        }
        let value = Service {
            ring_offset: offset,
            ring_length: length,
            choice,
            port: Be16::new(key.port),
            protocol: u16::from(key.protocol.number()),
        };
        maps.services
            .insert(service.index, value, 0)
            .map_err(|error| failed(doing(), error))?;
        self.stale_ranges
            .push((service.offset, service.entries.len() as u32));
        service.offset = offset;
        service.entries = entries;
        service.choice = choice;
        Ok(())
    }

    fn service_index(&mut self, key: ServiceKey) -> Option<u32> {
        if let Some(service) = self.services.get(&key) {
            return Some(service.index);
        }
        let index = self.service_slots.allocate()?;
        self.services.insert(
            key,
            ServiceSlot {
                index,
                offset: 0,
                entries: Vec::new(),
                balance: Balance::default(),
                active: Vec::new(),
                choice: Choice::ROTATE,
                retired: Traffic::default(),
                adopted: false,
            },
        );
        Some(index)
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

    /// The generation of each backend by index: a flow with another one is to a backend that is gone.
    pub(super) fn current_generations(&self) -> BTreeMap<u32, u32> {
        self.backends
            .values()
            .map(|slot| (slot.index, slot.value.generation))
            .collect()
    }

    /// Tells the services that choose by load how many flows their backends have now.
    pub(super) fn write_loads(
        &self,
        maps: &mut Handles,
        active: &BTreeMap<u32, u64>,
    ) -> Result<(), DatapathError> {
        for service in self
            .services
            .values()
            .filter(|service| service.choice == Choice::LEAST)
        {
            for slot in service.active.iter().filter_map(|key| self.backends.get(key)) {
                let step = load_step(service.balance, slot.weight);
                let flows = active.get(&slot.index).copied().unwrap_or(0);
                let load = Load {
                    value: flows.saturating_mul(step),
                    step,
                };
                maps.loads
                    .set(slot.index, load, 0)
                    .map_err(|error| failed(format!("write LOADS[{}]", slot.index), error))?;
            }
        }
        Ok(())
    }

    /// Traffic by backend and service; `active` counts open flows by backend index.
    pub(super) fn counters(
        &mut self,
        maps: &mut Handles,
        active: &BTreeMap<u32, u64>,
    ) -> Result<Counters, DatapathError> {
        let mut counters = Counters::default();
        for (key, service) in &self.services {
            counters.services.insert(*key, service.retired);
        }
        for (key, slot) in &self.backends {
            let traffic = traffic_of(maps, slot.index, active.get(&slot.index).copied().unwrap_or(0))?;
            if let Some(service) = counters.services.get_mut(&key.service) {
                *service += traffic;
            }
            counters.backends.insert(*key, traffic);
        }
        Ok(counters)
    }

    /// Entries and capacity of each map whose fill the agent knows.
    pub(super) fn usage(&self, flows: u64, flow_capacity: u32) -> Vec<MapUsage> {
        let usage = |map: &str, entries: u64, max_entries: u32| MapUsage {
            map: map.to_owned(),
            entries,
            max_entries: u64::from(max_entries),
        };
        vec![
            usage("backends", self.backends.len() as u64, MAX_BACKENDS),
            usage("flows", flows, flow_capacity),
            usage("frontends", self.frontends.len() as u64, MAX_FRONTENDS),
            usage("peers", self.peers.len() as u64, MAX_PEERS),
            usage("ring", u64::from(self.ring.used()), MAX_RING),
            usage("services", self.services.len() as u64, MAX_SERVICES),
        ]
    }
}

fn traffic_of(maps: &Handles, index: u32, active: u64) -> Result<Traffic, DatapathError> {
    let counters = maps.backend_traffic(index)?;
    Ok(Traffic {
        connections_total: counters.connections,
        connections_active: active,
        packets_in: counters.packets_in,
        packets_out: counters.packets_out,
        bytes_in: counters.bytes_in,
        bytes_out: counters.bytes_out,
    })
}

/// Sets or clears a port's bit in the filter.
fn publish(maps: &mut Handles, key: ServiceKey, published: bool) -> Result<(), DatapathError> {
    let doing = |error: MapError| failed(format!("write port {} to the port filter", key.port), error);
    let (word, bit) = port_filter_bit(key.protocol.number(), key.port);
    let old = maps.port_filter.get(&word, 0).map_err(doing)?;
    let new = if published {
        old | 1 << bit
    } else {
        old & !(1 << bit)
    };
    if new == old {
        Ok(())
    } else {
        maps.port_filter.set(word, new, 0).map_err(doing)
    }
}

/// Removes an entry, or finds it gone.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &str,
) -> Result<(), DatapathError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove an entry of {name}"), error)),
    }
}

fn abi_key(key: BackendKey) -> abi::BackendKey {
    abi::BackendKey {
        address: key.address.into(),
        port: Be16::new(key.service.port),
        protocol: u16::from(key.service.protocol.number()),
    }
}

fn abi_frontend(frontend: Frontend) -> FrontendKey {
    FrontendKey {
        address: frontend.address.into(),
        port: Be16::new(frontend.service.port),
        protocol: u16::from(frontend.service.protocol.number()),
    }
}

fn service_key(protocol: u16, port: Be16) -> Option<ServiceKey> {
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|known| u16::from(known.number()) == protocol)?;
    Some(ServiceKey {
        protocol,
        port: port.get(),
    })
}
