//! The maps of what becomes of new flows past their service's limits. Part of [`crate::tables::Tables`].

use core::ptr::NonNull;

use crate::{
    abi::{Flow, FlowKey, Openings},
    bytes::Be32,
    flow_entry::{FlowEntry, read},
};

/// A service's limits of new flows and its counts, in memory that other CPUs may change at the same time.
#[derive(Clone, Copy, Debug)]
pub struct OpeningsEntry(NonNull<Openings>);

macro_rules! openings_counters {
    ($($(#[$doc:meta])* $name:ident, $counter:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $counter(self) -> NonNull<u64> {
            // SAFETY: a field of what `new`'s contract says is there.
            unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).$name) }
        }
    )* };
}

impl OpeningsEntry {
    /// An entry behind a pointer.
    ///
    /// # Safety
    /// As for [`FlowEntry::new`].
    #[inline(always)]
    pub unsafe fn new(pointer: NonNull<Openings>) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn at(self) -> *mut Openings {
        self.0.as_ptr()
    }

    read! {
        /// The limit of new flows; 0 for none.
        max_new: u32,
        /// The limit of one client's; 0 for none.
        max_new_per_source: u32,
        /// Past this many, flows get no entries; 0 for never.
        flood_limit: u32,
        /// Seconds for which a client stays with its backend; 0 for no affinity.
        affinity: u32,
        /// The span of the counts.
        span: u64,
        /// The last span with a flood; 0 for none.
        flooded: u64,
    }

    openings_counters! {
        /// Counts first packets of clients.
        opened, opened_counter,
        /// Counts first packets from peers.
        forwarded, forwarded_counter,
        /// Counts packets in mid-connection.
        continued, continued_counter,
        /// Counts first packets past the limit.
        past_max_new, past_max_new_counter,
        /// Counts first packets past the limit of one client.
        past_max_new_per_source, past_max_new_per_source_counter,
    }

    /// Begins to count anew.
    #[inline(always)]
    pub fn begin(self, span: u64) {
        // SAFETY: as above; the fields are aligned. Volatile: the compiler would make a call of `memset`,
        // which writes bytes.
        unsafe {
            (&raw mut (*self.0.as_ptr()).span).write_volatile(span);
            (&raw mut (*self.0.as_ptr()).opened).write_volatile(0);
            (&raw mut (*self.0.as_ptr()).forwarded).write_volatile(0);
            (&raw mut (*self.0.as_ptr()).continued).write_volatile(0);
        }
    }

    /// Records a flood.
    #[inline(always)]
    pub fn set_flooded(self, span: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).flooded).write(span) };
    }
}

/// What is noted about a packet of an unknown flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mark {
    /// Its backend is chosen by a hash.
    Hashed = 0,
    /// Its flow gets entries.
    Tracked = 1,
    /// It may be the first one of its flow.
    First = 2,
}

/// The maps. Every method is one look-up at most.
pub trait FloodTables {
    /// Memory for a flow, for the length of the program's run: it has no entry, or its entry need not be
    /// looked up again.
    fn stage(&self, flow: &Flow) -> Option<FlowEntry>;
    /// Notes something about the packet for the length of the program's run.
    ///
    /// Not in a variable: of what it reads back from memory the verifier knows nothing, and so it goes
    /// through what follows once, instead of once for each value.
    fn mark(&self, mark: Mark, value: bool);
    /// What was noted.
    fn is_marked(&self, mark: Mark) -> bool;
    /// Keeps a flow that has no entry in a slot, for its replies. Another one may take the slot at once.
    fn keep_untracked(&self, slot: u32, flow: &Flow);
    /// The flow in a slot, staged.
    fn untracked(&self, slot: u32) -> Option<FlowEntry>;
    /// A service's limits of new flows, and its counts.
    fn openings(&self, service: u32) -> Option<OpeningsEntry>;
    /// Adds 1 to a counter of an entry that other CPUs change at the same time; returns the sum before.
    fn add_one(&self, counter: NonNull<u64>) -> u64;
    /// Counts a client's new flow; returns how many of the service it has had in this span.
    fn count_source(&self, service: u32, client: Be32, span: u64) -> u64;
    /// The kernel's clock, in spans.
    fn span(&self) -> u64;
    /// Whether any service was flooded a short while ago.
    fn is_flooded(&self) -> bool;
    /// Records that one is.
    fn note_flood(&self, span: u64);
    /// Whether the service of a client's first packet is past its flood limit in this span.
    fn is_past_limit(&self, key: &FlowKey) -> bool;
    /// Records that it is.
    fn note_past_limit(&self, key: &FlowKey, span: u64);
}
