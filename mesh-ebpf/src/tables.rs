//! The maps that the packet logic reads and writes.

use core::ptr::NonNull;

pub use crate::flow_entry::FlowEntry;
use crate::{
    abi::{
        Backend, BackendKey, Breaker, Config, Datagram, DatagramKey, DatagramState, DropReason, Event, Flow,
        FlowKey, FrontendKey, Held, HeldKey, Hook, Ipv6Address, Keys, MappedClient, NextHop, OwnKey, Policy,
        Report, Service, SourceVerdicts,
    },
    affinity_tables::AffinityTables,
    flood_tables::FloodTables,
    frame::ReadFrame,
    signal_tables::SignalTables,
};

/// What is known of a fragmented packet, in memory that other CPUs may change at the same time.
#[derive(Clone, Copy, Debug)]
pub struct DatagramEntry(NonNull<Datagram>);

macro_rules! datagram_fields {
    ($($(#[$doc:meta])* $name:ident, $set:ident: $kind:ty),* $(,)?) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> $kind {
            // SAFETY: `new`'s contract; every field is an aligned integer, and accepts any bits.
            unsafe { (&raw const (*self.0.as_ptr()).$name).read() }
        }

        /// Sets it.
        #[inline(always)]
        pub fn $set(self, value: $kind) {
            // SAFETY: as above. Volatile: of several zeros in a row the compiler makes a call of `memset`,
            // which writes bytes.
            unsafe { (&raw mut (*self.0.as_ptr()).$name).write_volatile(value) };
        }
    )* };
}

impl DatagramEntry {
    /// An entry behind a pointer.
    ///
    /// # Safety
    /// As for [`FlowEntry::new`].
    #[inline(always)]
    pub unsafe fn new(pointer: NonNull<Datagram>) -> Self {
        Self(pointer)
    }

    datagram_fields! {
        /// When the first of its fragments was seen.
        since, set_since: u64,
        /// How many came before the first one.
        held, set_held: u64,
        /// How many of those have followed it, and 1.
        released, set_released: u64,
        /// What is known of it.
        state, set_state: DatagramState,
        /// How often they may yet wait.
        waits, set_waits: u32,
        /// Sender's port.
        source_port, set_source_port: crate::bytes::Be16,
        /// Receiver's port.
        destination_port, set_destination_port: crate::bytes::Be16,
        /// Where the first one ends.
        first_end, set_first_end: u16,
    }

    /// The entry's memory.
    #[inline(always)]
    pub fn pointer(self) -> NonNull<Datagram> {
        self.0
    }
}

/// An entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key was there already.
    Exists,
    /// The kernel refused.
    Full,
}

/// The maps. Every method is one look-up at most, where it does not say otherwise.
pub trait Tables: FloodTables + AffinityTables + SignalTables {
    /// Node-wide settings.
    fn config(&self) -> Option<&Config>;
    /// Whether an interface of this node has a MAC address.
    fn is_host_mac(&self, mac: [u8; 6]) -> bool;
    /// Whether any service publishes the port.
    fn is_published(&self, protocol: u8, port: u16) -> bool;
    /// Whether any backend of this node listens on the port, in its container.
    fn is_backend_port(&self, protocol: u8, port: u16) -> bool;
    /// The flow a packet belongs to: an open one (one look-up), or a half-open one (a second).
    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowEntry> {
        match self.open_entry(key) {
            Some(entry) => Some(entry),
            None => self.half_open_entry(key),
        }
    }
    /// An entry of the table of open flows. What follows a look-up in one table is half the work to verify of
    /// what follows one in both.
    fn open_entry(&self, key: &FlowKey) -> Option<FlowEntry>;
    /// An entry of the table of half-open flows.
    fn half_open_entry(&self, key: &FlowKey) -> Option<FlowEntry>;
    /// Replaces the entry that a key has in either table by one of a half-open flow.
    ///
    /// # Errors
    /// [`InsertError::Full`] when the table refuses.
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    /// Adds the entry of a half-open flow under a key that is new to both tables.
    ///
    /// # Errors
    /// [`InsertError::Exists`] when the key is not new, [`InsertError::Full`] when the table refuses.
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;
    /// Moves an entry to the table of open flows, where no new flow pushes it out. The entry is another one
    /// afterwards: look it up again.
    ///
    /// # Errors
    /// [`InsertError::Full`] when that table has no room: the entry is where it was.
    fn open_flow(&self, key: &FlowKey, entry: FlowEntry) -> Result<(), InsertError>;
    /// A number that no one can guess.
    fn random(&self) -> u32;
    /// Index of the service that answers at a frontend.
    fn frontend(&self, key: &FrontendKey) -> Option<u32>;
    /// A service by index.
    fn service(&self, index: u32) -> Option<Service>;
    /// Index of the backend in a slot of the ring table.
    fn ring(&self, slot: u32) -> Option<u32>;
    /// Counts a service's new flow; returns how many there were before.
    fn rotate(&self, service: u32) -> u32;
    /// A backend's load, to compare with those of the same service.
    fn load(&self, backend: u32) -> u64;
    /// Adds a flow to a backend's load.
    fn add_load(&self, backend: u32);
    /// The kernel's clock, in nanoseconds.
    fn clock(&self) -> u64;
    /// The kernel's clock, as ways to clients have it: [`crate::abi::KnownWay::moment`].
    fn moment(&self) -> u32;
    /// What is known of a backend that does not answer.
    fn breaker(&self, backend: u32) -> Breaker;
    /// Counts a flow that the backend has yet to answer.
    fn count_asked(&self, backend: u32);
    /// Records that the backend has answered.
    fn note_answer(&self, backend: u32);
    /// Records that a flow goes to the backend although it does not answer. One more that is not answered, or
    /// that comes back, and the backend is passed over again.
    fn note_trial(&self, backend: u32, now: u64);
    /// Passes over the backend from now on, until it answers.
    fn trip(&self, backend: u32, now: u64);
    /// A backend by index.
    fn backend(&self, index: u32) -> Option<&Backend>;
    /// A flow's backend, unless another one has its index by now.
    #[inline(always)]
    fn backend_of(&self, flow: FlowEntry) -> Option<&Backend> {
        self.backend(flow.backend())
            .filter(|backend| backend.generation == flow.generation())
    }
    /// The source that a container on an interface gets to see instead of a client whose address is of one of
    /// its networks.
    fn masquerade(&self, interface: u32, client: crate::bytes::Be32) -> Option<crate::bytes::Be32>;
    /// What a policy says of a client: the verdicts of its longest prefix.
    fn source_rule(&self, policy: Policy, interface: u32, client: &Ipv6Address) -> Option<SourceVerdicts>;
    /// The IPv6 client that an address stands for.
    fn mapped_client(&self, mapped: crate::bytes::Be32) -> Option<MappedClient>;
    /// Index of the backend with a cluster-wide name.
    fn backend_index(&self, key: &BackendKey) -> Option<u32>;
    /// Index of the peer with an address.
    fn peer_index(&self, address: crate::bytes::Be32) -> Option<u32>;
    /// The keys that peers' packets carry.
    fn keys(&self) -> Option<&Keys>;
    /// Whether the peer has sent packets with a key, so that it does not send any without.
    fn is_keyed(&self, peer: u32) -> bool;
    /// Records that the peer's packets carry a key.
    fn note_keyed(&self, peer: u32);
    /// The next hop to a peer.
    fn next_hop(&self, peer: u32) -> Option<&NextHop>;
    /// Whether this processor may make one more answer now; counts it.
    fn may_answer(&self) -> bool;
    /// Whether an answer to a process or container of this node is awaited.
    fn is_own(&self, key: &OwnKey) -> bool;
    /// Notes that one is awaited.
    fn note_own(&self, key: &OwnKey);
    /// A packet of which a fragment has been seen.
    fn datagram(&self, key: &DatagramKey) -> Option<DatagramEntry>;
    /// Makes the entry of one, unless there is one, and finds it again (two look-ups). Old ones are pushed
    /// out.
    fn new_datagram(&self, key: &DatagramKey, datagram: &Datagram) -> Option<DatagramEntry>;
    /// Replaces what is known of one.
    fn put_datagram(&self, key: &DatagramKey, datagram: &Datagram);
    /// Adds 1 to how many of its fragments came before the first one; returns how many there were before.
    fn count_held(&self, datagram: DatagramEntry) -> u64;
    /// Adds 1 to how many of those have followed it; returns how many there were before.
    fn count_released(&self, datagram: DatagramEntry) -> u64;
    /// A fragment that waits.
    fn held(&self, key: &HeldKey) -> Option<&Held>;
    /// Keeps the scratch memory as a fragment that waits. Old ones are pushed out.
    fn hold_scratch(&self, key: &HeldKey);
    /// Memory for the length of the program's run.
    fn scratch(&self) -> Option<NonNull<Held>>;
    /// Counts a new flow of a backend.
    fn count_connection(&self, backend: u32);
    /// Counts packets from clients.
    fn count_in(&self, backend: u32, packets: u32, bytes: u32);
    /// Counts packets to clients.
    fn count_out(&self, backend: u32, packets: u32, bytes: u32);
    /// Counts a drop.
    fn count_drop(&self, hook: Hook, reason: DropReason);
    /// Reports what became of a packet, if someone watches.
    fn report<F: ReadFrame>(&self, frame: &F, report: Report);
    /// Counts an event.
    fn count_event(&self, event: Event);
}
