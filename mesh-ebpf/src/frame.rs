//! The packet being processed: an XDP frame, an skb, or a test's bytes.

use core::ptr::NonNull;

use crate::{
    abi::{CAPTURE_LENGTH, HEAD_LENGTH, Held, Ipv6Address, NextHop},
    bytes::{Be32, Plain},
    checksum::Difference,
    headers::{Ipv4, Ipv6},
};

/// The kernel refused to resize or rewrite the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A change to what a TCP or UDP checksum covers.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumChange {
    /// Offset of the checksum field in the frame.
    pub offset: usize,
    /// Whether the field is UDP's, where 0 means "none" and stays 0.
    pub udp: bool,
    /// Change of the pseudo header. Separate, because an skb whose checksum the hardware is to finish
    /// holds the sum of the pseudo header only.
    pub pseudo: Difference,
    /// Change of the L4 header or payload.
    pub body: Difference,
}

/// How the node's routes and neighbours lead to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Interface and MAC addresses are known, and what it carries: `inner_mtu` is the route's MTU, or (before
    /// Linux 5.12) the length of the packet asked about, or 0.
    Resolved(NextHop),
    /// The interface is known, the neighbour's MAC address is not yet.
    Unresolved {
        /// Interface index.
        interface: u32,
    },
    /// There is no route, or none that the kernel forwards on.
    Unreachable,
    /// The packet is larger than the route's MTU.
    TooBig {
        /// That MTU.
        mtu: u16,
    },
}

/// An Ethernet frame that can be read: all that deciding needs. Reads are bounds-checked each time; `None`
/// means that the frame ends before.
pub trait ReadFrame {
    /// Bytes, Ethernet header included.
    fn length(&self) -> u32;

    /// Packets in this frame: more than 1 if GRO or TSO aggregated them.
    fn segments(&self) -> u32;

    /// L4 payload bytes of each of those; 0 if the frame is not aggregated.
    fn segment_size(&self) -> u32;

    /// The header at an offset.
    fn at<T: Plain>(&self, offset: usize) -> Option<&T>;

    /// The index of the interface that the frame came in by.
    fn interface(&self) -> u32;

    /// Whether its IPv4 header was an IPv6 header when it came.
    #[inline(always)]
    fn was_ipv6(&self) -> bool {
        false
    }

    /// Copies the frame's first bytes, at most [`CAPTURE_LENGTH`] of them, to an offset in `head`: 0, or the
    /// length of an Ethernet header. Returns how many. The last few bytes of a frame may be left out.
    #[inline(always)]
    fn copy_head<const AT: usize>(&self, head: NonNull<[u8; HEAD_LENGTH]>) -> u64 {
        let to = head.as_ptr().cast::<u8>();
        let Some(first) = self.at::<[u8; 2]>(0) else {
            return 0;
        };
        // SAFETY: what is copied has no alignment, and `head` has room for an Ethernet header and
        // `CAPTURE_LENGTH` bytes.
        unsafe { to.add(AT).cast::<[u8; 2]>().write(*first) };
        // The headers of TCP and UDP over IP are a multiple of 4 bytes, behind 14 of Ethernet.
        let mut copied = 2;
        while copied + 4 <= CAPTURE_LENGTH
            && let Some(chunk) = self.at::<[u8; 4]>(copied)
        {
            // SAFETY: as above.
            unsafe { to.add(AT + copied).cast::<[u8; 4]>().write(*chunk) };
            copied += 4;
        }
        copied as u64
    }

    /// Whether the node that the frame is on has an interface with this index.
    fn has_interface(&self, index: u32) -> bool;
}

/// A frame of which long parts can be copied.
pub trait CopyFrame: ReadFrame {
    /// Copies `length` bytes at an offset.
    ///
    /// # Errors
    /// [`Refused`] when the frame ends before, or when there are more than fit.
    fn load(&self, offset: usize, length: usize, to: NonNull<Held>) -> Result<(), Refused>;
}

/// A frame that can become several.
pub trait FragmentFrame: Frame + CopyFrame {
    /// Lets a copy of the frame arrive at this hook again.
    ///
    /// # Errors
    /// [`Refused`] when the kernel has no memory for it.
    fn send_copy_again(&mut self) -> Result<(), Refused>;

    /// Lets the frame end at an offset.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn truncate(&mut self, length: usize) -> Result<(), Refused>;

    /// Replaces everything from an offset on, however long that is.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn replace(&mut self, offset: usize, with: &Held) -> Result<(), Refused>;
}

/// An Ethernet frame that can be rewritten and resized as well. Writes are bounds-checked each time, as
/// reads are. After any method that takes `&mut self`, what was read before may have moved.
pub trait Frame: ReadFrame {
    /// The header at an offset, to write.
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Option<&mut T>;

    /// Updates a TCP or UDP checksum, finished or not.
    ///
    /// # Errors
    /// [`Refused`] when the frame ends before the field.
    fn change_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused>;

    /// Makes room for `length` bytes of outer headers behind the Ethernet header; the content of both is then
    /// undefined.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn insert_outer(&mut self, length: usize) -> Result<(), Refused>;

    /// Removes that room again.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn remove_outer(&mut self, length: usize) -> Result<(), Refused>;

    /// Turns the frame into one of `L3` bytes behind an Ethernet header, of undefined content, with no
    /// checksum left for the hardware to finish. For control messages. `outer` bytes of encapsulation are
    /// before the packet that the message is about; then bytes of no meaning may be left behind the message.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn renew<const L3: usize>(&mut self, outer: usize) -> Result<(), Refused>;

    /// Looks an address up in the node's routes and neighbours, for a packet (a segment of an aggregated one)
    /// of `l3_length` bytes; 0 skips the check of its size.
    fn route(&self, source: Be32, destination: Be32, l3_length: u16) -> Route;
}

/// A frame whose IP header can become that of the other version. Checksums behind it stay as they are.
pub trait TranslateFrame: Frame {
    /// Puts an IPv4 header in place of an IPv6 header, and its EtherType before it.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn put_ipv4(&mut self, header: &Ipv4) -> Result<(), Refused>;

    /// Puts an IPv6 header in place of an IPv4 header, and its EtherType before it.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn put_ipv6(&mut self, header: &Ipv6) -> Result<(), Refused>;

    /// Lets the frame have at least `length` bytes, behind an Ethernet header of undefined content, also
    /// where [`Frame::renew`] is refused.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn lengthen(&mut self, length: usize) -> Result<(), Refused>;

    /// Makes room behind the IPv6 header, of undefined content.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn insert_extension(&mut self, length: usize) -> Result<(), Refused>;

    /// Removes what is behind the IPv6 header.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    fn remove_extension(&mut self, length: usize) -> Result<(), Refused>;

    /// Whether the frame has the MAC address of the interface it came in by. Where it has not, it may still
    /// be for this node.
    fn is_for_interface(&self) -> bool;

    /// Lets what runs next know that the packet was IPv6 ([`ReadFrame::was_ipv6`]).
    fn note_ipv6(&mut self);

    /// As [`Frame::route`], of IPv6, whatever the packet's size.
    fn route_ipv6(&self, source: &Ipv6Address, destination: &Ipv6Address) -> Route;
}
