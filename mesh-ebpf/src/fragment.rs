//! Fragments. Only the first one of a packet has its ports: the pipeline takes that as any other packet and
//! notes to which flow the packet belongs, and the later ones follow ([`crate::exceptional`]). A copy of one
//! that comes before the first is kept until then; the original passes, as it may be another's. The first one
//! goes on then, and a carrier follows, which becomes one after the other.
//!
//! A later fragment that overlaps the first one is dropped: the receiver might take its bytes for the ports
//! or flags that were decided about (RFC 1858, RFC 3128). Where other fragments overlap, that is the
//! receiver's to judge, which is the only one that has them all.
//!
//! What is too big for its way is split further. Packets are put together again by their receiver.

use core::mem::MaybeUninit;

use crate::{
    abi::{
        Datagram, DatagramKey, DatagramState, DropReason, FlowKey, HELD_LENGTH, HELD_PER_DATAGRAM, HeldKey,
        Hook, is_mapped_client,
    },
    bytes::{Be16, zeroed},
    checksum,
    frame::{CopyFrame, FragmentFrame, ReadFrame, Refused},
    headers::{
        ETHERNET_LENGTH, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH,
        IPV4_MORE_FRAGMENTS, Ipv4, Ipv6Fragment, L4_OFFSET, PROTOCOL_UDP, Ports, Udp,
    },
    parse::Packet,
    tables::{DatagramEntry, Tables},
    verdict::{Action, Decision},
};

/// How long fragments of one packet are known to belong together, nanoseconds: as long as Linux waits for the
/// rest of them (`net.ipv4.ipfrag_time`). Numbers of packets are used again.
const LIFETIME: u64 = 30_000_000_000;

/// The fragment field of a carrier: a frame that becomes the fragments that came before the first one of
/// their packet, one after the other. No fragment begins there: it would end behind the longest packet.
const CARRIER: u16 = 0x3fff;

/// How often a carrier arrives again before the parts of the first fragment, which are right behind it. They
/// may have got lost.
const MOST_WAITS: u32 = 4;

/// A fragment: of which packet it is, and what its header says.
#[derive(Clone, Copy)]
pub struct Fragment {
    key: DatagramKey,
    total_length: u16,
    /// Where it begins, in bytes of the packet behind its IP header.
    offset: u32,
    is_first: bool,
    is_carrier: bool,
}

/// The fragment at `offset`, if there is one, whole and without options.
#[inline(always)]
pub fn find<F: ReadFrame>(frame: &F, offset: usize) -> Option<Fragment> {
    let ip = frame.at::<Ipv4>(offset)?;
    let total_length = ip.total_length.get();
    let is_one = ip.version_and_length == 0x45
        && ip.fragment.raw() & IPV4_FRAGMENT_MASK.raw() != 0
        && usize::from(total_length) >= IPV4_LENGTH
        && u32::from(total_length) + offset as u32 <= frame.length();
    is_one.then_some(Fragment {
        key: key(ip),
        total_length,
        offset: offset_of(ip),
        is_first: ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() == 0,
        is_carrier: ip.fragment.get() == CARRIER,
    })
}

#[inline(always)]
fn offset_of(ip: &Ipv4) -> u32 {
    u32::from(ip.fragment.get() & IPV4_FRAGMENT_OFFSET_MASK.get()) * 8
}

/// Where a first fragment ends.
#[inline(always)]
fn end_of_first(ip: &Ipv4) -> u16 {
    ip.total_length.get().wrapping_sub(IPV4_LENGTH as u16)
}

#[inline(always)]
fn key(ip: &Ipv4) -> DatagramKey {
    DatagramKey {
        source: ip.source,
        destination: ip.destination,
        identification: ip.identification,
        protocol: u16::from(ip.protocol),
        padding: 0,
    }
}

/// What is known of a packet. Its number may be of an earlier one: then nothing is, and it starts anew.
#[inline(always)]
fn known<T: Tables>(tables: &T, key: &DatagramKey) -> Option<DatagramEntry> {
    tables
        .datagram(key)
        .filter(|datagram| tables.clock().wrapping_sub(datagram.since()) < LIFETIME)
}

/// What is known of a packet none of whose fragments have been seen before.
#[inline(always)]
fn unknown_since(memory: &mut MaybeUninit<Datagram>, since: u64) -> &mut Datagram {
    let datagram = zeroed(memory);
    datagram.since = since;
    datagram
}

/// The same, or a new entry.
#[inline(always)]
fn known_or_new<T: Tables>(tables: &T, key: &DatagramKey) -> Option<DatagramEntry> {
    let since = tables.clock();
    let mut memory = MaybeUninit::uninit();
    let datagram = tables.new_datagram(key, unknown_since(&mut memory, since))?;
    if since.wrapping_sub(datagram.since()) >= LIFETIME {
        datagram.set_since(since);
        datagram.set_state(DatagramState::WAITING);
        datagram.set_held(0);
        datagram.set_released(0);
        datagram.set_waits(0);
    }
    Some(datagram)
}

/// Whether fragments came before the first one, and no carrier has been sent for them.
#[inline(always)]
fn has_to_release(datagram: DatagramEntry) -> bool {
    datagram.held() != 0 && datagram.released() == 0
}

/// Notes whose a packet is. The ports before the state, by which others know that they are there.
#[inline(always)]
fn assign(datagram: DatagramEntry, flow: &FlowKey, first_end: u16, state: DatagramState) {
    datagram.set_first_end(first_end);
    datagram.set_source_port(flow.source_port);
    datagram.set_destination_port(flow.destination_port);
    datagram.set_waits(0);
    datagram.set_state(state);
}

/// Notes to which flow the packet of a first fragment at `offset` belongs.
#[inline(always)]
pub fn note<F: ReadFrame, T: Tables>(frame: &F, tables: &T, offset: usize, flow: &FlowKey) {
    let Some(ip) = frame.at::<Ipv4>(offset) else {
        return;
    };
    // The peer sends them in order: none has come before.
    let mut memory = MaybeUninit::uninit();
    let datagram = unknown_since(&mut memory, tables.clock());
    datagram.state = DatagramState::OURS;
    datagram.source_port = flow.source_port;
    datagram.destination_port = flow.destination_port;
    datagram.first_end = end_of_first(ip);
    tables.put_datagram(&key(ip), datagram);
}

/// Notes the same about a first fragment that is not encapsulated, about which a decision was made. If there
/// are some that came before it, it is for [`Fragment::send_carrier`].
#[inline(always)]
pub fn first<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    hook: Hook,
    offset: usize,
    packet: &Packet,
    decision: Decision<'a>,
) -> Decision<'a> {
    let Some(ip) = frame.at::<Ipv4>(offset) else {
        return decision;
    };
    let key = key(ip);
    let is_ours = !decision.leaves_packet();
    // XDP leaves much to tc, and with it the note. What this node's own kernels send is in order.
    if !is_ours && !matches!(hook, Hook::TcUplink) {
        return decision;
    }
    let Some(datagram) = known_or_new(tables, &key) else {
        return decision;
    };
    let state = if is_ours {
        DatagramState::OURS
    } else {
        DatagramState::OTHER
    };
    assign(datagram, &packet.key, end_of_first(ip), state);
    if is_ours && has_to_release(datagram) {
        Decision::exceptional(hook)
    } else {
        decision
    }
}

/// Whose the packet is of which a later fragment would have this header, as an IPv6 one does before it is
/// translated. The rest of it is at an offset: a copy is kept while nothing is known.
#[inline(always)]
pub fn state_or_hold<F: CopyFrame, T: Tables>(
    frame: &F,
    tables: &T,
    ip: &Ipv4,
    offset: usize,
) -> DatagramState {
    let key = key(ip);
    let state = |tables: &T| known(tables, &key).map_or(DatagramState::WAITING, DatagramEntry::state);
    match state(tables) {
        DatagramState::WAITING => {}
        known => return known,
    }
    hold(
        frame,
        tables,
        &key,
        offset.wrapping_sub(IPV4_LENGTH),
        ip.total_length.get(),
        Some(ip),
    );
    // The first one may have come on another CPU meanwhile, too early to let this one follow.
    state(tables)
}

/// Keeps a copy of so many bytes at an offset, where the IP header is or a translated one is to be.
#[inline(always)]
fn hold<F: CopyFrame, T: Tables>(
    frame: &F,
    tables: &T,
    key: &DatagramKey,
    offset: usize,
    length: u16,
    translated: Option<&Ipv4>,
) {
    let Some(datagram) = known_or_new(tables, key) else {
        return;
    };
    if datagram.state() != DatagramState::WAITING || datagram.held() >= HELD_PER_DATAGRAM {
        return;
    }
    let Some(scratch) = tables.scratch() else {
        return;
    };
    if frame.load(offset, usize::from(length), scratch).is_err() {
        return;
    }
    if let Some(ip) = translated {
        // SAFETY: the memory is this run's own, and has room for any header at its start.
        unsafe { (&raw mut (*scratch.as_ptr()).bytes).cast::<Ipv4>().write(*ip) };
    }
    tables.hold_scratch(&HeldKey {
        datagram: *key,
        number: tables.count_held(datagram),
    });
}

impl Fragment {
    /// Whether it is the first one.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// Whether it is a carrier.
    #[inline(always)]
    pub fn is_carrier(&self) -> bool {
        self.is_carrier
    }

    /// The tuple of its packet, if that is known to be the mesh's.
    ///
    /// # Errors
    /// The reason to drop it: it overlaps the first one.
    #[inline(always)]
    pub fn flow_key<F: ReadFrame, T: Tables>(
        &self,
        frame: &F,
        tables: &T,
        offset: usize,
    ) -> Result<Option<FlowKey>, DropReason> {
        let (source_port, destination_port) = if self.is_first {
            let Some(ports) = frame.at::<Ports>(offset + IPV4_LENGTH) else {
                return Ok(None);
            };
            (ports.source, ports.destination)
        } else {
            let Some(datagram) =
                known(tables, &self.key).filter(|datagram| datagram.state() == DatagramState::OURS)
            else {
                return Ok(None);
            };
            if self.offset < u32::from(datagram.first_end()) {
                return Err(DropReason::FragmentOverlap);
            }
            (datagram.source_port(), datagram.destination_port())
        };
        Ok(Some(FlowKey {
            source: self.key.source,
            destination: self.key.destination,
            source_port,
            destination_port,
            protocol: u32::from(self.key.protocol),
        }))
    }

    /// Keeps a copy of one of whose packet the first one has not come.
    #[inline(always)]
    pub fn hold<F: CopyFrame, T: Tables>(&self, frame: &F, tables: &T, offset: usize) {
        hold(frame, tables, &self.key, offset, self.total_length, None);
    }

    /// Sends a carrier after a first fragment if there are some that came before it. The IP header is at
    /// `offset`.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    #[inline(always)]
    pub fn send_carrier<F: FragmentFrame, T: Tables>(
        &self,
        frame: &mut F,
        tables: &T,
        offset: usize,
    ) -> Result<(), Refused> {
        match known(tables, &self.key) {
            // Another CPU may have sent one just now.
            Some(datagram) if has_to_release(datagram) && tables.count_released(datagram) == 0 => {}
            _ => return Ok(()),
        }
        let ip = *frame.at::<Ipv4>(offset).ok_or(Refused)?;
        set_header(frame, offset, &ip, 0, CARRIER)?;
        frame.send_copy_again()?;
        *frame.at_mut::<Ipv4>(offset).ok_or(Refused)? = ip;
        Ok(())
    }

    /// Lets a carrier become the next of the fragments that it is sent for.
    ///
    /// # Errors
    /// [`Refused`] when the kernel does not allow it.
    #[inline(always)]
    pub fn unload<F: FragmentFrame, T: Tables>(
        &self,
        frame: &mut F,
        tables: &T,
        offset: usize,
    ) -> Result<Unloaded, Refused> {
        let Some(datagram) = known(tables, &self.key)
            .filter(|datagram| datagram.state() == DatagramState::OURS && datagram.released() != 0)
        else {
            return Ok(Unloaded::Nothing);
        };
        if datagram.waits() != 0 {
            datagram.set_waits(datagram.waits().wrapping_sub(1));
            return Ok(Unloaded::Waits);
        }
        let released = tables.count_released(datagram);
        if released > datagram.held() {
            return Ok(Unloaded::Nothing);
        }
        if released < datagram.held() {
            frame.send_copy_again()?;
        }
        let held = HeldKey {
            datagram: self.key,
            number: released.wrapping_sub(1),
        };
        match tables.held(&held) {
            Some(held) => {
                frame.replace(offset, held)?;
                Ok(Unloaded::Fragment)
            }
            // It has been pushed out.
            None => Ok(Unloaded::Nothing),
        }
    }
}

/// What has become of a carrier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unloaded {
    /// A fragment that waited.
    Fragment,
    /// It waits itself, until the first fragment has gone on.
    Waits,
    /// There is no more to carry.
    Nothing,
}

/// Whether the packet may be split into fragments, or a fragment into smaller ones: its sender must allow it.
/// A datagram whose checksum is left to the hardware cannot be split: it would be finished for each part.
#[inline(always)]
pub fn may_be_split<F: ReadFrame>(frame: &F) -> bool {
    let Some(ip) = frame.at::<Ipv4>(ETHERNET_LENGTH) else {
        return false;
    };
    if ip.fragment.raw() & IPV4_DONT_FRAGMENT.raw() != 0 || frame.segment_size() != 0 {
        return false;
    }
    if ip.fragment.raw() & IPV4_FRAGMENT_MASK.raw() != 0 {
        return true;
    }
    let (source, destination, length) = (ip.source, ip.destination, ip.total_length.get());
    let is_udp = ip.protocol == PROTOCOL_UDP;
    let Some(udp) = frame.at::<Udp>(L4_OFFSET) else {
        return false;
    };
    let unfinished = checksum::fold(checksum::pseudo_header(
        source,
        destination,
        PROTOCOL_UDP,
        length.wrapping_sub(IPV4_LENGTH as u16),
    ));
    is_udp && udp.checksum.raw() != unfinished
}

/// Splits the packet or fragment that a frame is into two, the first one as large as `mtu` allows. Both
/// arrive at the hook again.
///
/// # Errors
/// The reason to drop it.
#[inline(always)]
pub fn split<F: FragmentFrame, T: Tables>(frame: &mut F, tables: &T, mtu: u16) -> Result<Action, DropReason> {
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    // Offsets are in units of 8 bytes.
    let mtu = if is_mapped_client(ip.destination) {
        // IPv6 says in a header of its own that a packet is a fragment.
        mtu.saturating_sub(size_of::<Ipv6Fragment>() as u16)
    } else {
        mtu
    };
    let kept = mtu.saturating_sub(IPV4_LENGTH as u16) & !7;
    let payload = ip.total_length.get().saturating_sub(IPV4_LENGTH as u16);
    if kept == 0 || payload <= kept || usize::from(payload - kept) > HELD_LENGTH {
        return Err(DropReason::TooBig);
    }
    if ip.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() == 0
        && let Some(datagram) = known(tables, &key(&ip))
    {
        // Its carrier, if there is one, arrives before its parts.
        datagram.set_waits(MOST_WAITS);
        datagram.set_first_end(kept);
    }
    let scratch = tables.scratch().ok_or(Refused)?;
    let end = ETHERNET_LENGTH + IPV4_LENGTH + usize::from(kept);
    frame.load(end, usize::from(payload - kept), scratch)?;
    frame.truncate(end)?;
    let fragment = ip.fragment.get();
    set_header(
        frame,
        ETHERNET_LENGTH,
        &ip,
        kept,
        fragment | IPV4_MORE_FRAGMENTS.get(),
    )?;
    frame.send_copy_again()?;
    // SAFETY: the memory is this run's own, and `load` has written what is read.
    frame.replace(ETHERNET_LENGTH + IPV4_LENGTH, unsafe { scratch.as_ref() })?;
    set_header(frame, ETHERNET_LENGTH, &ip, payload - kept, fragment + kept / 8)?;
    Ok(Action::Again)
}

#[inline(always)]
fn set_header<F: FragmentFrame>(
    frame: &mut F,
    offset: usize,
    ip: &Ipv4,
    payload: u16,
    fragment: u16,
) -> Result<(), Refused> {
    let mut header = Ipv4 {
        total_length: Be16::new(payload + IPV4_LENGTH as u16),
        fragment: Be16::new(fragment),
        ..*ip
    };
    header.checksum = checksum::ipv4(&header);
    *frame.at_mut::<Ipv4>(offset).ok_or(Refused)? = header;
    Ok(())
}

#[cfg(test)]
mod tests;
