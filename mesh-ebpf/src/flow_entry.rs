//! A flow's entry, as the packet logic reads and writes it.

use core::ptr::NonNull;

use crate::abi::{Endpoint, Flow, FlowRecord, KnownWay, Opening, Origin, Progress, Role, SEQUENCE_STEP};

/// A flow's entry, in memory that other CPUs may change at the same time.
#[derive(Clone, Copy, Debug)]
pub struct FlowEntry(NonNull<FlowRecord>);

/// Methods that read the fields of an entry that is shared with other CPUs; its address is that of `at`.
macro_rules! read {
    ($($(#[$doc:meta])* $name:ident: $kind:ty),* $(,)?) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(self) -> $kind {
            // SAFETY: `new`'s contract; every field is an aligned integer, and accepts any bits.
            unsafe { (&raw const (*self.at()).$name).read() }
        }
    )* };
}
pub(crate) use read;

impl FlowEntry {
    /// An entry behind a pointer.
    ///
    /// # Safety
    /// `pointer` must point to a `FlowRecord` that stays readable and writable while the entry is used. (In
    /// the kernel: a map value, valid until the program ends even when it is deleted meanwhile.)
    #[inline(always)]
    pub unsafe fn new(pointer: NonNull<FlowRecord>) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn at(self) -> *mut Flow {
        // SAFETY: a field of what `new`'s contract says is there.
        unsafe { &raw mut (*self.0.as_ptr()).flow }
    }

    read! {
        /// What the client dialled.
        frontend: Endpoint,
        /// The client.
        client: Endpoint,
        /// The source the backend sees.
        presented: Endpoint,
        /// Index of the backend.
        backend: u32,
        /// The backend's generation.
        generation: u32,
        /// The index of the flow's other node.
        peer: u32,
        /// The entry node's address.
        peer_address: crate::bytes::Be32,
        /// The client's direction.
        from_client: Progress,
        /// The backend's direction.
        from_backend: Progress,
        /// When a packet was last seen, on the agent's clock.
        seen: u32,
        /// Where client packets come from.
        origin: Origin,
        /// Which entry this is.
        role: Role,
        /// How its opening went.
        opening: Opening,
        /// The sequence number of the client's next packet, about.
        client_next: u32,
        /// The sequence number of the backend's next packet, about.
        backend_next: u32,
    }

    /// The way to the client, if it was looked up at this moment. (Another processor may be writing it: then
    /// the moment has just begun, and the way that it finds is the one that this one would.)
    #[inline(always)]
    pub fn way(self, moment: u32) -> Option<KnownWay> {
        // SAFETY: `new`'s contract; the field is aligned, and made of integers.
        let way = unsafe { (&raw const (*self.0.as_ptr()).way).read() };
        (way.moment == moment).then_some(way)
    }

    /// Records it.
    #[inline(always)]
    pub fn note_way(self, way: KnownWay) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).way).write(way) };
    }

    /// Records that a packet was seen. Writes only once a second, so that the cache line of a busy flow
    /// does not move between CPUs for every packet.
    #[inline(always)]
    pub fn touch(self, now: u32) {
        if self.seen() != now {
            // SAFETY: as in `read!`; the field is aligned.
            unsafe { (&raw mut (*self.at()).seen).write(now) };
        }
    }

    /// Whether either side has started to close.
    #[inline(always)]
    pub fn is_closing(self) -> bool {
        Progress::is_closing(self.from_client(), self.from_backend())
    }

    /// Whether both sides are done, or one has reset.
    #[inline(always)]
    pub fn is_closed(self) -> bool {
        Progress::is_closed(self.from_client(), self.from_backend())
    }

    /// Records the state of the client's direction.
    #[inline(always)]
    pub fn client_is(self, progress: Progress) {
        // SAFETY: as in `read!`; the field is aligned.
        unsafe { (&raw mut (*self.at()).from_client).write(progress) };
    }

    /// Records the state of the backend's direction.
    #[inline(always)]
    pub fn backend_is(self, progress: Progress) {
        // SAFETY: as in `read!`; the field is aligned.
        unsafe { (&raw mut (*self.at()).from_backend).write(progress) };
    }

    /// Leaves the connection to the kernel from now on.
    #[inline(always)]
    pub fn disown(self) {
        // SAFETY: as in `read!`; the field is a byte.
        unsafe { (&raw mut (*self.at()).role).write(Role::FOREIGN) };
    }

    /// Records that nothing has closed it.
    #[inline(always)]
    pub fn reopen(self) {
        self.client_is(Progress::OPEN);
        self.backend_is(Progress::OPEN);
    }

    /// Records how its opening went.
    #[inline(always)]
    pub fn opening_is(self, opening: Opening) {
        // SAFETY: as in `read!`; the field is aligned.
        unsafe { (&raw mut (*self.at()).opening).write(opening) };
    }

    /// When the backend was asked ([`crate::abi::asked_moment`]); 0 if that is not known, or it has answered.
    #[inline(always)]
    pub fn asked(self) -> u32 {
        if self.opening().is_answered() {
            0
        } else {
            self.client_next()
        }
    }

    /// Records that the backend has answered.
    #[inline(always)]
    pub fn note_answer(self) {
        // Until now it was when the backend was asked.
        // SAFETY: as in `read!`; the field is aligned.
        unsafe { (&raw mut (*self.at()).client_next).write(0) };
        self.opening_is(self.opening().answered());
    }

    /// Records the sequence number of the client's next packet, if it is far from the one known.
    #[inline(always)]
    pub fn note_client_next(self, next: u32) {
        if has_advanced(self.client_next(), next) {
            // SAFETY: as in `read!`; the field is aligned.
            unsafe { (&raw mut (*self.at()).client_next).write(next) };
        }
    }

    /// Records the sequence number of the backend's next packet, if it is far from the one known.
    #[inline(always)]
    pub fn note_backend_next(self, next: u32) {
        if has_advanced(self.backend_next(), next) {
            // SAFETY: as in `read!`; the field is aligned.
            unsafe { (&raw mut (*self.at()).backend_next).write(next) };
        }
    }

    /// The entry's memory, for the kernel to copy.
    #[inline(always)]
    pub fn pointer(self) -> NonNull<FlowRecord> {
        self.0
    }

    /// Whether another entry is of the same flow. (A port's next flow has the same client and frontend.)
    #[inline(always)]
    pub fn is_of_flow_of(self, other: Self) -> bool {
        self.backend() == other.backend()
            && self.generation() == other.generation()
            && self.presented() == other.presented()
    }

    /// Closes the flow, as a reset from its backend would.
    #[inline(always)]
    pub fn close(self) {
        self.backend_is(Progress::RESET);
    }

    /// A copy of the whole entry.
    #[cfg(test)]
    #[inline(always)]
    pub fn copy(self) -> Flow {
        // SAFETY: as in `read!`; a torn copy is still a valid `Flow`.
        unsafe { self.at().read() }
    }
}

/// Whether a sequence number is a step further than the one known, if any is.
#[inline(always)]
fn has_advanced(known: u32, next: u32) -> bool {
    // Half of the numbers are behind (RFC 9293, 3.4): sent again.
    known == 0 || (SEQUENCE_STEP..1 << 31).contains(&next.wrapping_sub(known))
}
