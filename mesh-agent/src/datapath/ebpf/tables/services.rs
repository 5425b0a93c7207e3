//! Services in the maps, with the ring of backends that new flows choose from. Part of [`Tables`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use mesh_ebpf::{
    abi::{BACKEND_LOCAL, Choice, Load, Openings, Policy, Service},
    bytes::Be16,
};

use super::{Maps, ServiceSlot, Tables, backend_ports::set_port, remove};
use crate::{
    datapath::{
        DatapathError, Traffic,
        ebpf::{
            failed,
            rings::{Candidate, Ring, load_step, ring},
        },
    },
    model::{BackendKey, Balance, IdleLimits, ServiceEntry, ServiceKey},
};

/// After this time, flows that were begun before it have opened.
const OPENING_TIME: Duration = Duration::from_secs(1);

impl ServiceSlot {
    /// For how many seconds a client may keep its backend. Until flows that were not yet begun by its address
    /// have opened, they would be taken for its affinity, and the nodes would not agree.
    fn affinity_in_force(&self) -> u32 {
        let since = self.by_address_since.map(|since| since.elapsed());
        let is_settled = since.is_none_or(|since| since >= OPENING_TIME);
        let affinity = self
            .balance
            .affinity
            .filter(|_| is_settled && self.ring.is_by_address());
        affinity.unwrap_or(0)
    }
}

impl Tables {
    /// Publishes a service. Its ring is written when the round of changes ends.
    pub(in super::super) fn upsert_service(
        &mut self,
        maps: &mut Maps,
        key: ServiceKey,
        entry: &ServiceEntry,
    ) -> Result<(), DatapathError> {
        self.service_index(key).ok_or_else(|| {
            failed(
                format!("write the service on port {}", key.port),
                "the table of services is full",
            )
        })?;
        let policy = self.policies.hold(maps, entry.policy.as_ref())?;
        if let Some(service) = self.services.get_mut(&key) {
            service.balance = entry.balance;
            service.policy = policy;
            service.idle = Some(entry.idle);
            service.active.clone_from(&entry.active);
            service.adopted = false;
        }
        self.write_limits(maps, key, entry)?;
        self.dirty.insert(key);
        self.close_frontends(maps, key, &entry.closed)?;
        publish(maps, key, true)
    }

    /// Writes a service's limits of new flows and its affinity, unless they hold already: its counts begin
    /// anew.
    fn write_limits(
        &self,
        maps: &mut Maps,
        key: ServiceKey,
        entry: &ServiceEntry,
    ) -> Result<(), DatapathError> {
        let limits = entry.limits;
        let Some(service) = self.services.get(&key) else {
            return Ok(());
        };
        let doing = |error: MapError| failed(format!("write the limits of port {}", key.port), error);
        let known = maps.openings.get(&service.index, 0).map_err(doing)?;
        let wanted = Openings {
            max_new: limits.max_new.unwrap_or(0),
            max_new_per_source: limits.max_new_per_source.unwrap_or(0),
            flood_limit: limits.flood.unwrap_or(self.flood_limit),
            affinity: service.affinity_in_force(),
            ..known
        };
        let of = |openings: &Openings| {
            (
                openings.max_new,
                openings.max_new_per_source,
                openings.flood_limit,
                openings.affinity,
            )
        };
        if of(&known) == of(&wanted) {
            return Ok(());
        }
        maps.openings.set(service.index, wanted, 0).map_err(doing)
    }

    /// Lets clients keep their backends where a ring that is chosen from by address has been in force for
    /// long enough.
    pub(in super::super) fn begin_affinities(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        for service in self.services.values_mut() {
            if service.by_address_since.is_none() || service.affinity_in_force() == 0 {
                continue;
            }
            let doing = |error| failed(format!("write OPENINGS[{}]", service.index), error);
            let known = maps.openings.get(&service.index, 0).map_err(doing)?;
            let wanted = Openings {
                affinity: service.affinity_in_force(),
                ..known
            };
            maps.openings.set(service.index, wanted, 0).map_err(doing)?;
            service.by_address_since = None;
        }
        Ok(())
    }

    /// Unpublishes a service and removes it.
    pub(in super::super) fn remove_service(
        &mut self,
        maps: &mut Maps,
        key: ServiceKey,
    ) -> Result<(), DatapathError> {
        publish(maps, key, false)?;
        let Some(service) = self.services.remove(&key) else {
            return Ok(());
        };
        remove(&mut maps.services, &service.index, "SERVICES")?;
        // The next service with this index begins at nothing.
        maps.openings
            .set(service.index, Openings::default(), 0)
            .map_err(|error| failed(format!("clear OPENINGS[{}]", service.index), error))?;
        self.stale_ranges.push((service.offset, service.ring.length()));
        self.service_slots.release(service.index);
        self.dirty.remove(&key);
        Ok(())
    }

    /// For how long flows may be idle, of the services where that is not the default. An adopted service says
    /// that only when it is asked for; until then its flows stay.
    pub(in super::super) fn idle_limits(&self) -> BTreeMap<ServiceKey, IdleLimits> {
        let unlimited = IdleLimits {
            tcp: Some(u32::MAX),
            udp: Some(u32::MAX),
        };
        self.services
            .iter()
            .map(|(key, service)| (*key, service.idle.unwrap_or(unlimited)))
            .filter(|(_, limits)| !limits.are_defaults())
            .collect()
    }

    /// Resets the load of each backend whose service balances by load to the flows that it has now.
    pub(in super::super) fn write_loads(
        &self,
        maps: &mut Maps,
        active: &BTreeMap<u32, u64>,
    ) -> Result<(), DatapathError> {
        for service in self
            .services
            .values()
            .filter(|service| service.ring.choice.within_ring() == Choice::LEAST)
        {
            for slot in service.active.iter().filter_map(|key| self.backends.get(key)) {
                let step = load_step(service.balance, slot.weight, slot.share);
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

    /// Writes a service's ring to a fresh range and then points the service at it, unless that ring is
    /// already in force.
    pub(super) fn write_ring(&mut self, maps: &mut Maps, key: ServiceKey) -> Result<(), DatapathError> {
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
                    share: slot.share,
                    local: slot.value.location == BACKEND_LOCAL,
                })
            })
            .collect();
        let ring = ring(service.balance, &candidates);
        let doing = || format!("write the ring of port {}", key.port);
        if ring.choice.within_ring() == Choice::LEAST {
            for candidate in &candidates {
                let step = load_step(service.balance, candidate.weight, candidate.share);
                let mut load = maps
                    .loads
                    .get(&candidate.index, 0)
                    .map_err(|error| failed(doing(), error))?;
                if load.step != step {
                    // The same flows count for more or less from now on.
                    let flows = load.value.checked_div(load.step).unwrap_or(0);
                    load = Load {
                        value: flows.saturating_mul(step),
                        step,
                    };
                    maps.loads
                        .set(candidate.index, load, 0)
                        .map_err(|error| failed(doing(), error))?;
                }
            }
        }
        let known = maps.services.get(&service.index, 0).is_ok();
        if known && ring == service.ring && service.policy == service.written_policy {
            return self.note_ring(maps, key);
        }
        let length = ring.length();
        let offset = self
            .ring
            .allocate(length)
            .ok_or_else(|| failed(doing(), "the ring table is full"))?;
        let value = Service {
            ring_offset: offset,
            ring_length: ring.entries.len() as u32,
            choice: ring.choice,
            policy: service.policy,
            port: Be16::new(key.port),
            protocol: u16::from(key.protocol.number()),
        };
        let written = (offset..)
            .zip(ring.slots())
            .try_for_each(|(position, index)| maps.ring.set(position, index, 0))
            .and_then(|()| maps.services.insert(service.index, value, 0));
        if let Err(error) = written {
            self.ring.release(offset, length);
            return Err(failed(doing(), error));
        }
        self.stale_ranges.push((service.offset, service.ring.length()));
        if ring.is_by_address() && !service.ring.is_by_address() {
            service.by_address_since = Some(Instant::now());
        }
        service.offset = offset;
        service.ring = ring;
        service.written_policy = service.policy;
        self.note_ring(maps, key)
    }

    /// Writes which backends a service's ring names: clients with affinity stay with no others.
    fn note_ring(&mut self, maps: &mut Maps, key: ServiceKey) -> Result<(), DatapathError> {
        let Some(service) = self.services.get(&key) else {
            return Ok(());
        };
        let first = BackendKey {
            service: key,
            address: Ipv4Addr::UNSPECIFIED,
        };
        let backends = self.backends.range_mut(first..);
        for (_, backend) in backends.take_while(|(backend, _)| backend.service == key) {
            let in_ring = service.ring.names(backend.index);
            if backend.in_ring != in_ring {
                let generation = if in_ring { backend.value.generation } else { 0 };
                maps.set_takes_new_flows(backend.index, generation)?;
                backend.in_ring = in_ring;
            }
        }
        Ok(())
    }

    /// The index of a service, which is allocated if it has none yet; `None` when the table is full.
    pub(super) fn service_index(&mut self, key: ServiceKey) -> Option<u32> {
        if let Some(service) = self.services.get(&key) {
            return Some(service.index);
        }
        let index = self.service_slots.allocate()?;
        self.services.insert(
            key,
            ServiceSlot {
                index,
                offset: 0,
                ring: Ring::default(),
                by_address_since: None,
                balance: Balance::default(),
                active: Vec::new(),
                policy: Policy::NONE,
                written_policy: Policy::NONE,
                closed: BTreeSet::new(),
                idle: None,
                retired: Traffic::default(),
                adopted: false,
            },
        );
        Some(index)
    }
}

/// Sets or clears a port's bit in the port filter.
fn publish(maps: &mut Maps, key: ServiceKey, published: bool) -> Result<(), DatapathError> {
    set_port(&mut maps.port_filter, key.protocol.number(), key.port, published)
        .map_err(|error| failed(format!("write port {} to the port filter", key.port), error))
}
