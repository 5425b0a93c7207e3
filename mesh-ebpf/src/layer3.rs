//! Packets of layer 3 devices (WireGuard, tun, PPP), which have no Ethernet header.
//!
//! The pipeline's offsets count one. So a packet is decided about as if it had one, and gets a real one
//! before the decision is carried out: what is not the mesh's passes as it came.

use core::ptr::NonNull;

use crate::{
    abi::{HEAD_LENGTH, Held},
    bytes::Plain,
    frame::{CopyFrame, Frame, ReadFrame, Refused},
    headers::{ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet},
};

/// A packet that begins with its IP header, to be read as if an Ethernet header were before it. That header
/// itself cannot be read.
pub struct WithoutEthernet<'a, F>(pub &'a F);

impl<F: ReadFrame> ReadFrame for WithoutEthernet<'_, F> {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length().wrapping_add(ETHERNET_LENGTH as u32)
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        self.0.segments()
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        self.0.segment_size()
    }

    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        self.0.at(offset.checked_sub(ETHERNET_LENGTH)?)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.0.interface()
    }

    #[inline(always)]
    fn copy_head<const AT: usize>(&self, head: NonNull<[u8; HEAD_LENGTH]>) -> u64 {
        const { assert!(AT == 0, "there is room for one Ethernet header") };
        let header = Ethernet {
            destination: [0; 6],
            source: [0; 6],
            ethertype: ETHERTYPE_IPV4,
        };
        // SAFETY: the header has no alignment, and `head` is longer.
        unsafe { head.cast::<Ethernet>().write(header) };
        self.0.copy_head::<ETHERNET_LENGTH>(head) + ETHERNET_LENGTH as u64
    }

    #[inline(always)]
    fn has_interface(&self, index: u32) -> bool {
        self.0.has_interface(index)
    }
}

impl<F: CopyFrame> CopyFrame for WithoutEthernet<'_, F> {
    #[inline(always)]
    fn load(&self, offset: usize, length: usize, to: NonNull<Held>) -> Result<(), Refused> {
        let offset = offset.checked_sub(ETHERNET_LENGTH).ok_or(Refused)?;
        self.0.load(offset, length, to)
    }
}

/// A packet that can be given an Ethernet header.
pub trait Layer3Frame: Frame {
    /// Puts an Ethernet header of zeros before the packet.
    ///
    /// # Errors
    /// [`Refused`] when there is no room.
    fn insert_ethernet(&mut self) -> Result<(), Refused>;
}

#[cfg(test)]
mod tests;
