//! The traffic and the fill of the maps, as the agent reports them. Part of [`Tables`].

use std::collections::BTreeMap;

use mesh_ebpf::abi::{
    MAX_BACKENDS, MAX_FRONTENDS, MAX_MASQUERADES, MAX_PEERS, MAX_RING, MAX_SERVICES, MAX_SOURCE_RULES,
    Openings,
};

use super::{CLOSED, Maps, Tables};
use crate::{
    datapath::{Counters, DatapathError, MapUsage, Traffic},
    model::{Protocol, ServiceKey},
};

impl Tables {
    /// Traffic by backend and service; `active` counts the open flows that entered here by backend index,
    /// `open` all of them.
    pub(in super::super) fn counters(
        &mut self,
        maps: &mut Maps,
        active: &BTreeMap<u32, u64>,
        open: &BTreeMap<u32, u64>,
    ) -> Result<Counters, DatapathError> {
        let mut counters = Counters::default();
        for (key, service) in self.services.iter().filter(|(key, _)| **key != CLOSED) {
            counters.services.insert(*key, service.retired);
        }
        for (key, slot) in &self.backends {
            let traffic = traffic_of(maps, slot.index, active.get(&slot.index).copied().unwrap_or(0))?;
            if let Some(service) = counters.services.get_mut(&key.service) {
                *service += traffic;
            }
            counters.backends.insert(*key, traffic);
            let open = open.get(&slot.index).copied().unwrap_or(0);
            counters.open.insert(*key, open);
            if key.service.protocol == Protocol::Tcp {
                counters
                    .signals
                    .insert(*key, maps.backend_signals(slot.index)?.into());
            }
            let unanswered = maps.unanswered(slot.index)?;
            if unanswered > 0 {
                counters.unanswered.insert(*key, unanswered);
            }
        }
        Ok(counters)
    }

    /// The new flows of each service, and what its limits have dropped.
    pub(in super::super) fn openings(
        &self,
        maps: &Maps,
    ) -> Result<BTreeMap<ServiceKey, Openings>, DatapathError> {
        let services = self.services.iter().filter(|(key, _)| **key != CLOSED);
        services
            .map(|(key, service)| Ok((*key, maps.openings(service.index)?)))
            .collect()
    }

    /// Entries and capacity of each map whose fill the agent knows; those of the flows are given.
    pub(in super::super) fn usage(&self, flows: [(&str, u64, u32); 2]) -> Vec<MapUsage> {
        let usage = |map: &str, entries: u64, max_entries: u32| MapUsage {
            map: map.to_owned(),
            entries,
            max_entries: u64::from(max_entries),
        };
        let mut all = vec![
            usage("backends", self.backends.len() as u64, MAX_BACKENDS),
            usage("frontends", self.frontends.len() as u64, MAX_FRONTENDS),
            usage("masquerades", self.masquerades.len() as u64, MAX_MASQUERADES),
            usage("peers", self.peers.len() as u64, MAX_PEERS),
            usage("ring", u64::from(self.ring.used()), MAX_RING),
            usage("services", self.services.len() as u64, MAX_SERVICES),
            usage("source_rules", self.policies.rules() as u64, MAX_SOURCE_RULES),
        ];
        all.extend(flows.map(|(map, entries, max_entries)| usage(map, entries, max_entries)));
        all.sort_by(|one, other| one.map.cmp(&other.map));
        all
    }
}

/// A backend's traffic since its slot was last cleared.
pub(super) fn traffic_of(maps: &Maps, index: u32, active: u64) -> Result<Traffic, DatapathError> {
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
