//! What the programs report of single packets, while an operator watches: one [`Observation`] each, in a ring
//! buffer.

/// Bytes that are copied of a packet, at most.
pub const CAPTURE_LENGTH: usize = 128;
/// Room for them behind an Ethernet header, which packets of layer 3 devices come without.
pub const HEAD_LENGTH: usize = 144;
/// Bytes of the ring buffer.
pub const OBSERVATIONS_LENGTH: u32 = 1 << 20;
/// Where an observation is about no backend.
pub const NO_BACKEND: u32 = u32::MAX;

/// What became of a packet's connection, or of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Observed {
    /// The entry node has opened a connection, or moved it to another backend.
    Opened = 0,
    /// Both sides have closed a connection.
    Closed = 1,
    /// The client has reset one.
    ResetByClient = 2,
    /// The backend has.
    ResetByBackend = 3,
    /// The packet is answered with a RST or an ICMP error. The reason is a [`super::DropReason`].
    Refused = 4,
    /// The packet is dropped. The reason is a [`super::DropReason`].
    Dropped = 5,
}

impl Observed {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Opened,
        Self::Closed,
        Self::ResetByClient,
        Self::ResetByBackend,
        Self::Refused,
        Self::Dropped,
    ];
}

/// What is to be reported of a packet; see [`Observation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What became of it.
    pub kind: Observed,
    /// Why it was dropped or refused, as a number; else 0.
    pub reason: u32,
    /// The backend's index, or [`NO_BACKEND`].
    pub backend: u32,
    /// The backend's generation.
    pub generation: u32,
}

/// One report, as it is in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Observation {
    /// The kernel's clock (`CLOCK_MONOTONIC`), in nanoseconds.
    pub clock: u64,
    /// How many observations this processor has not reported since its last one, as there were too many.
    pub skipped: u64,
    /// Index of the backend, or [`NO_BACKEND`].
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
    /// Index of the interface that the packet came in by.
    pub interface: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// An [`Observed`].
    pub kind: u32,
    /// A [`super::DropReason`], or 0.
    pub reason: u32,
    /// How many bytes of `head` there are.
    pub captured: u64,
    /// The first bytes of the frame, from its Ethernet header on; that of a packet which came without has no
    /// addresses.
    pub head: [u8; HEAD_LENGTH],
}

/// What one processor has reported, and may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reported {
    /// The span of the count: the kernel's clock in units of 2^30 ns.
    pub span: u64,
    /// How many it has reported in it.
    pub count: u64,
    /// How many it has not reported since its last one.
    pub skipped: u64,
}

const _: () = assert!(size_of::<Observation>() == 48 + HEAD_LENGTH);
const _: () = assert!(size_of::<Reported>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_by_its_number() {
        for (number, kind) in Observed::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}
