//! The maps, and [`Tables`] over them.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns, bpf_map_update_elem},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key},
};
use mesh_ebpf::{
    abi::{
        Answered, BREAKER_LIMIT, Backend, BackendCounters, BackendKey, Breaker, CALLED_PROGRAMS, Config,
        DROP_COUNTERS, Datagram, DatagramKey, Dialled, DropReason, EVENT_COUNTERS, Event, Flow, FlowKey,
        FrontendKey, Held, HeldKey, Hook, Ipv6Address, Keys, KnownWay, Load, MAX_ANSWERS, MAX_BACKENDS,
        MAX_DATAGRAMS, MAX_FRONTENDS, MAX_HELD, MAX_HOST_MACS, MAX_MAPPED_CLIENTS, MAX_MASQUERADES, MAX_OWN,
        MAX_PEERS, MAX_RING, MAX_SERVICES, MAX_SOURCE_RULES, MappedClient, Masquerade, NextHop, OWN_LIFETIME,
        OwnKey, PORT_FILTER_ENTRIES, Policy, Report, Service, SourceRule, SourceVerdicts, drop_index,
        mac_key, port_filter_bit,
    },
    bytes::Be32,
    frame::ReadFrame,
    tables::{DatagramEntry, FlowEntry, InsertError, Tables},
};

use crate::{
    flow_maps::{FLOWS, HALF_OPEN, entry, insert, update},
    monitor_maps,
};

const BPF_NOEXIST: u64 = 1;

/// Node-wide settings, one entry.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::pinned(1, 0);
/// The MAC addresses of this node's interfaces.
#[map]
static HOST_MACS: HashMap<u64, u32> = HashMap::pinned(MAX_HOST_MACS, 0);
/// One bit per published port.
#[map]
static PORT_FILTER: Array<u64> = Array::pinned(PORT_FILTER_ENTRIES, 0);
/// One bit per port that a backend of this node listens on.
#[map]
static BACKEND_PORTS: Array<u64> = Array::pinned(PORT_FILTER_ENTRIES, 0);
/// Which service answers at an address and port.
#[map]
static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::pinned(MAX_FRONTENDS, 0);
/// Services by index; a hash, not an array, because its updates are atomic.
#[map]
static SERVICES: HashMap<u32, Service> = HashMap::pinned(MAX_SERVICES, 0);
/// How many flows each service has had, for rotation.
#[map]
static ROTATION: Array<u64> = Array::pinned(MAX_SERVICES, 0);
/// Load of each backend whose service chooses by it.
#[map]
static LOADS: Array<Load> = Array::pinned(MAX_BACKENDS, 0);
/// Backends that do not answer, by index.
#[map]
static BREAKERS: Array<Breaker> = Array::pinned(MAX_BACKENDS, 0);
/// Backend indexes; each service has a range.
#[map]
static RING: Array<u32> = Array::pinned(MAX_RING, 0);
/// Backends by index.
#[map]
static BACKENDS: Array<Backend> = Array::pinned(MAX_BACKENDS, 0);
/// Backends by cluster-wide name.
#[map]
static BACKEND_INDEX: HashMap<BackendKey, u32> = HashMap::pinned(MAX_BACKENDS, 0);
/// Traffic of each backend.
#[map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::pinned(MAX_BACKENDS, 0);
/// Peers by address.
#[map]
static PEER_INDEX: HashMap<Be32, u32> = HashMap::pinned(MAX_PEERS, 0);
/// What containers see instead of clients of their own networks.
#[map]
static MASQUERADES: LpmTrie<Masquerade, Be32> = LpmTrie::pinned(MAX_MASQUERADES, 0);
/// Who may come in, by policy.
#[map]
static SOURCE_RULES: LpmTrie<SourceRule, SourceVerdicts> = LpmTrie::pinned(MAX_SOURCE_RULES, 0);
/// The keys that peers' packets carry, one entry.
#[map]
static KEYS: Array<Keys> = Array::pinned(1, 0);
/// Which peers' packets carry a key, by index: 1, or 0 until one has.
#[map]
static KEYED: Array<u64> = Array::pinned(MAX_PEERS, 0);
/// The next hop to each peer, by index.
#[map]
static NEXT_HOPS: Array<NextHop> = Array::pinned(MAX_PEERS, 0);
/// Drops by hook and reason.
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_COUNTERS, 0);
/// Node-wide event counts.
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(EVENT_COUNTERS, 0);
/// What local processes dialled, by socket cookie.
#[map]
pub(crate) static DIALLED: LruHashMap<u64, Dialled> = LruHashMap::pinned(65_536, 0);

/// How many answers each processor has made, one entry.
#[map]
static ANSWERED: PerCpuArray<Answered> = PerCpuArray::pinned(1, 0);
/// When this node's processes and containers last sent datagrams from published ports. New ones push out old
/// ones.
#[map]
static OWN_DATAGRAMS: LruHashMap<OwnKey, u64> = LruHashMap::pinned(MAX_OWN, 0);
/// Packets of which fragments have been seen. New ones push out old ones.
#[map]
static DATAGRAMS: LruHashMap<DatagramKey, Datagram> = LruHashMap::pinned(MAX_DATAGRAMS, 0);
/// Fragments that came before the first one of their packet. New ones push out old ones.
#[map]
static HELD: LruHashMap<HeldKey, Held> = LruHashMap::pinned(MAX_HELD, 0);
/// Whom the IPv4 addresses of IPv6 clients stand for.
#[map]
pub(crate) static CLIENTS_BY_IPV4: LruHashMap<Be32, MappedClient> = LruHashMap::pinned(MAX_MAPPED_CLIENTS, 0);
/// Memory for what is too large for the stack, one entry.
#[map]
static SCRATCH: PerCpuArray<Held> = PerCpuArray::pinned(1, 0);
/// The programs that others call.
#[map]
pub(crate) static CALLED: ProgramArray = ProgramArray::pinned(CALLED_PROGRAMS, 0);

/// A key of [`SOURCE_RULES`] in units of 8 bytes. Of smaller ones the compiler joins any two, also where the
/// verifier refuses it.
#[repr(transparent)]
struct SourceKey([u64; 4]);

/// Two fields that are next to each other in memory.
#[inline(always)]
fn pair(first: u32, second: u32) -> u64 {
    u64::from_le(u64::from(first) | u64::from(second) << 32)
}

const _: () = assert!(size_of::<SourceKey>() == size_of::<Key<SourceRule>>());

/// The kernel's maps.
pub(crate) struct KernelTables;

#[inline(always)]
fn add(map: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: a per-CPU array's value is this CPU's own, and the pointer was checked.
        unsafe { *counter += 1 };
    }
}

/// Adds to a counter that other CPUs change at the same time; returns the sum before. BPF has the
/// instruction (Linux 5.12), but core has no atomics for this target.
///
/// # Safety
/// `counter` must point to an aligned u64 that stays writable.
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, mut value: u64) -> u64 {
    // SAFETY: this function's contract.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            value = inout(reg) value, counter = in(reg) counter);
    }
    value
}

/// Counts one more of what may happen `most` times on each CPU in about a second; whether it may.
#[inline(always)]
pub(crate) fn is_within(counts: &PerCpuArray<Answered>, clock: u64, most: u64) -> bool {
    let Some(counts) = counts.get_ptr_mut(0) else {
        return false;
    };
    let span = clock >> 30;
    // SAFETY: a per-CPU array's value is this CPU's own, and the pointer was checked.
    let counts = unsafe { &mut *counts };
    if counts.span != span {
        (counts.span, counts.count) = (span, 0);
    }
    counts.count += 1;
    counts.count <= most
}

impl Tables for KernelTables {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn is_published(&self, protocol: u8, port: u16) -> bool {
        let (index, bit) = port_filter_bit(protocol, port);
        PORT_FILTER.get(index).is_some_and(|bits| bits >> bit & 1 != 0)
    }

    #[inline(always)]
    fn is_backend_port(&self, protocol: u8, port: u16) -> bool {
        let (index, bit) = port_filter_bit(protocol, port);
        BACKEND_PORTS.get(index).is_some_and(|bits| bits >> bit & 1 != 0)
    }

    #[inline(always)]
    fn open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        entry(FLOWS.get_ptr_mut(key)?)
    }

    #[inline(always)]
    fn half_open_entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        entry(HALF_OPEN.get_ptr_mut(key)?)
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        insert(key, flow, 0)?;
        if FLOWS.remove(key).is_ok() {
            self.count_event(Event::FlowInserted);
        }
        Ok(())
    }

    #[inline(always)]
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if FLOWS.get_ptr(key).is_some() {
            return Err(InsertError::Exists);
        }
        insert(key, flow, BPF_NOEXIST).inspect(|()| self.count_event(Event::FlowInserted))
    }

    #[inline(always)]
    fn open_flow(&self, key: &FlowKey, entry: FlowEntry) -> Result<(), InsertError> {
        // SAFETY: one of the flow tables, and a record in the other.
        let result = unsafe { update(&raw const FLOWS, key, entry.pointer().as_ptr(), 0) };
        if result != 0 {
            return Err(InsertError::Full);
        }
        // Found in the other table from now on, even if this fails: then it is pushed out some time.
        let _ = HALF_OPEN.remove(key);
        self.count_event(Event::FlowOpened);
        Ok(())
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<u32> {
        // SAFETY: the value is read at once; the agent replaces it whole.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        // SAFETY: the value is copied at once; the agent replaces it whole.
        unsafe { SERVICES.get(index) }.copied()
    }

    #[inline(always)]
    fn ring(&self, slot: u32) -> Option<u32> {
        RING.get(slot).copied()
    }

    #[inline(always)]
    fn rotate(&self, service: u32) -> u32 {
        match ROTATION.get_ptr_mut(service) {
            // SAFETY: an aligned u64 in a map value, which lives as long as the program runs.
            Some(counter) => unsafe { fetch_add(counter, 1) as u32 },
            None => 0,
        }
    }

    #[inline(always)]
    fn load(&self, backend: u32) -> u64 {
        LOADS.get(backend).map_or(0, |load| load.value)
    }

    #[inline(always)]
    fn add_load(&self, backend: u32) {
        if let Some(load) = LOADS.get_ptr_mut(backend) {
            // SAFETY: checked; `value` is an aligned u64 in a map value, which lives as long as the
            // program runs, and the agent alone writes `step`.
            unsafe {
                let step = (&raw const (*load).step).read();
                fetch_add(&raw mut (*load).value, step);
            }
        }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn moment(&self) -> u32 {
        // SAFETY: a helper without arguments, which the kernel's verifier replaces by one load.
        KnownWay::moment(unsafe { bpf_jiffies64() })
    }

    #[inline(always)]
    fn breaker(&self, backend: u32) -> Breaker {
        BREAKERS.get(backend).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn count_asked(&self, backend: u32) {
        if let Some(breaker) = BREAKERS.get_ptr_mut(backend) {
            // SAFETY: checked; aligned u64s in a map value, which lives as long as the program runs.
            unsafe {
                if fetch_add(&raw mut (*breaker).unanswered, 1) == 0 {
                    (&raw mut (*breaker).since).write(self.clock());
                }
            }
        }
    }

    #[inline(always)]
    fn note_answer(&self, backend: u32) {
        if let Some(breaker) = BREAKERS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe { (&raw mut (*breaker).unanswered).write(0) };
        }
    }

    #[inline(always)]
    fn note_trial(&self, backend: u32, now: u64) {
        if let Some(breaker) = BREAKERS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*breaker).tried).write(now);
                (&raw mut (*breaker).unanswered).write(BREAKER_LIMIT - 1);
            }
        }
    }

    #[inline(always)]
    fn trip(&self, backend: u32, now: u64) {
        if let Some(breaker) = BREAKERS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*breaker).tried).write(now);
                (&raw mut (*breaker).since).write(0);
                (&raw mut (*breaker).unanswered).write(BREAKER_LIMIT);
            }
        }
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<&Backend> {
        BACKENDS.get(index)
    }

    #[inline(always)]
    fn masquerade(&self, interface: u32, client: Be32) -> Option<Be32> {
        let key = Key::new(Masquerade::BITS, Masquerade { interface, client });
        MASQUERADES.get(&key).copied()
    }

    #[inline(always)]
    fn mapped_client(&self, mapped: Be32) -> Option<MappedClient> {
        // SAFETY: the value is copied at once; an update replaces it whole.
        unsafe { CLIENTS_BY_IPV4.get(mapped) }.copied()
    }

    #[inline(always)]
    fn source_rule(&self, policy: Policy, interface: u32, client: &Ipv6Address) -> Option<SourceVerdicts> {
        let Ipv6Address([first, second, third, fourth]) = *client;
        let key = SourceKey([
            pair(SourceRule::BITS, u32::from(policy.id())),
            pair(interface, 0),
            pair(first.raw(), second.raw()),
            pair(third.raw(), fourth.raw()),
        ]);
        // SAFETY: the two have the same size, and the other one has integers only and no alignment.
        let key = unsafe { &*(&raw const key).cast::<Key<SourceRule>>() };
        SOURCE_RULES.get(key).copied()
    }

    #[inline(always)]
    fn backend_index(&self, key: &BackendKey) -> Option<u32> {
        // SAFETY: the value is copied at once.
        unsafe { BACKEND_INDEX.get(key) }.copied()
    }

    #[inline(always)]
    fn peer_index(&self, address: Be32) -> Option<u32> {
        // SAFETY: the value is copied at once.
        unsafe { PEER_INDEX.get(address) }.copied()
    }

    #[inline(always)]
    fn keys(&self) -> Option<&Keys> {
        KEYS.get(0)
    }

    #[inline(always)]
    fn is_keyed(&self, peer: u32) -> bool {
        KEYED.get(peer).is_some_and(|keyed| *keyed != 0)
    }

    #[inline(always)]
    fn note_keyed(&self, peer: u32) {
        if let Some(keyed) = KEYED.get_ptr_mut(peer) {
            // SAFETY: checked; an aligned u64 in a map value, which lives as long as the program runs.
            unsafe { keyed.write(1) };
        }
    }

    #[inline(always)]
    fn next_hop(&self, peer: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(peer)
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let may = is_within(&ANSWERED, self.clock(), MAX_ANSWERS);
        if !may {
            self.count_event(Event::AnswerSuppressed);
        }
        may
    }

    #[inline(always)]
    fn is_host_mac(&self, mac: [u8; 6]) -> bool {
        // SAFETY: the value is not read.
        unsafe { HOST_MACS.get(mac_key(mac)) }.is_some()
    }

    #[inline(always)]
    fn is_own(&self, key: &OwnKey) -> bool {
        // SAFETY: the value is read at once.
        unsafe { OWN_DATAGRAMS.get(key) }.is_some_and(|sent| self.clock().wrapping_sub(*sent) < OWN_LIFETIME)
    }

    #[inline(always)]
    fn note_own(&self, key: &OwnKey) {
        let _ = OWN_DATAGRAMS.insert(key, self.clock(), 0);
    }

    #[inline(always)]
    fn datagram(&self, key: &DatagramKey) -> Option<DatagramEntry> {
        let pointer = NonNull::new(DATAGRAMS.get_ptr_mut(key)?)?;
        // SAFETY: as an entry of the flow tables.
        Some(unsafe { DatagramEntry::new(pointer) })
    }

    #[inline(always)]
    fn new_datagram(&self, key: &DatagramKey, datagram: &Datagram) -> Option<DatagramEntry> {
        // Another CPU may have made it. Without room, its later fragments are unknown, and counted as such.
        let _ = DATAGRAMS.insert(key, datagram, BPF_NOEXIST);
        self.datagram(key)
    }

    #[inline(always)]
    fn put_datagram(&self, key: &DatagramKey, datagram: &Datagram) {
        // As above.
        let _ = DATAGRAMS.insert(key, datagram, 0);
    }

    #[inline(always)]
    fn count_held(&self, datagram: DatagramEntry) -> u64 {
        // SAFETY: an aligned u64 in a map value, which lives as long as the program runs.
        unsafe { fetch_add(&raw mut (*datagram.pointer().as_ptr()).held, 1) }
    }

    #[inline(always)]
    fn count_released(&self, datagram: DatagramEntry) -> u64 {
        // SAFETY: as above.
        unsafe { fetch_add(&raw mut (*datagram.pointer().as_ptr()).released, 1) }
    }

    #[inline(always)]
    fn held(&self, key: &HeldKey) -> Option<&Held> {
        // SAFETY: the value stays readable until the program ends. If it is pushed out meanwhile, its bytes
        // can be another fragment's, which the receiver of the packet then does not put together.
        unsafe { HELD.get(key) }
    }

    #[inline(always)]
    fn hold_scratch(&self, key: &HeldKey) {
        if let Some(scratch) = self.scratch() {
            // SAFETY: the map's own address, and a key and a value that the program may read. Not by way of
            // a copy of the value, for which the stack is too small.
            unsafe {
                bpf_map_update_elem(
                    (&raw const HELD).cast_mut().cast(),
                    (&raw const *key).cast(),
                    scratch.as_ptr().cast_const().cast(),
                    0,
                )
            };
        }
    }

    #[inline(always)]
    fn scratch(&self) -> Option<NonNull<Held>> {
        NonNull::new(SCRATCH.get_ptr_mut(0)?)
    }

    #[inline(always)]
    fn count_connection(&self, backend: u32) {
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own value, checked.
            unsafe { (*counters).connections += 1 };
        }
    }

    #[inline(always)]
    fn count_in(&self, backend: u32, packets: u32, bytes: u32) {
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own value, checked.
            unsafe {
                (*counters).packets_in += u64::from(packets);
                (*counters).bytes_in += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_out(&self, backend: u32, packets: u32, bytes: u32) {
        if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own value, checked.
            unsafe {
                (*counters).packets_out += u64::from(packets);
                (*counters).bytes_out += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, hook: Hook, reason: DropReason) {
        add(&DROPS, drop_index(hook, reason));
    }

    #[inline(always)]
    fn report<F: ReadFrame>(&self, frame: &F, report: Report) {
        monitor_maps::report(frame, || self.clock(), report);
    }

    #[inline(always)]
    fn count_event(&self, event: Event) {
        add(&EVENTS, event as u32);
    }
}
