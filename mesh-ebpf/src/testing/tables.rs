//! The tables of a node, in ordinary collections. Nodes 1 and up at 10.0.0.0/24 have the others as peers.

use core::ptr::NonNull;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    affinity::AffinityMemory,
    flood::FloodMemory,
    mapped::MappedMemory,
    memory::{Flows, Memory},
    packets::RECEIVER_MAC,
    signals::SignalMemory,
};
use crate::{
    abi::{
        BACKEND_LOCAL, BACKEND_REMOTE, BREAKER_LIMIT, Backend, BackendCounters, BackendKey, Breaker, Choice,
        Config, Datagram, DatagramKey, DropReason, Event, Flow, FlowKey, FrontendKey, HELD_LENGTH, Held,
        HeldKey, Hook, Ipv6Address, Keys, KnownWay, Load, MAX_ANSWERS, MappedClient, NextHop, OwnKey, Policy,
        Report, Role, Service, SourceVerdicts, drop_index,
    },
    bytes::{Be16, Be32},
    frame::{ReadFrame, Route},
    tables::{DatagramEntry, FlowEntry, InsertError, Tables},
};

pub(crate) const GENEVE_PORT: u16 = 6081;
pub(crate) const INNER_MTU: u16 = 1452;
/// As in the header: the identifier in the 24 high bits.
pub(crate) const VNI: u32 = 0x00d0_c500;
pub(crate) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
/// Interface index of mesh0.
pub(crate) const MESH0: u32 = 9;
/// The interface towards peers.
const UPLINK: u32 = 2;
/// Nodes of the cluster, which know each other as peers.
const NODES: u8 = 3;

/// A way to the clients.
pub(crate) const CLIENT_ROUTE: Route = Route::Resolved(NextHop {
    address: Be32::new(0xc000_0201),
    interface: 3,
    source_mac: [2, 3, 0, 0, 0, 1],
    destination_mac: [2, 3, 0, 0, 0, 2],
    inner_mtu: 0,
    key: 0,
});

/// The address of a node.
pub(crate) fn node_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, node)
}

/// A replica of a service: a number unique in the cluster, and the node it runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replica {
    pub(crate) number: u8,
    pub(crate) node: u8,
}

impl Replica {
    /// A replica on a node.
    pub(crate) const fn on(node: u8, number: u8) -> Self {
        Self { number, node }
    }

    /// Its container's address on its node's bridge.
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 0, self.number)
    }

    /// The host end of its container's veth.
    pub(crate) fn interface(self) -> u32 {
        100 + u32::from(self.number)
    }

    fn backend(self, at_node: u8, service: u32, protocol: u8, port: u16) -> Backend {
        let local = self.node == at_node;
        Backend {
            generation: 1,
            service,
            key: BackendKey {
                address: Ipv4Addr::new(10, 200, 0, self.number).into(),
                port: Be16::new(port),
                protocol: u16::from(protocol),
            },
            target_port: Be16::new(80),
            tag: Be16::new(0x7a00 + u16::from(self.number)),
            location: if local { BACKEND_LOCAL } else { BACKEND_REMOTE },
            address: self.address().into(),
            interface: self.interface(),
            mac: [2, 8, 0, 0, 0, self.number],
            gateway_mac: [2, 8, 0, 0, 0, 254],
            peer: u32::from(self.node),
            ..Backend::default()
        }
    }
}

/// What a node's maps hold.
#[derive(Default)]
pub(crate) struct TestTables {
    pub(crate) config: Option<Config>,
    pub(crate) host_macs: BTreeSet<[u8; 6]>,
    pub(crate) published: BTreeSet<(u8, u16)>,
    pub(crate) frontends: BTreeMap<FrontendKey, u32>,
    pub(crate) services: BTreeMap<u32, Service>,
    pub(crate) ring: Vec<u32>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) backend_index: BTreeMap<BackendKey, u32>,
    /// What the container on an interface sees instead of clients of a network, by the first 24 bits of that.
    pub(crate) masquerades: BTreeMap<(u32, u32), Be32>,
    /// By policy, interface and source: a prefix of 120 bits, or `::` for all others.
    pub(crate) source_rules: BTreeMap<(u32, u32, Ipv6Address), SourceVerdicts>,
    pub(crate) peers: BTreeMap<Be32, u32>,
    pub(crate) next_hops: Vec<NextHop>,
    pub(crate) keys: Keys,
    /// The peers whose packets have carried a key.
    pub(crate) keyed: RefCell<BTreeSet<u32>>,
    /// Whether the table of half-open flows refuses new entries.
    pub(crate) full: Cell<bool>,
    /// Whether the table of open flows does.
    pub(crate) open_full: Cell<bool>,
    node: u8,
    /// Answers made in the present span of time.
    pub(crate) answers: Cell<u32>,
    own: RefCell<BTreeSet<OwnKey>>,
    datagrams: RefCell<BTreeMap<DatagramKey, Box<Datagram>>>,
    held: RefCell<BTreeMap<HeldKey, NonNull<Held>>>,
    scratch: Cell<Option<NonNull<Held>>>,
    memory: Memory,
    rotation: RefCell<BTreeMap<u32, u32>>,
    loads: RefCell<BTreeMap<u32, Load>>,
    open: Flows,
    half_open: Flows,
    counters: RefCell<BTreeMap<u32, BackendCounters>>,
    drops: RefCell<BTreeMap<u32, u32>>,
    events: RefCell<BTreeMap<u32, u32>>,
    pub(crate) reports: RefCell<Vec<Report>>,
    breakers: RefCell<BTreeMap<u32, Breaker>>,
    /// The kernel's clock.
    pub(crate) clock: Cell<u64>,
    random: Cell<u32>,
    fixed_random: Cell<Option<u32>>,
    pub(super) flood: FloodMemory,
    pub(super) affinity: AffinityMemory,
    pub(super) signals: SignalMemory,
    pub(super) mapped: MappedMemory,
    /// How often a breaker was looked up.
    pub(crate) breaker_look_ups: Cell<u32>,
}

impl TestTables {
    /// A node of the cluster that publishes nothing yet.
    pub(crate) fn node(node: u8) -> Self {
        let mut tables = Self {
            node,
            next_hops: vec![NextHop::default(); usize::from(NODES) + 1],
            config: Some(Config {
                now: 1000,
                node_address: node_address(node).into(),
                service_address: SERVICE_ADDRESS.into(),
                vni: Be32::new(VNI),
                geneve_port: Be16::new(GENEVE_PORT),
                inner_mtu: INNER_MTU,
                mesh0: MESH0,
                mesh0_mac: [2, 7, 0, 0, 0, node],
                knows_macs: 1,
                ..Config::default()
            }),
            host_macs: [RECEIVER_MAC].into(),
            ..Self::default()
        };
        for peer in (1..=NODES).filter(|peer| *peer != node) {
            let address = Be32::from(node_address(peer));
            tables.peers.insert(address, u32::from(peer));
            tables.next_hops[usize::from(peer)] = NextHop {
                address,
                interface: UPLINK,
                source_mac: [2, 1, 0, 0, 0, node],
                destination_mac: [2, 1, 0, 0, 0, peer],
                inner_mtu: 0,
                key: 0,
            };
        }
        tables
    }

    /// Publishes a service at the node's address and at the service address; its containers listen on
    /// port 80.
    pub(crate) fn publish(mut self, protocol: u8, port: u16, replicas: &[Replica]) -> Self {
        let service = self.services.len() as u32;
        self.services.insert(
            service,
            Service {
                ring_offset: self.ring.len() as u32,
                ring_length: replicas.len() as u32,
                choice: Choice::ROTATE,
                policy: Policy::NONE,
                port: Be16::new(port),
                protocol: u16::from(protocol),
            },
        );
        for replica in replicas {
            let index = self.backends.len() as u32;
            let backend = replica.backend(self.node, service, protocol, port);
            self.ring.push(index);
            self.backend_index.insert(backend.key, index);
            self.backends.push(backend);
        }
        self.published.insert((protocol, port));
        for address in [node_address(self.node), SERVICE_ADDRESS] {
            let key = FrontendKey {
                address: address.into(),
                port: Be16::new(port),
                protocol: u16::from(protocol),
            };
            self.frontends.insert(key, service);
        }
        self
    }

    /// The same node with replies that go to the client directly.
    pub(crate) fn direct(mut self) -> Self {
        self.config_mut().direct_return = 1;
        self
    }

    /// The settings, to change.
    pub(crate) fn config_mut(&mut self) -> &mut Config {
        self.config.as_mut().expect("settings")
    }

    /// How often a hook has dropped for a reason.
    pub(crate) fn drops(&self, hook: Hook, reason: DropReason) -> u32 {
        self.drops
            .borrow()
            .get(&drop_index(hook, reason))
            .copied()
            .unwrap_or(0)
    }

    /// Drops of all hooks and reasons.
    pub(crate) fn all_drops(&self) -> u32 {
        self.drops.borrow().values().sum()
    }

    /// How often an event has happened.
    pub(crate) fn events(&self, event: Event) -> u32 {
        self.events.borrow().get(&(event as u32)).copied().unwrap_or(0)
    }

    /// Forgets what has happened.
    pub(crate) fn forget_events(&self) {
        self.events.borrow_mut().clear();
    }

    /// Sets a backend's load.
    pub(crate) fn set_load(&self, backend: u32, value: u64, step: u64) {
        self.loads.borrow_mut().insert(backend, Load { value, step });
    }

    /// What was counted for a backend.
    pub(crate) fn counters(&self, backend: u32) -> BackendCounters {
        self.counters.borrow().get(&backend).copied().unwrap_or_default()
    }

    /// Fragments that wait.
    pub(crate) fn held_count(&self) -> usize {
        self.held.borrow().len()
    }

    /// Flow entries, of all roles.
    pub(crate) fn flow_count(&self) -> usize {
        self.open_count() + self.half_open.entries.borrow().len()
    }

    /// Entries of open flows.
    pub(crate) fn open_count(&self) -> usize {
        self.open.entries.borrow().len()
    }

    /// Makes every random number this one.
    pub(crate) fn fix_random(&self, random: u32) {
        self.fixed_random.set(Some(random));
    }

    /// Forgets all flows.
    pub(crate) fn forget_flows(&self) {
        self.open.forget();
        self.forget_half_open();
    }

    /// Forgets the half-open ones that only a backend's packets are found by, as an LRU map may.
    pub(crate) fn forget_other_entries(&self) {
        let of = |role: Role| {
            let entries = self.half_open.entries.borrow();
            // SAFETY: freed with the tables only.
            let found = entries
                .iter()
                .filter(|(_, entry)| unsafe { entry.as_ref() }.flow.role == role);
            found.map(|(key, _)| *key).collect::<Vec<_>>()
        };
        for key in [Role::REPLY, Role::ALIAS].into_iter().flat_map(of) {
            self.half_open.remove(&key);
        }
    }

    /// Forgets the half-open ones, as an LRU map may.
    pub(crate) fn forget_half_open(&self) {
        self.half_open.forget();
    }
}

impl Tables for TestTables {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn is_host_mac(&self, mac: [u8; 6]) -> bool {
        self.host_macs.contains(&mac)
    }

    fn is_published(&self, protocol: u8, port: u16) -> bool {
        self.published.contains(&(protocol, port))
    }

    fn is_backend_port(&self, protocol: u8, port: u16) -> bool {
        let mut local = self
            .backends
            .iter()
            .filter(|backend| backend.location == BACKEND_LOCAL);
        local.any(|backend| backend.key.protocol == u16::from(protocol) && backend.target_port.get() == port)
    }

    fn open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        // SAFETY: freed with the tables only, which the tests keep longer than any entry.
        self.open.find(key).map(|entry| unsafe { FlowEntry::new(entry) })
    }

    fn half_open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        // SAFETY: as above.
        self.half_open
            .find(key)
            .map(|entry| unsafe { FlowEntry::new(entry) })
    }

    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.full.get() {
            return Err(InsertError::Full);
        }
        self.half_open.store(key, flow);
        self.open.remove(key);
        Ok(())
    }

    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.flow(key).is_some() {
            return Err(InsertError::Exists);
        }
        self.put_flow(key, flow)
    }

    fn open_flow(&self, key: &FlowKey, entry: FlowEntry) -> Result<(), InsertError> {
        if self.open_full.get() {
            return Err(InsertError::Full);
        }
        self.open.store(key, &entry.copy());
        self.half_open.remove(key);
        self.count_event(Event::FlowOpened);
        Ok(())
    }

    fn random(&self) -> u32 {
        if let Some(fixed) = self.fixed_random.get() {
            return fixed;
        }
        let next = self
            .random
            .get()
            .wrapping_mul(747_796_405)
            .wrapping_add(2_891_336_453);
        self.random.set(next);
        crate::hash::mix(next)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<u32> {
        self.frontends.get(key).copied()
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(&index).copied()
    }

    fn ring(&self, slot: u32) -> Option<u32> {
        self.ring.get(slot as usize).copied()
    }

    fn rotate(&self, service: u32) -> u32 {
        let mut rotation = self.rotation.borrow_mut();
        let count = rotation.entry(service).or_default();
        *count = count.wrapping_add(1);
        count.wrapping_sub(1)
    }

    fn load(&self, backend: u32) -> u64 {
        self.loads.borrow().get(&backend).map_or(0, |load| load.value)
    }

    fn add_load(&self, backend: u32) {
        let mut loads = self.loads.borrow_mut();
        let load = loads.entry(backend).or_default();
        load.value += load.step;
    }

    fn clock(&self) -> u64 {
        self.clock.get()
    }

    fn moment(&self) -> u32 {
        KnownWay::moment(self.clock.get() >> 20)
    }

    fn breaker(&self, backend: u32) -> Breaker {
        self.breaker_look_ups.set(self.breaker_look_ups.get() + 1);
        self.breakers.borrow().get(&backend).copied().unwrap_or_default()
    }

    fn count_asked(&self, backend: u32) {
        let mut breakers = self.breakers.borrow_mut();
        let breaker = breakers.entry(backend).or_default();
        if breaker.unanswered == 0 {
            breaker.since = self.clock.get();
        }
        breaker.unanswered += 1;
    }

    fn note_answer(&self, backend: u32) {
        self.breaker_look_ups.set(self.breaker_look_ups.get() + 1);
        self.breakers.borrow_mut().entry(backend).or_default().unanswered = 0;
    }

    fn note_trial(&self, backend: u32, now: u64) {
        let mut breakers = self.breakers.borrow_mut();
        let breaker = breakers.entry(backend).or_default();
        (breaker.tried, breaker.unanswered) = (now, BREAKER_LIMIT - 1);
    }

    fn trip(&self, backend: u32, now: u64) {
        let breaker = Breaker {
            unanswered: BREAKER_LIMIT,
            since: 0,
            tried: now,
        };
        self.breakers.borrow_mut().insert(backend, breaker);
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize)
    }

    fn masquerade(&self, interface: u32, client: Be32) -> Option<Be32> {
        self.masquerades.get(&(interface, client.get() >> 8)).copied()
    }

    fn source_rule(&self, policy: Policy, interface: u32, client: &Ipv6Address) -> Option<SourceVerdicts> {
        self.verdicts(policy, interface, client)
    }

    fn mapped_client(&self, mapped: Be32) -> Option<MappedClient> {
        self.client_of(mapped)
    }

    fn backend_index(&self, key: &BackendKey) -> Option<u32> {
        self.backend_index.get(key).copied()
    }

    fn peer_index(&self, address: Be32) -> Option<u32> {
        self.peers.get(&address).copied()
    }

    fn keys(&self) -> Option<&Keys> {
        Some(&self.keys)
    }

    fn is_keyed(&self, peer: u32) -> bool {
        self.keyed.borrow().contains(&peer)
    }

    fn note_keyed(&self, peer: u32) {
        self.keyed.borrow_mut().insert(peer);
    }

    fn next_hop(&self, peer: u32) -> Option<&NextHop> {
        self.next_hops.get(peer as usize)
    }

    fn may_answer(&self) -> bool {
        self.answers.set(self.answers.get() + 1);
        u64::from(self.answers.get()) <= MAX_ANSWERS
    }

    fn is_own(&self, key: &OwnKey) -> bool {
        self.own.borrow().contains(key)
    }

    fn note_own(&self, key: &OwnKey) {
        self.own.borrow_mut().insert(*key);
    }

    fn datagram(&self, key: &DatagramKey) -> Option<DatagramEntry> {
        let mut datagrams = self.datagrams.borrow_mut();
        let datagram: &mut Datagram = datagrams.get_mut(key)?;
        // SAFETY: boxed, never removed, and nothing else refers to it meanwhile.
        Some(unsafe { DatagramEntry::new(NonNull::from(datagram)) })
    }

    fn new_datagram(&self, key: &DatagramKey, datagram: &Datagram) -> Option<DatagramEntry> {
        let make = || Box::new(*datagram);
        self.datagrams.borrow_mut().entry(*key).or_insert_with(make);
        self.datagram(key)
    }

    fn put_datagram(&self, key: &DatagramKey, datagram: &Datagram) {
        self.new_datagram(key, datagram);
        if let Some(known) = self.datagrams.borrow_mut().get_mut(key) {
            **known = *datagram;
        }
    }

    fn count_held(&self, datagram: DatagramEntry) -> u64 {
        datagram.set_held(datagram.held() + 1);
        datagram.held() - 1
    }

    fn count_released(&self, datagram: DatagramEntry) -> u64 {
        datagram.set_released(datagram.released() + 1);
        datagram.released() - 1
    }

    fn held(&self, key: &HeldKey) -> Option<&Held> {
        // SAFETY: freed with the tables only, and written no more.
        self.held.borrow().get(key).map(|held| unsafe { held.as_ref() })
    }

    fn hold_scratch(&self, key: &HeldKey) {
        let scratch = self.scratch().expect("there is some");
        // SAFETY: freed with the tables only, and nothing else uses it meanwhile.
        let held = self.memory.keep(unsafe { *scratch.as_ptr() });
        self.held.borrow_mut().insert(*key, held);
    }

    fn scratch(&self) -> Option<NonNull<Held>> {
        if self.scratch.get().is_none() {
            let empty = Held {
                length: 0,
                bytes: [0; HELD_LENGTH],
            };
            self.scratch.set(Some(self.memory.keep(empty)));
        }
        self.scratch.get()
    }

    fn count_connection(&self, backend: u32) {
        self.counters.borrow_mut().entry(backend).or_default().connections += 1;
    }

    fn count_in(&self, backend: u32, packets: u32, bytes: u32) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(backend).or_default();
        counters.packets_in += u64::from(packets);
        counters.bytes_in += u64::from(bytes);
    }

    fn count_out(&self, backend: u32, packets: u32, bytes: u32) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(backend).or_default();
        counters.packets_out += u64::from(packets);
        counters.bytes_out += u64::from(bytes);
    }

    fn count_drop(&self, hook: Hook, reason: DropReason) {
        *self
            .drops
            .borrow_mut()
            .entry(drop_index(hook, reason))
            .or_default() += 1;
    }

    fn report<F: ReadFrame>(&self, _: &F, report: Report) {
        self.reports.borrow_mut().push(report);
    }

    fn count_event(&self, event: Event) {
        *self.events.borrow_mut().entry(event as u32).or_default() += 1;
    }
}
