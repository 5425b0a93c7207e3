//! Reading back what an earlier agent left in the maps. Part of [`Tables`].

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::MapError;
use mesh_ebpf::abi::{MAX_BACKENDS, MAX_PEERS, MAX_RING, MAX_SERVICES};

use super::{
    BackendPorts, BackendSlot, HeldKeys, Maps, PeerSlot, Policies, ServiceSlot, Tables, keys::service_key,
    masquerades::masquerade,
};
use crate::{
    datapath::{
        DatapathError, Traffic,
        ebpf::{
            failed,
            slots::{Ranges, Slots},
        },
    },
    model::{BackendKey, Balance, FULL_SHARE, Frontend},
};

impl Tables {
    /// Reads what an earlier agent left in the maps: nothing, when they are new.
    pub(in super::super) fn adopt(maps: &mut Maps, flood_limit: u32) -> Result<Self, DatapathError> {
        let mut tables = Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            peers: BTreeMap::new(),
            keys: HeldKeys::adopt(maps.keys()?),
            frontends: BTreeMap::new(),
            masquerades: BTreeMap::new(),
            policies: Policies::adopt(maps)?,
            backend_ports: BackendPorts::default(),
            flood_limit,
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
            let ring = maps.read_ring(&service)?;
            tables.service_slots.take(index);
            tables.ring.take(service.ring_offset, ring.length());
            tables.services.insert(
                key,
                ServiceSlot {
                    index,
                    offset: service.ring_offset,
                    ring,
                    by_address_since: None,
                    balance: Balance::default(),
                    active: Vec::new(),
                    policy: service.policy,
                    written_policy: service.policy,
                    closed: BTreeSet::new(),
                    idle: None,
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
                    share: FULL_SHARE,
                    value,
                    in_ring: maps.takes_new_flows(index, value.generation)?,
                    adopted: true,
                },
            );
        }
        for entry in maps.peer_index.iter() {
            let (address, index) = entry.map_err(reading("PEER_INDEX"))?;
            tables.peer_slots.take(index);
            let next_hop = maps.next_hops.get(&index, 0).map_err(reading("NEXT_HOPS"))?;
            let peer = PeerSlot {
                index,
                key: next_hop.key,
                adopted: true,
            };
            tables.peers.insert(address.into(), peer);
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
        for key in maps.masquerades.keys() {
            let key = key.map_err(reading("MASQUERADES"))?;
            tables.masquerades.insert(masquerade(&key), true);
        }
        let backends = tables.backends.values().map(|slot| &slot.value);
        tables.backend_ports = BackendPorts::adopt(maps, backends)?;
        Ok(tables)
    }
}
