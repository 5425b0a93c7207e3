//! The packet under work, whatever its kind: XDP frame, skb, or a test's bytes. Imports `bytes` and
//! `checksum`.

use crate::{
    abi::NextHop,
    bytes::{Be32, Plain},
    checksum::Difference,
};

/// The kernel refused to resize or rewrite the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A change to the words that a TCP or UDP checksum covers.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumChange {
    /// Offset of the checksum field in the frame.
    pub offset: usize,
    /// Whether the field is UDP's, where 0 means "none" and stays 0.
    pub udp: bool,
    /// Change of the pseudo header. Kept apart: an skb whose checksum the hardware is yet to finish
    /// holds the pseudo header's sum only.
    pub pseudo: Difference,
    /// Change of the L4 header or payload.
    pub body: Difference,
}

/// What the node's routes and neighbours say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The way is known.
    Resolved(NextHop),
    /// The interface is known, the neighbour's MAC address is not yet.
    Unresolved {
        /// Interface index.
        interface: u32,
    },
    /// There is no way, or none that may be forwarded on.
    None,
}

/// An Ethernet frame that can be read, rewritten and resized.
///
/// Reads and writes are bounds-checked each time; `None` means that the frame ends before. After any
/// method that takes `&mut self`, what was read before may have moved.
pub trait Frame {
    /// Bytes, Ethernet header included.
    fn length(&self) -> u32;

    /// Packets this frame stands for: more than 1 for what GRO or TSO has put together.
    fn segments(&self) -> u32;

    /// L4 payload bytes of each of those; 0 where the frame stands for itself.
    fn segment_size(&self) -> u32;

    /// The header at an offset.
    fn at<T: Plain>(&self, offset: usize) -> Option<&T>;

    /// The header at an offset, to write.
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Option<&mut T>;

    /// Updates a TCP or UDP checksum, finished or not.
    ///
    /// # Errors
    /// [`Refused`] when the frame ends before the field.
    fn change_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused>;

    /// Makes room for [`crate::headers::Outer`] behind the Ethernet header, whose content is then
    /// undefined as well.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn insert_outer(&mut self) -> Result<(), Refused>;

    /// Takes the same room away again.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not let it.
    fn remove_outer(&mut self) -> Result<(), Refused>;

    /// Makes the frame one of `L3` bytes behind an Ethernet header, of undefined content, with nothing
    /// left for the hardware to finish. For control messages.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not let it.
    fn renew<const L3: usize>(&mut self) -> Result<(), Refused>;

    /// The way to an address by the node's routes and neighbours.
    fn route(&self, source: Be32, destination: Be32, l3_length: u16) -> Route;
}
