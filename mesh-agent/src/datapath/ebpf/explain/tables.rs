//! The live maps as the packet logic reads them, without a write: what it writes is kept here, so that a
//! second program sees what the first has done, and what it reads is noted.

use std::{
    cell::{Cell, OnceCell, RefCell, UnsafeCell},
    collections::BTreeMap,
    net::Ipv6Addr,
    ptr::NonNull,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, lpm_trie::Key},
};
use mesh_ebpf::{
    abi::{
        Affinity, AffinityKey, Backend, BackendKey, Breaker, Config, Datagram, DatagramKey, DropReason,
        Event, FLOOD_MEMORY, Flow, FlowKey, FlowRecord, FrontendKey, Held, HeldKey, Hook, Ipv6Address, Keys,
        Load, MappedClient, Masquerade, NextHop, OWN_LIFETIME, Openings, OwnKey, Policy, Report, Service,
        Signal, SourceKey, SourceOpenings, SourceRule, SourceVerdicts, port_filter_bit, span,
    },
    affinity_tables::AffinityTables,
    bytes::Be32,
    flood_tables::{FloodTables, Mark, OpeningsEntry},
    frame::ReadFrame,
    headers::PROTOCOL_UDP,
    signal_tables::SignalTables,
    tables::{DatagramEntry, FlowEntry, InsertError, Tables},
};

use super::super::{super::DatapathError, failed, maps::Maps};

/// What the packet logic has read.
#[derive(Clone, Debug, Default)]
pub(super) struct Noted {
    pub(super) is_published: bool,
    pub(super) service: Option<u32>,
    pub(super) is_answer: bool,
    pub(super) verdicts: Option<SourceVerdicts>,
    pub(super) slots: Vec<(u32, u32)>,
    pub(super) has_affinity: bool,
    pub(super) breakers: BTreeMap<u32, Breaker>,
    pub(super) has_taken_turn: bool,
    pub(super) is_by_chance: bool,
    pub(super) is_past_limit: bool,
}

/// The maps, read only.
pub(super) struct LiveTables<'a> {
    maps: &'a Maps,
    /// Whom the packet comes from, if it is of IPv6.
    ipv6_client: Option<Ipv6Addr>,
    rotation: Array<&'a MapData, u64>,
    own_datagrams: HashMap<&'a MapData, OwnKey, u64>,
    source_openings: HashMap<&'a MapData, SourceKey, SourceOpenings>,
    flood: Array<&'a MapData, u64>,
    past_limit: Array<&'a MapData, u64>,
    untracked: Array<&'a MapData, Flow>,
    affinities: HashMap<&'a MapData, AffinityKey, Affinity>,
    config: Config,
    clock: u64,
    noted: RefCell<Noted>,
    failure: RefCell<Option<DatapathError>>,
    /// The flows by their keys; `None` for those that are not in the table. Open ones first.
    flows: [RefCell<BTreeMap<FlowKey, Option<FlowEntry>>>; 2],
    openings: RefCell<BTreeMap<u32, OpeningsEntry>>,
    marks: Cell<[bool; 3]>,
    flow_entries: Kept<UnsafeCell<FlowRecord>>,
    openings_entries: Kept<UnsafeCell<Openings>>,
    backends: Kept<Backend>,
    next_hops: Kept<NextHop>,
    keys: Kept<Keys>,
}

/// Values that are lent for as long as this is: none is moved or dropped before.
struct Kept<T>(OnceCell<(T, Box<Kept<T>>)>);

impl<T> Kept<T> {
    fn keep(&self, value: T) -> &T {
        let mut last = self;
        while let Some((_, next)) = last.0.get() {
            last = next;
        }
        &last.0.get_or_init(|| (value, Box::default())).0
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

/// Which table of flows.
const OPEN: usize = 0;
const HALF_OPEN: usize = 1;

impl<'a> LiveTables<'a> {
    /// Of a data path, at a time of the kernel's clock, for a packet of an IPv6 client if one is given.
    pub(super) fn new(
        programs: &'a Ebpf,
        maps: &'a Maps,
        clock: u64,
        ipv6_client: Option<Ipv6Addr>,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            maps,
            ipv6_client,
            rotation: map(programs, "ROTATION")?,
            own_datagrams: map(programs, "OWN_DATAGRAMS")?,
            source_openings: map(programs, "SOURCE_OPENINGS")?,
            flood: map(programs, "FLOOD")?,
            past_limit: map(programs, "PAST_LIMIT")?,
            untracked: map(programs, "UNTRACKED")?,
            affinities: map(programs, "AFFINITIES")?,
            config: maps.config()?,
            clock,
            noted: RefCell::default(),
            failure: RefCell::default(),
            flows: Default::default(),
            openings: RefCell::default(),
            marks: Cell::default(),
            flow_entries: Kept::default(),
            openings_entries: Kept::default(),
            backends: Kept::default(),
            next_hops: Kept::default(),
            keys: Kept::default(),
        })
    }

    /// What has been read; or why it could not be.
    pub(super) fn finish(self) -> Result<Noted, DatapathError> {
        match self.failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(self.noted.into_inner()),
        }
    }

    /// A value that was read. Where the kernel refuses, what follows is of no use.
    fn read<T>(&self, what: &str, read: Result<T, MapError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                *self.failure.borrow_mut() = Some(failed(format!("read {what}"), error));
                None
            }
        }
    }

    fn bit(&self, what: &str, filter: &Array<MapData, u64>, protocol: u8, port: u16) -> bool {
        let (index, bit) = port_filter_bit(protocol, port);
        let bits = self.read(what, filter.get(&index, 0));
        bits.is_some_and(|bits| bits >> bit & 1 != 0)
    }

    fn entry(&self, record: FlowRecord) -> FlowEntry {
        let entry = NonNull::from(self.flow_entries.keep(UnsafeCell::new(record))).cast();
        // SAFETY: the cell has the layout of the record in it, allows writes through shared references, and
        // is kept where it is for as long as this is borrowed, which it is while the packet logic runs.
        // Entries are used by one thread only, as this is not `Sync`.
        unsafe { FlowEntry::new(entry) }
    }

    fn flow_in(&self, table: usize, key: &FlowKey) -> Option<FlowEntry> {
        let known = self.flows[table].borrow().get(key).copied();
        known.unwrap_or_else(|| {
            let map = [&self.maps.flows, &self.maps.half_open][table];
            let found = self.read("the flow tables", map.get(key, 0));
            let entry = found.map(|record| self.entry(record));
            self.flows[table].borrow_mut().insert(*key, entry);
            entry
        })
    }

    fn put(&self, table: usize, key: &FlowKey, entry: Option<FlowEntry>) {
        self.flows[table].borrow_mut().insert(*key, entry);
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        note(&mut self.noted.borrow_mut());
    }
}

/// A map that the agent does not use otherwise.
fn map<'a, M>(programs: &'a Ebpf, name: &str) -> Result<M, DatapathError>
where
    M: TryFrom<&'a Map, Error = MapError>,
{
    let map = programs.map(name);
    map.ok_or_else(|| failed(format!("find the map {name}"), "the programs have no such map"))?
        .try_into()
        .map_err(|error| failed(format!("open the map {name}"), error))
}

impl Tables for LiveTables<'_> {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn is_published(&self, protocol: u8, port: u16) -> bool {
        let is_published = self.bit("PORT_FILTER", &self.maps.port_filter, protocol, port);
        self.note(|noted| noted.is_published |= is_published);
        is_published
    }

    fn is_backend_port(&self, protocol: u8, port: u16) -> bool {
        self.bit("BACKEND_PORTS", &self.maps.backend_ports, protocol, port)
    }

    fn open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        self.flow_in(OPEN, key)
    }

    fn half_open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        self.flow_in(HALF_OPEN, key)
    }

    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        self.put(HALF_OPEN, key, Some(self.entry((*flow).into())));
        self.put(OPEN, key, None);
        Ok(())
    }

    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.flow(key).is_some() {
            return Err(InsertError::Exists);
        }
        self.put(HALF_OPEN, key, Some(self.entry((*flow).into())));
        Ok(())
    }

    fn open_flow(&self, key: &FlowKey, entry: FlowEntry) -> Result<(), InsertError> {
        self.put(OPEN, key, Some(entry));
        self.put(HALF_OPEN, key, None);
        Ok(())
    }

    fn random(&self) -> u32 {
        self.note(|noted| noted.is_by_chance = true);
        fastrand::u32(..)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<u32> {
        let service = self.read("FRONTENDS", self.maps.frontends.get(key, 0));
        self.note(|noted| noted.service = service.or(noted.service));
        service
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.read("SERVICES", self.maps.services.get(&index, 0))
    }

    fn ring(&self, slot: u32) -> Option<u32> {
        let backend = self.read("RING", self.maps.ring.get(&slot, 0));
        self.note(|noted| noted.slots.extend(backend.map(|backend| (slot, backend))));
        backend
    }

    fn rotate(&self, service: u32) -> u32 {
        self.note(|noted| noted.has_taken_turn = true);
        self.read("ROTATION", self.rotation.get(&service, 0)).unwrap_or(0) as u32
    }

    fn load(&self, backend: u32) -> u64 {
        let load: Option<Load> = self.read("LOADS", self.maps.loads.get(&backend, 0));
        load.map_or(0, |load| load.value)
    }

    fn add_load(&self, _: u32) {}

    fn clock(&self) -> u64 {
        self.clock
    }

    /// Ways to clients are looked up when a decision is carried out.
    fn moment(&self) -> u32 {
        0
    }

    fn breaker(&self, backend: u32) -> Breaker {
        let breaker = self
            .read("BREAKERS", self.maps.breaker(backend))
            .unwrap_or_default();
        self.note(|noted| noted.breakers.extend([(backend, breaker)]));
        breaker
    }

    fn count_asked(&self, _: u32) {}

    fn note_answer(&self, _: u32) {}

    fn note_trial(&self, _: u32, _: u64) {}

    fn trip(&self, _: u32, _: u64) {}

    fn backend(&self, index: u32) -> Option<&Backend> {
        let backend = self.read("BACKENDS", self.maps.backends.get(&index, 0))?;
        Some(self.backends.keep(backend))
    }

    fn masquerade(&self, interface: u32, client: Be32) -> Option<Be32> {
        let key = Key::new(Masquerade::BITS, Masquerade { interface, client });
        self.read("MASQUERADES", self.maps.masquerades.get(&key, 0))
    }

    fn mapped_client(&self, mapped: Be32) -> Option<MappedClient> {
        // A client that the node does not know yet gets this address with the packet in question.
        let asked = self.ipv6_client.map(|address| MappedClient {
            address: address.into(),
            ..MappedClient::default()
        });
        asked.or_else(|| self.read("CLIENTS_BY_IPV4", self.maps.clients_by_ipv4.get(&mapped, 0)))
    }

    fn source_rule(&self, policy: Policy, interface: u32, client: &Ipv6Address) -> Option<SourceVerdicts> {
        let rule = SourceRule {
            policy: policy.id().into(),
            interface,
            padding: 0,
            source: client.0,
        };
        let key = Key::new(SourceRule::BITS, rule);
        let verdicts = self.read("SOURCE_RULES", self.maps.source_rules.get(&key, 0));
        self.note(|noted| noted.verdicts = verdicts);
        verdicts
    }

    fn backend_index(&self, key: &BackendKey) -> Option<u32> {
        self.read("BACKEND_INDEX", self.maps.backend_index.get(key, 0))
    }

    fn peer_index(&self, address: Be32) -> Option<u32> {
        self.read("PEER_INDEX", self.maps.peer_index.get(&address, 0))
    }

    fn keys(&self) -> Option<&Keys> {
        match self.maps.keys() {
            Ok(keys) => Some(self.keys.keep(keys)),
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                None
            }
        }
    }

    fn is_keyed(&self, peer: u32) -> bool {
        self.read("KEYED", self.maps.keyed.get(&peer, 0))
            .is_some_and(|keyed| keyed != 0)
    }

    fn note_keyed(&self, _: u32) {}

    fn next_hop(&self, peer: u32) -> Option<&NextHop> {
        let next_hop = self.read("NEXT_HOPS", self.maps.next_hops.get(&peer, 0))?;
        Some(self.next_hops.keep(next_hop))
    }

    fn may_answer(&self) -> bool {
        true
    }

    /// The packet is one that arrives at this node.
    fn is_host_mac(&self, _: [u8; 6]) -> bool {
        true
    }

    fn is_own(&self, key: &OwnKey) -> bool {
        let sent = self.read("OWN_DATAGRAMS", self.own_datagrams.get(key, 0));
        let is_answer = sent.is_some_and(|sent| self.clock.wrapping_sub(sent) < OWN_LIFETIME);
        self.note(|noted| noted.is_answer = is_answer);
        is_answer
    }

    fn note_own(&self, _: &OwnKey) {}

    // The packet is no fragment, and no ICMP message.
    fn datagram(&self, _: &DatagramKey) -> Option<DatagramEntry> {
        None
    }

    fn new_datagram(&self, _: &DatagramKey, _: &Datagram) -> Option<DatagramEntry> {
        None
    }

    fn put_datagram(&self, _: &DatagramKey, _: &Datagram) {}

    fn count_held(&self, _: DatagramEntry) -> u64 {
        0
    }

    fn count_released(&self, _: DatagramEntry) -> u64 {
        0
    }

    fn held(&self, _: &HeldKey) -> Option<&Held> {
        None
    }

    fn hold_scratch(&self, _: &HeldKey) {}

    fn scratch(&self) -> Option<NonNull<Held>> {
        None
    }

    fn count_connection(&self, _: u32) {}

    fn count_in(&self, _: u32, _: u32, _: u32) {}

    fn count_out(&self, _: u32, _: u32, _: u32) {}

    fn count_drop(&self, _: Hook, _: DropReason) {}

    fn report<F: ReadFrame>(&self, _: &F, _: Report) {}

    fn count_event(&self, _: Event) {}
}

impl SignalTables for LiveTables<'_> {
    fn count_signal(&self, _: u32, _: Signal) {}

    fn count_answer(&self, _: u32, _: usize, _: u64) {}
}

impl AffinityTables for LiveTables<'_> {
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.read("AFFINITIES", self.affinities.get(key, 0))
    }

    fn note_affinity(&self, _: &AffinityKey, _: &Affinity) {}

    fn takes_new_flows(&self, backend: u32, generation: u32) -> bool {
        let takes = self
            .maps
            .takes_new_flows(backend, generation)
            .unwrap_or_else(|error| {
                *self.failure.borrow_mut() = Some(error);
                false
            });
        self.note(|noted| noted.has_affinity = takes);
        takes
    }
}

impl FloodTables for LiveTables<'_> {
    fn stage(&self, flow: &Flow) -> Option<FlowEntry> {
        Some(self.entry((*flow).into()))
    }

    fn mark(&self, mark: Mark, value: bool) {
        let mut marks = self.marks.get();
        marks[mark as usize] = value;
        self.marks.set(marks);
    }

    fn is_marked(&self, mark: Mark) -> bool {
        self.marks.get()[mark as usize]
    }

    fn keep_untracked(&self, _: u32, _: &Flow) {}

    fn untracked(&self, slot: u32) -> Option<FlowEntry> {
        let kept = self.read("UNTRACKED", self.untracked.get(&slot, 0))?;
        Some(self.entry(kept.into()))
    }

    fn openings(&self, service: u32) -> Option<OpeningsEntry> {
        if let Some(known) = self.openings.borrow().get(&service) {
            return Some(*known);
        }
        let openings = self.read("OPENINGS", self.maps.openings.get(&service, 0))?;
        let entry = NonNull::from(self.openings_entries.keep(UnsafeCell::new(openings))).cast();
        // SAFETY: as in `entry`.
        let entry = unsafe { OpeningsEntry::new(entry) };
        self.openings.borrow_mut().insert(service, entry);
        Some(entry)
    }

    fn add_one(&self, counter: NonNull<u64>) -> u64 {
        // SAFETY: a field of an entry that `openings` made: aligned, and used by this thread only.
        unsafe {
            let before = counter.read();
            counter.write(before.wrapping_add(1));
            before
        }
    }

    fn count_source(&self, service: u32, client: Be32, span: u64) -> u64 {
        let key = SourceKey { service, client };
        let counted = self.read("SOURCE_OPENINGS", self.source_openings.get(&key, 0));
        let counted = counted.filter(|counted: &SourceOpenings| counted.span == span);
        counted.map_or(0, |counted| counted.opened) + 1
    }

    fn span(&self) -> u64 {
        span(self.clock)
    }

    fn is_flooded(&self) -> bool {
        let flooded = self.read("FLOOD", self.flood.get(&0, 0));
        flooded.is_some_and(|flooded| flooded != 0 && self.span().wrapping_sub(flooded) <= FLOOD_MEMORY)
    }

    fn note_flood(&self, _: u64) {}

    fn is_past_limit(&self, key: &FlowKey) -> bool {
        // As the port filter has them.
        let half = if key.protocol == u32::from(PROTOCOL_UDP) {
            65_536
        } else {
            0
        };
        let index = half + u32::from(key.destination_port.get());
        let past = self.read("PAST_LIMIT", self.past_limit.get(&index, 0));
        let is_past = past.is_some_and(|past| past != 0 && past == self.span());
        self.note(|noted| noted.is_past_limit |= is_past);
        is_past
    }

    fn note_past_limit(&self, _: &FlowKey, _: u64) {}
}
