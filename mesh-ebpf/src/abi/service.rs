//! Services: where they are answered, and how they choose a backend.

use super::{FlowKey, Policy};
use crate::bytes::{Be16, Be32};

/// Names a frontend: one answered (address, port, protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FrontendKey {
    /// An address of the node, or the service address.
    pub address: Be32,
    /// Published port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u16,
}

impl FrontendKey {
    /// The frontend that a client's packet is for.
    #[inline(always)]
    pub fn dialled(key: &FlowKey) -> Self {
        Self {
            address: key.destination,
            port: key.destination_port,
            protocol: key.protocol as u16,
        }
    }
}

/// How a slot of a service's ring is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Choice(u16);

impl Choice {
    /// One slot after the other.
    pub const ROTATE: Self = Self(0);
    /// By a hash of the client's address and port.
    pub const HASH_ENDPOINT: Self = Self(1);
    /// By a hash of the client's address.
    pub const HASH_ADDRESS: Self = Self(2);
    /// The less loaded of two slots.
    pub const LEAST: Self = Self(3);
    /// Any slot. (Programs of earlier releases take one after the other instead.)
    pub const RANDOM: Self = Self(4);

    /// The service's ring has the node's own backends, or all where it has none, and is followed by the
    /// number of the other backends' entries, and those.
    const PREFERS: u16 = 1 << 8;

    /// The same, where other backends are chosen only if those of the ring do not work.
    #[must_use]
    pub const fn preferring(self) -> Self {
        Self(self.0 | Self::PREFERS)
    }

    /// Whether other entries follow the ring's own.
    #[inline(always)]
    #[must_use]
    pub const fn prefers(self) -> bool {
        self.0 & Self::PREFERS != 0
    }

    /// How a slot is chosen, whether or not other entries follow.
    #[inline(always)]
    #[must_use]
    pub const fn within_ring(self) -> Self {
        Self(self.0 & !Self::PREFERS)
    }

    /// Whether all nodes choose the same backend for all packets of a client's port. Not where each prefers
    /// its own.
    #[inline(always)]
    pub const fn is_by_hash(self) -> bool {
        self.0 == Self::HASH_ENDPOINT.0 || self.0 == Self::HASH_ADDRESS.0
    }
}

/// A service's range of the ring table, replaced as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// First slot in the ring table.
    pub ring_offset: u32,
    /// Slots; 0 when the service has no active backend. Others may follow them: see [`Choice::prefers`].
    pub ring_length: u32,
    /// How a slot is chosen.
    pub choice: Choice,
    /// Who may come in. (The two are as long as the choice was alone, and an earlier agent left zeros here.)
    pub policy: Policy,
    /// Published port and protocol, so that an agent can adopt what it finds.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u16,
}

const _: () = assert!(size_of::<FrontendKey>() == 8);
const _: () = assert!(size_of::<Service>() == 16);
