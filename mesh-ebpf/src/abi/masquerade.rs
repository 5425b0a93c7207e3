//! Which clients a container would answer by one of its own networks, rather than by the host.

use crate::bytes::Be32;

/// A container and a client's address: the key of a longest-prefix match, of which the interface is always
/// compared whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Masquerade {
    /// Host end of the container's veth.
    pub interface: u32,
    /// The client's address, or the network that it is of.
    pub client: Be32,
}

impl Masquerade {
    /// Bits of the key before the client's address.
    pub const INTERFACE_BITS: u32 = 32;
    /// Bits of the key of a single client.
    pub const BITS: u32 = 64;
}

const _: () = assert!(size_of::<Masquerade>() * 8 == Masquerade::BITS as usize);
