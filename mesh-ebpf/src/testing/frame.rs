//! A frame in a vector. It guarantees what [`Frame`] does and no more: what is undefined there is junk here,
//! so that code which relies on it fails its tests.

use std::{cell::Cell, collections::BTreeSet, ptr::NonNull};

use crate::{
    abi::{Held, Ipv6Address},
    bytes::{Be16, Be32, Plain},
    checksum,
    frame::{ChecksumChange, CopyFrame, FragmentFrame, Frame, ReadFrame, Refused, Route, TranslateFrame},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_LENGTH, Ipv4, Ipv6,
    },
    layer3::Layer3Frame,
};

const JUNK: u8 = 0xaa;

/// An Ethernet frame.
#[derive(Clone, Debug)]
pub(crate) struct TestFrame {
    /// All of it.
    pub(crate) bytes: Vec<u8>,
    /// What [`Frame::segments`] returns.
    pub(crate) segments: u32,
    /// What [`Frame::segment_size`] returns.
    pub(crate) segment_size: u32,
    /// Whether the TCP or UDP checksum field holds the folded sum of the pseudo header only, for the
    /// hardware to finish, like an skb's with CHECKSUM_PARTIAL.
    pub(crate) partial: bool,
    /// Whether the frame can be resized.
    pub(crate) elastic: bool,
    /// The interface that it came in by.
    pub(crate) interface: u32,
    /// What [`Frame::route`] returns.
    pub(crate) way: Route,
    /// Whether it was IPv6 when it came.
    pub(crate) was_ipv6: bool,
    /// The interfaces that this node does not have.
    pub(crate) gone: BTreeSet<u32>,
    /// Copies that arrive at the hook again.
    pub(crate) again: Vec<TestFrame>,
    /// The last arguments of [`Frame::route`]: source, destination, length.
    pub(crate) asked: Cell<Option<(Be32, Be32, u16)>>,
}

impl TestFrame {
    /// A frame that is not aggregated, with a finished checksum and no route.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            segments: 1,
            segment_size: 0,
            partial: false,
            elastic: true,
            interface: 2,
            way: Route::Unreachable,
            was_ipv6: false,
            gone: BTreeSet::new(),
            again: Vec::new(),
            asked: Cell::new(None),
        }
    }

    /// The same frame with another result of [`Frame::route`].
    pub(crate) fn routed(mut self, way: Route) -> Self {
        self.way = way;
        self
    }

    /// The same frame on a node that no longer has an interface.
    pub(crate) fn without_interface(mut self, index: u32) -> Self {
        self.gone.insert(index);
        self
    }

    /// What the receiving node sees of a frame that was sent: its bytes, and the checksum that the sender's
    /// hardware would have finished.
    pub(crate) fn received(&self) -> Self {
        let mut frame = Self::new(self.bytes.clone());
        frame.partial = self.partial;
        frame
    }
}

impl ReadFrame for TestFrame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn segments(&self) -> u32 {
        self.segments
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        assert_eq!(align_of::<T>(), 1, "a frame gives no alignment");
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has T's size, T's alignment is 1 and every bit pattern is a T (`Plain`).
        Some(unsafe { &*bytes.as_ptr().cast::<T>() })
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn was_ipv6(&self) -> bool {
        self.was_ipv6
    }

    fn has_interface(&self, index: u32) -> bool {
        !self.gone.contains(&index)
    }
}

impl CopyFrame for TestFrame {
    fn load(&self, offset: usize, length: usize, to: NonNull<Held>) -> Result<(), Refused> {
        let bytes = self.bytes.get(offset..offset + length).ok_or(Refused)?;
        // SAFETY: the tests' tables own the memory, and nothing else uses it meanwhile.
        let to = unsafe { &mut *to.as_ptr() };
        to.bytes.get_mut(..length).ok_or(Refused)?.copy_from_slice(bytes);
        to.length = length as u64;
        Ok(())
    }
}

impl FragmentFrame for TestFrame {
    fn send_copy_again(&mut self) -> Result<(), Refused> {
        let copy = self.clone();
        self.again.push(Self {
            again: Vec::new(),
            ..copy
        });
        Ok(())
    }

    fn truncate(&mut self, length: usize) -> Result<(), Refused> {
        if !self.elastic {
            return Err(Refused);
        }
        self.bytes.resize(length, JUNK);
        Ok(())
    }

    fn replace(&mut self, offset: usize, with: &Held) -> Result<(), Refused> {
        self.truncate(offset)?;
        self.bytes.extend(&with.bytes[..with.length as usize]);
        Ok(())
    }
}

impl Layer3Frame for TestFrame {
    fn insert_ethernet(&mut self) -> Result<(), Refused> {
        if !self.elastic {
            return Err(Refused);
        }
        self.bytes.splice(..0, [0; ETHERNET_LENGTH]);
        Ok(())
    }
}

impl Frame for TestFrame {
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Option<&mut T> {
        assert_eq!(align_of::<T>(), 1, "a frame gives no alignment");
        let bytes = self.bytes.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: as above, borrowed mutably for as long.
        Some(unsafe { &mut *bytes.as_mut_ptr().cast::<T>() })
    }

    fn change_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused> {
        let partial = self.partial;
        let field = self.at_mut::<[u8; 2]>(change.offset).ok_or(Refused)?;
        let old = u16::from_ne_bytes(*field);
        if change.udp && old == 0 {
            return Ok(());
        }
        let mut new = if partial {
            checksum::fold(u32::from(old) + u32::from(checksum::fold(change.pseudo.raw())))
        } else {
            checksum::updated(Be16::from_raw(old), change.pseudo.and(change.body)).raw()
        };
        if change.udp && new == 0 {
            new = 0xffff;
        }
        *field = new.to_ne_bytes();
        Ok(())
    }

    fn insert_outer(&mut self, length: usize) -> Result<(), Refused> {
        if !self.elastic || self.bytes.len() < ETHERNET_LENGTH {
            return Err(Refused);
        }
        self.bytes
            .splice(..ETHERNET_LENGTH, vec![JUNK; ETHERNET_LENGTH + length]);
        Ok(())
    }

    fn remove_outer(&mut self, length: usize) -> Result<(), Refused> {
        if !self.elastic || self.bytes.len() < ETHERNET_LENGTH + length {
            return Err(Refused);
        }
        self.bytes
            .splice(..ETHERNET_LENGTH + length, [JUNK; ETHERNET_LENGTH]);
        Ok(())
    }

    fn renew<const L3: usize>(&mut self, _: usize) -> Result<(), Refused> {
        if !self.elastic {
            return Err(Refused);
        }
        self.bytes = vec![JUNK; ETHERNET_LENGTH + L3];
        (self.partial, self.segments, self.segment_size) = (false, 1, 0);
        Ok(())
    }

    fn route(&self, source: Be32, destination: Be32, l3_length: u16) -> Route {
        self.asked.set(Some((source, destination, l3_length)));
        self.way
    }
}

impl TestFrame {
    fn put<T: Plain>(&mut self, removed: usize, header: &T, ethertype: Be16) -> Result<(), Refused> {
        if !self.elastic || self.bytes.len() < ETHERNET_LENGTH + removed {
            return Err(Refused);
        }
        let room = vec![JUNK; size_of::<T>()];
        self.bytes
            .splice(ETHERNET_LENGTH..ETHERNET_LENGTH + removed, room);
        *self.at_mut::<T>(ETHERNET_LENGTH).ok_or(Refused)? = *header;
        self.at_mut::<Ethernet>(0).ok_or(Refused)?.ethertype = ethertype;
        Ok(())
    }
}

impl TranslateFrame for TestFrame {
    fn put_ipv4(&mut self, header: &Ipv4) -> Result<(), Refused> {
        self.put(IPV6_LENGTH, header, ETHERTYPE_IPV4)
    }

    fn put_ipv6(&mut self, header: &Ipv6) -> Result<(), Refused> {
        self.put(IPV4_LENGTH, header, ETHERTYPE_IPV6)
    }

    fn lengthen(&mut self, length: usize) -> Result<(), Refused> {
        let length = length.max(self.bytes.len());
        self.bytes = vec![JUNK; length];
        Ok(())
    }

    fn insert_extension(&mut self, length: usize) -> Result<(), Refused> {
        let at = ETHERNET_LENGTH + IPV6_LENGTH;
        if !self.elastic || self.bytes.len() < at {
            return Err(Refused);
        }
        self.bytes.splice(at..at, vec![JUNK; length]);
        Ok(())
    }

    fn remove_extension(&mut self, length: usize) -> Result<(), Refused> {
        let at = ETHERNET_LENGTH + IPV6_LENGTH;
        if !self.elastic || self.bytes.len() < at + length {
            return Err(Refused);
        }
        self.bytes.drain(at..at + length);
        Ok(())
    }

    fn is_for_interface(&self) -> bool {
        false
    }

    fn note_ipv6(&mut self) {
        self.was_ipv6 = true;
    }

    fn route_ipv6(&self, _: &Ipv6Address, _: &Ipv6Address) -> Route {
        self.way
    }
}
