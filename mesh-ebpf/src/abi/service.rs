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

    /// Whether all nodes choose the same backend for all packets of a client's port.
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
    /// Slots; 0 when the service has no active backend.
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
