//! Which index each service, backend and peer has in the maps, and the writes that change the maps safely.
//!
//! Invariants:
//! - A slot is never rewritten while packets may still read it for its former owner.
//! - A backend is written whole before its generation makes it valid. After its removal the slot goes to
//!   the back of the queue.
//! - A service's new ring is written to an unused range, and then the service is pointed at it in one atomic
//!   write.
//! - A backend is retired only when no ring names it.

mod adopt;
mod backend_ports;
mod backends;
mod counters;
mod frontends;
mod keys;
mod masquerades;
mod peers;
mod policies;
mod services;
mod tunnel_keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Instant,
};

use aya::maps::{HashMap, MapData, MapError};
use mesh_ebpf::abi::{self, Policy};

use self::counters::traffic_of;
use self::{backend_ports::BackendPorts, policies::Policies, tunnel_keys::HeldKeys};
pub(super) use self::{
    keys::service_key,
    masquerades::masquerade,
    policies::{Access, policies},
};
use super::{
    super::{DatapathError, Traffic},
    failed,
    maps::Maps,
    rings::Ring,
    slots::{Ranges, Slots},
};
use crate::model::{BackendKey, Balance, Frontend, IdleLimits, Masquerade, Protocol, ServiceKey};

/// What is in the maps, and where.
pub(super) struct Tables {
    services: BTreeMap<ServiceKey, ServiceSlot>,
    backends: BTreeMap<BackendKey, BackendSlot>,
    peers: BTreeMap<Ipv4Addr, PeerSlot>,
    keys: HeldKeys,
    frontends: BTreeMap<Frontend, Adopted>,
    masquerades: BTreeMap<Masquerade, Adopted>,
    policies: Policies,
    backend_ports: BackendPorts,
    /// Of services that have none of their own.
    flood_limit: u32,
    service_slots: Slots,
    backend_slots: Slots,
    peer_slots: Slots,
    ring: Ranges,
    /// Services whose ring must be written again.
    dirty: BTreeSet<ServiceKey>,
    /// Backends that no ring will name once the dirty ones are written.
    retiring: Vec<(ServiceKey, u32)>,
    /// Ring ranges that packets may still be reading.
    stale_ranges: Vec<(u32, u32)>,
}

/// The service that refuses everyone, to which a service's frontends lead where they are closed. No service
/// publishes its port.
pub(super) const CLOSED: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 0,
};

/// Whether an earlier agent left it and nothing has asked for it yet.
type Adopted = bool;

struct ServiceSlot {
    index: u32,
    /// Where its ring begins.
    offset: u32,
    /// Its ring, as it is in the maps.
    ring: Ring,
    /// Since when that is chosen from by address, if clients may not keep their backends yet.
    by_address_since: Option<Instant>,
    /// How it is balanced; unknown until it has been asked for.
    balance: Balance,
    active: Vec<BackendKey>,
    /// Who is to be let in.
    policy: Policy,
    /// Who is let in, until its ring is written again.
    written_policy: Policy,
    /// The addresses at which its frontends are those of [`CLOSED`].
    closed: BTreeSet<Ipv4Addr>,
    /// For how long its flows may be idle; unknown until it has been asked for.
    idle: Option<IdleLimits>,
    /// Traffic of its former backends.
    retired: Traffic,
    adopted: Adopted,
}

struct BackendSlot {
    index: u32,
    weight: u32,
    /// How much of its share it gets, of ten parts.
    share: u8,
    value: abi::Backend,
    /// Whether clients with affinity may stay with it: as its service's ring has it.
    in_ring: bool,
    adopted: Adopted,
}

struct PeerSlot {
    index: u32,
    /// What names the key that it is sent; 0 for none.
    key: u16,
    adopted: Adopted,
}

impl Tables {
    pub(super) fn backend_count(&self) -> usize {
        self.backends.len()
    }

    /// Ends a round of changes: writes the rings that changed, then retires the backends that no ring names
    /// any more. What fails, and the service that it is about, is returned; it is tried again with the next
    /// round.
    pub(super) fn settle(&mut self, maps: &mut Maps) -> Vec<(Option<ServiceKey>, DatapathError)> {
        // Ranges left in the previous round: packets that read them through their service are done by now.
        for (offset, length) in std::mem::take(&mut self.stale_ranges) {
            self.ring.release(offset, length);
        }
        let mut errors = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            if let Err(error) = self.write_ring(maps, key) {
                self.dirty.insert(key);
                errors.push((Some(key), error));
            }
        }
        for (service, index) in std::mem::take(&mut self.retiring) {
            // The old ring is in force, and names it.
            if self.dirty.contains(&service) {
                self.retiring.push((service, index));
            } else if let Err(error) = self.retire(maps, service, index) {
                self.retiring.push((service, index));
                errors.push((None, error));
            }
        }
        if let Err(error) = self.settle_policies(maps) {
            errors.push((None, error));
        }
        errors
    }

    /// Invalidates a backend that no ring names, and frees its slot.
    fn retire(&mut self, maps: &mut Maps, service: ServiceKey, index: u32) -> Result<(), DatapathError> {
        let traffic = traffic_of(maps, index, 0)?;
        maps.set_takes_new_flows(index, 0)?;
        let doing = |error| failed(format!("retire BACKENDS[{index}]"), error);
        let backend = maps.backends.get(&index, 0).map_err(doing)?;
        maps.backends
            .set(index, abi::Backend::default(), 0)
            .map_err(doing)?;
        self.backend_ports.remove(maps, &backend)?;
        if let Some(service) = self.services.get_mut(&service) {
            service.retired += traffic;
        }
        self.backend_slots.release(index);
        Ok(())
    }

    /// Removes what was adopted and nothing has asked for since.
    pub(super) fn remove_unclaimed(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
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
        peers
            .into_iter()
            .try_for_each(|key| self.remove_peer(maps, key))?;
        let masquerades: Vec<_> = self
            .masquerades
            .iter()
            .filter(|(_, adopted)| **adopted)
            .map(|(key, _)| *key)
            .collect();
        masquerades
            .into_iter()
            .try_for_each(|key| self.remove_masquerade(maps, key))?;
        self.clear_unnamed_backends(maps)
    }

    /// Ends the flows of backends that an agent had taken out of the index when it was killed: no ring names
    /// them any more, and nothing else would.
    fn clear_unnamed_backends(&self, maps: &mut Maps) -> Result<(), DatapathError> {
        let known: BTreeSet<u32> = (self.backends.values().map(|slot| slot.index))
            .chain(self.retiring.iter().map(|(_, index)| *index))
            .collect();
        for index in (0..maps.backends.len()).filter(|index| !known.contains(index)) {
            let doing = |error| failed(format!("clear BACKENDS[{index}]"), error);
            let backend = maps.backends.get(&index, 0).map_err(doing)?;
            if backend.generation != 0 {
                maps.set_takes_new_flows(index, 0)?;
                maps.backends
                    .set(index, abi::Backend::default(), 0)
                    .map_err(doing)?;
            }
        }
        Ok(())
    }
}

/// Removes an entry; if it is gone already, that is as good.
pub(super) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &str,
) -> Result<(), DatapathError> {
    removed(map.remove(key), name)
}

/// What came of removing an entry of a map; if it was gone already, that is as good.
fn removed(outcome: Result<(), MapError>, name: &str) -> Result<(), DatapathError> {
    match outcome {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(format!("remove an entry of {name}"), error)),
    }
}
