//! Clients that stay with their backends.

use crate::bytes::Be32;

/// Names a client of a service with affinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct AffinityKey {
    /// Index of the service.
    pub service: u32,
    /// Its address.
    pub client: Be32,
}

/// Where its last open flow went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// Index of the backend.
    pub backend: u32,
    /// The backend's generation.
    pub generation: u32,
    /// When the flow opened, in the kernel's nanoseconds.
    pub since: u64,
}

/// Clients that can be kept at their backends at a time.
pub const MAX_AFFINITIES: u32 = 65_536;

const _: () = assert!(size_of::<AffinityKey>() == 8);
const _: () = assert!(size_of::<Affinity>() == 16);
