//! The eBPF maps by name and type, with the reads and writes of single values.

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use mesh_ebpf::{
    abi::{
        Backend, BackendCounters, BackendKey, BackendSignals, Breaker, Config, DropReason, Event, FlowKey,
        FlowRecord, FrontendKey, Hook, Ipv6Address, Keys, Load, MAX_RING, MappedClient, Masquerade, NextHop,
        Openings, Service, SourceRule, SourceVerdicts, drop_index,
    },
    bytes::Be32,
};

use super::{
    super::{DatapathError, DropCount},
    failed,
    rings::Ring,
};

/// Every map that the agent reads or writes.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    pub(super) host_macs: HashMap<MapData, u64, u32>,
    pub(super) port_filter: Array<MapData, u64>,
    pub(super) backend_ports: Array<MapData, u64>,
    pub(super) own_by_ipv6: HashMap<MapData, Ipv6Address, Be32>,
    pub(super) own_by_ipv4: HashMap<MapData, Be32, Ipv6Address>,
    pub(super) clients_by_ipv6: HashMap<MapData, Ipv6Address, Be32>,
    pub(super) clients_by_ipv4: HashMap<MapData, Be32, MappedClient>,
    pub(super) frontends: HashMap<MapData, FrontendKey, u32>,
    pub(super) services: HashMap<MapData, u32, Service>,
    pub(super) openings: Array<MapData, Openings>,
    pub(super) ring: Array<MapData, u32>,
    in_ring: Array<MapData, u32>,
    pub(super) loads: Array<MapData, Load>,
    breakers: Array<MapData, Breaker>,
    pub(super) backends: Array<MapData, Backend>,
    pub(super) backend_index: HashMap<MapData, BackendKey, u32>,
    pub(super) backend_counters: PerCpuArray<MapData, BackendCounters>,
    backend_signals: Array<MapData, BackendSignals>,
    pub(super) masquerades: LpmTrie<MapData, Masquerade, Be32>,
    pub(super) source_rules: LpmTrie<MapData, SourceRule, SourceVerdicts>,
    pub(super) peer_index: HashMap<MapData, Be32, u32>,
    pub(super) next_hops: Array<MapData, NextHop>,
    keys: Array<MapData, Keys>,
    pub(super) keyed: Array<MapData, u64>,
    pub(super) flows: HashMap<MapData, FlowKey, FlowRecord>,
    pub(super) half_open: HashMap<MapData, FlowKey, FlowRecord>,
    drops: PerCpuArray<MapData, u64>,
    events: PerCpuArray<MapData, u64>,
    /// How many values a map for each processor has.
    pub(super) cpus: usize,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, DatapathError> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(file, error)| failed(format!("count the possible CPUs in {file}"), error))?;
        Ok(Self {
            config: take(programs, "CONFIG")?,
            host_macs: take(programs, "HOST_MACS")?,
            port_filter: take(programs, "PORT_FILTER")?,
            backend_ports: take(programs, "BACKEND_PORTS")?,
            own_by_ipv6: take(programs, "OWN_BY_IPV6")?,
            own_by_ipv4: take(programs, "OWN_BY_IPV4")?,
            clients_by_ipv6: take(programs, "CLIENTS_BY_IPV6")?,
            clients_by_ipv4: take(programs, "CLIENTS_BY_IPV4")?,
            frontends: take(programs, "FRONTENDS")?,
            services: take(programs, "SERVICES")?,
            openings: take(programs, "OPENINGS")?,
            ring: take(programs, "RING")?,
            in_ring: take(programs, "IN_RING")?,
            loads: take(programs, "LOADS")?,
            breakers: take(programs, "BREAKERS")?,
            backends: take(programs, "BACKENDS")?,
            backend_index: take(programs, "BACKEND_INDEX")?,
            backend_counters: take(programs, "BACKEND_COUNTERS")?,
            backend_signals: take(programs, "BACKEND_SIGNALS")?,
            masquerades: take(programs, "MASQUERADES")?,
            source_rules: take(programs, "SOURCE_RULES")?,
            peer_index: take(programs, "PEER_INDEX")?,
            next_hops: take(programs, "NEXT_HOPS")?,
            keys: take(programs, "KEYS")?,
            keyed: take(programs, "KEYED")?,
            flows: take(programs, "FLOWS")?,
            half_open: take(programs, "HALF_OPEN")?,
            drops: take(programs, "DROPS")?,
            events: take(programs, "EVENTS")?,
            cpus,
        })
    }

    /// The ring of a service.
    pub(super) fn read_ring(&self, service: &Service) -> Result<Ring, DatapathError> {
        let slot = |slot: u32| {
            let read = self.ring.get(&slot.min(MAX_RING - 1), 0);
            read.map_err(|error| failed(format!("read RING[{slot}]"), error))
        };
        let range = |first: u32, length: u32| -> Result<Vec<u32>, DatapathError> {
            (first..first.saturating_add(length).min(MAX_RING))
                .map(slot)
                .collect()
        };
        let end = service.ring_offset.saturating_add(service.ring_length);
        let others = if service.choice.prefers() { slot(end)? } else { 0 };
        Ok(Ring {
            choice: service.choice,
            entries: range(service.ring_offset, service.ring_length)?,
            others: range(end.saturating_add(1), others)?,
        })
    }

    /// Whether clients with affinity may stay with a backend of this generation.
    pub(super) fn takes_new_flows(&self, index: u32, generation: u32) -> Result<bool, DatapathError> {
        let in_ring = self.in_ring.get(&index, 0);
        in_ring
            .map(|in_ring| in_ring == generation)
            .map_err(|error| failed(format!("read IN_RING[{index}]"), error))
    }

    /// Lets clients with affinity stay with a backend of this generation; 0: with none.
    pub(super) fn set_takes_new_flows(&mut self, index: u32, generation: u32) -> Result<(), DatapathError> {
        self.in_ring
            .set(index, generation, 0)
            .map_err(|error| failed(format!("write IN_RING[{index}]"), error))
    }

    /// The settings in force.
    pub(super) fn config(&self) -> Result<Config, DatapathError> {
        self.config
            .get(&0, 0)
            .map_err(|error| failed("read CONFIG", error))
    }

    /// Replaces the settings in force.
    pub(super) fn set_config(&mut self, config: &Config) -> Result<(), DatapathError> {
        self.config
            .set(0, config, 0)
            .map_err(|error| failed("write CONFIG", error))
    }

    /// The keys that peers' packets carry.
    pub(super) fn keys(&self) -> Result<Keys, DatapathError> {
        self.keys.get(&0, 0).map_err(|error| failed("read KEYS", error))
    }

    /// Replaces the keys.
    pub(super) fn set_keys(&mut self, keys: &Keys) -> Result<(), DatapathError> {
        self.keys
            .set(0, keys, 0)
            .map_err(|error| failed("write KEYS", error))
    }

    /// A backend's traffic, summed over all CPUs.
    pub(super) fn backend_traffic(&self, index: u32) -> Result<BackendCounters, DatapathError> {
        let values = self
            .backend_counters
            .get(&index, 0)
            .map_err(|error| failed(format!("read BACKEND_COUNTERS[{index}]"), error))?;
        Ok(values
            .iter()
            .fold(BackendCounters::default(), |sum, one| BackendCounters {
                connections: sum.connections + one.connections,
                packets_in: sum.packets_in + one.packets_in,
                bytes_in: sum.bytes_in + one.bytes_in,
                packets_out: sum.packets_out + one.packets_out,
                bytes_out: sum.bytes_out + one.bytes_out,
            }))
    }

    /// How a backend has answered.
    pub(super) fn backend_signals(&self, index: u32) -> Result<BackendSignals, DatapathError> {
        self.backend_signals
            .get(&index, 0)
            .map_err(|error| failed(format!("read BACKEND_SIGNALS[{index}]"), error))
    }

    /// What is known of a backend that does not answer.
    pub(super) fn breaker(&self, index: u32) -> Result<Breaker, MapError> {
        self.breakers.get(&index, 0)
    }

    /// Connections to a backend that it was asked to open since it last answered.
    pub(super) fn unanswered(&self, index: u32) -> Result<u64, DatapathError> {
        self.breaker(index)
            .map(|breaker| breaker.unanswered)
            .map_err(|error| failed(format!("read BREAKERS[{index}]"), error))
    }

    /// A service's limits of new flows, and its counts.
    pub(super) fn openings(&self, service: u32) -> Result<Openings, DatapathError> {
        self.openings
            .get(&service, 0)
            .map_err(|error| failed(format!("read OPENINGS[{service}]"), error))
    }

    /// Sets a backend's traffic and load to zero, before its slot is reused.
    pub(super) fn clear_backend_traffic(&mut self, index: u32) -> Result<(), MapError> {
        self.breakers.set(index, Breaker::default(), 0)?;
        self.loads.set(index, Load::default(), 0)?;
        self.backend_signals.set(index, BackendSignals::default(), 0)?;
        let values = PerCpuValues::try_from(vec![BackendCounters::default(); self.cpus])?;
        self.backend_counters.set(index, values, 0)
    }

    /// Dropped packets for every pair of hook and reason.
    pub(super) fn drops(&self) -> Result<Vec<DropCount>, DatapathError> {
        let mut drops = Vec::new();
        for hook in Hook::ALL {
            for reason in DropReason::ALL {
                let packets = self
                    .drops
                    .get(&drop_index(hook, reason), 0)
                    .map_err(|error| failed("read DROPS", error))?
                    .iter()
                    .sum();
                drops.push(DropCount {
                    hook: hook.name().to_owned(),
                    reason: reason.name().to_owned(),
                    packets,
                });
            }
        }
        Ok(drops)
    }

    /// How often an event has happened since the maps were created.
    pub(super) fn events(&self, event: Event) -> Result<u64, DatapathError> {
        let values = self
            .events
            .get(&(event as u32), 0)
            .map_err(|error| failed("read EVENTS", error))?;
        Ok(values.iter().sum())
    }
}

pub(super) fn take<T>(programs: &mut Ebpf, name: &str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = programs
        .take_map(name)
        .ok_or_else(|| failed(format!("find the map {name}"), "the eBPF object does not have it"))?;
    T::try_from(map).map_err(|error| failed(format!("open the map {name}"), error))
}
