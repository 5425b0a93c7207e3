//! The tc hooks: ingress of uplinks, ingress of containers' veths, egress of mesh0.

use core::{arch::asm, intrinsics::is_val_statically_known, mem::offset_of, ptr::NonNull};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_clone_redirect, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use mesh_ebpf::{
    abi::{CAPTURE_LENGTH, Called, HEAD_LENGTH, HELD_LENGTH, Held, Hook, is_mapped_client, is_mapped_own},
    bytes::{Be16, Be32, Plain},
    exceptional,
    frame::{ChecksumChange, CopyFrame, FragmentFrame, Frame, ReadFrame, Refused, Route},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, KEYED_OUTER_LENGTH, L4_OFFSET, TCP_LENGTH,
    },
    layer3::Layer3Frame,
    left_over, pipeline,
    tables::Tables,
    verdict::Action,
};

use crate::{
    maps::{CALLED, KernelTables},
    xdp::{distance, has_interface, route},
};

/// Leaves the packet to the next program or the kernel.
pub(crate) const TC_ACT_UNSPEC: i32 = -1;
/// Headers of a plain and of an encapsulated packet, without TCP options.
const PLAIN_HEADERS: usize = L4_OFFSET + TCP_LENGTH;
const ALL_HEADERS: usize = PLAIN_HEADERS + KEYED_OUTER_LENGTH + 40;
/// The bits of a VLAN tag that name the VLAN; 0 is none (a tag that only carries a priority).
const VLAN_ID: u32 = 0x0fff;
/// In the skb's memory for programs: what says that the packet was IPv6. (What the kernel has left there is
/// something else.)
pub(crate) const WAS_IPV6: [u32; 2] = [0x6d65_7368, 0x9219_b5a4];
/// Bytes removed from the front to discard an unfinished checksum; see [`Skb::renew`].
const RENEWAL: usize = 40;

// The hooks' functions are inline: on Linux 6.1, a frame of its own would take 32 bytes of a stack that is
// all but full, and tail calls from such a frame need a JIT that knows them.

/// Balances what arrives on an uplink.
#[classifier]
#[inline(always)]
pub(crate) fn mesh_uplink(context: TcContext) -> i32 {
    run(
        &context,
        Hook::TcUplink,
        Called::ExceptionalUplink,
        Some(Called::ToIpv4Uplink),
    )
}

/// Balances what arrives on an uplink that is a layer 3 device (WireGuard, tun, PPP).
///
/// Its packets come without an Ethernet header, and `bpf_redirect` to such a device takes one off again
/// (`__bpf_redirect_no_mac`), whatever is in it.
#[classifier]
#[inline(always)]
pub(crate) fn mesh_layer3(context: TcContext) -> i32 {
    let Some(mut skb) = layer3(&context) else {
        return TC_ACT_UNSPEC;
    };
    let action = pipeline::run_layer3(&mut skb, &KernelTables, Hook::TcUplink);
    act(&mut skb, action, Some(Called::ExceptionalLayer3))
}

/// Catches replies, and connections of containers to their own node, at a container's veth.
#[classifier]
#[inline(always)]
pub(crate) fn mesh_container(context: TcContext) -> i32 {
    run(
        &context,
        Hook::TcContainer,
        Called::ExceptionalContainer,
        Some(Called::ToIpv4Container),
    )
}

/// Balances what local processes send.
#[classifier]
#[inline(always)]
pub(crate) fn mesh_local(context: TcContext) -> i32 {
    let skb = Skb::new(&context, Hook::TcMesh0);
    if skb.is_ipv4_to(is_mapped_client) {
        // SAFETY: nothing is left to drop.
        unsafe { call(&skb, Called::ToIpv6) };
        return TC_ACT_SHOT;
    }
    run(&context, Hook::TcMesh0, Called::ExceptionalLocal, None)
}

/// What [`mesh_uplink`] leaves to it.
#[classifier]
#[inline(always)]
pub(crate) fn exceptional_uplink(context: TcContext) -> i32 {
    run_exceptional(&context, Hook::TcUplink)
}

/// What [`mesh_layer3`] leaves to it.
#[classifier]
#[inline(always)]
pub(crate) fn exceptional_layer3(context: TcContext) -> i32 {
    let Some(mut skb) = layer3(&context) else {
        return TC_ACT_UNSPEC;
    };
    let action = exceptional::run_layer3(&mut skb, &KernelTables, Hook::TcUplink);
    act(&mut skb, action, None)
}

/// What [`mesh_container`] leaves to it.
#[classifier]
#[inline(always)]
pub(crate) fn exceptional_container(context: TcContext) -> i32 {
    run_exceptional(&context, Hook::TcContainer)
}

/// What [`mesh_local`] leaves to it.
#[classifier]
#[inline(always)]
pub(crate) fn exceptional_local(context: TcContext) -> i32 {
    run_exceptional(&context, Hook::TcMesh0)
}

#[inline(always)]
fn run(context: &TcContext, hook: Hook, exceptional: Called, to_ipv4: Option<Called>) -> i32 {
    if is_of_a_vlan(context) {
        return TC_ACT_UNSPEC;
    }
    let mut skb = Skb::new(context, hook);
    skb.pull_headers();
    let mut action = pipeline::run(&mut skb, &KernelTables, hook);
    if let (Action::Pass, Some(to_ipv4)) = (action, to_ipv4) {
        if skb.protocol() == ETHERTYPE_IPV6 {
            // SAFETY: nothing is left to drop. Returns only if there is no such program.
            unsafe { call(&skb, to_ipv4) };
        } else if skb.was_ipv6() {
            action = left_over::refuse(&mut skb, &KernelTables, hook);
        }
    }
    act(&mut skb, action, Some(exceptional))
}

#[inline(always)]
fn run_exceptional(context: &TcContext, hook: Hook) -> i32 {
    let mut skb = Skb::new(context, hook);
    let mut action = exceptional::run(&mut skb, &KernelTables, hook);
    if matches!(action, Action::Pass) && skb.was_ipv6() {
        action = left_over::ignore(&skb, &KernelTables, hook);
    }
    act(&mut skb, action, None)
}

/// An IPv4 packet of a layer 3 device.
#[inline(always)]
fn layer3(context: &TcContext) -> Option<Skb> {
    let mut skb = Skb::new(context, Hook::TcUplink);
    if skb.protocol() != ETHERTYPE_IPV4 {
        return None;
    }
    skb.pull_headers();
    Some(skb)
}

/// Whether the packet is of a VLAN. The card or the kernel has moved its tag out of the frame by now
/// (`skb_vlan_untag`), so it looks like one of the interface itself, but it is the VLAN device's, whose own
/// hook sees it next without the tag. If it were sent on from here, its tag would go with it: into a
/// container, whose kernel drops it, or out of the node on that VLAN.
#[inline(always)]
fn is_of_a_vlan(context: &TcContext) -> bool {
    let skb = context.skb.skb;
    // SAFETY: the context outlives the program's run.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_ID != 0 }
}

/// Does what is left to do with a packet. `exceptional` is the program to call for exceptional ones.
#[inline(always)]
pub(crate) fn act(skb: &mut Skb, action: Action, exceptional: Option<Called>) -> i32 {
    // SAFETY: helper calls on values; the null parameters of `bpf_redirect_neigh` ask for a look-up.
    let verdict = unsafe {
        match action {
            Action::Pass => return TC_ACT_UNSPEC,
            Action::Exceptional => {
                if let Some(program) = exceptional {
                    // Returns only if there is no such program.
                    call(skb, program);
                }
                return TC_ACT_UNSPEC;
            }
            Action::Drop => return TC_ACT_SHOT,
            Action::Split { .. } => {
                match exceptional {
                    // It has got an Ethernet header.
                    Some(Called::ExceptionalLayer3) => call(skb, Called::ExceptionalUplink),
                    Some(program) => call(skb, program),
                    // That program has split it.
                    None => {}
                }
                return TC_ACT_SHOT;
            }
            Action::Again => bpf_redirect((*skb.context).ifindex, skb.again()),
            Action::Transmit { interface } => bpf_redirect(interface, 0),
            Action::Answer if !skb.egress && skb.is_ipv4_to(is_mapped_client) => {
                // It is IPv6 before it leaves.
                let mesh0 = KernelTables.config().map_or(0, |config| config.mesh0);
                bpf_redirect(mesh0, 0)
            }
            Action::Answer => {
                let back = if skb.egress { u64::from(BPF_F_INGRESS) } else { 0 };
                if skb.egress
                    && let Some(config) = KernelTables.config()
                {
                    skb.address_host(config.mesh0_mac);
                }
                bpf_redirect((*skb.context).ifindex, back)
            }
            Action::IntoContainer { interface } => bpf_redirect_peer(interface, 0),
            Action::IntoHost { interface } => bpf_redirect(interface, u64::from(BPF_F_INGRESS)),
            Action::Route { interface } => bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0),
        }
    };
    verdict as i32
}

/// Goes on with another program, which sees the packet as it is.
///
/// # Safety
/// Nothing of this program's is left to drop.
#[inline(always)]
pub(crate) unsafe fn call(skb: &Skb, program: Called) {
    // SAFETY: this function's contract; the context is the program's.
    unsafe { CALLED.tail_call(&TcContext::new(skb.context), program as u32) };
}

/// A socket buffer. It may be aggregated, and its checksum may be left to the hardware.
pub(crate) struct Skb {
    pub(crate) context: *mut __sk_buff,
    pub(crate) egress: bool,
}

impl ReadFrame for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.context).len }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: as above.
        match unsafe { (*self.context).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.context).gso_size }
    }

    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the linear part, as `address` checks; T takes any bytes at any alignment.
        self.address::<T>(offset)
            .map(|address| unsafe { &*(address as *const T) })
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.context).ifindex }
    }

    #[inline(always)]
    fn was_ipv6(&self) -> bool {
        // SAFETY: as above.
        let noted = unsafe { [(*self.context).cb[0], (*self.context).cb[1]] };
        noted == WAS_IPV6 && self.is_ipv4_to(is_mapped_own)
    }

    #[inline(always)]
    fn copy_head<const AT: usize>(&self, head: NonNull<[u8; HEAD_LENGTH]>) -> u64 {
        let length = (self.length() as usize).min(CAPTURE_LENGTH);
        let Ok(length) = bounded::<CAPTURE_LENGTH>(length) else {
            return 0;
        };
        // SAFETY: the context is the program's; `head` has room for an Ethernet header and as many bytes.
        unsafe {
            let to = head.as_ptr().byte_add(AT).cast();
            match bpf_skb_load_bytes(self.context.cast(), 0, to, length) {
                0 => u64::from(length),
                _ => 0,
            }
        }
    }

    #[inline(always)]
    fn has_interface(&self, index: u32) -> bool {
        has_interface(self.context.cast(), index)
    }
}

impl Layer3Frame for Skb {
    /// The kernel's way to send a packet of a layer 3 device on to one of layer 2
    /// (`__bpf_skb_change_head`): it moves the MAC header only, so that what the kernel does after the
    /// program (`__skb_pull` by `mac_len`, the tc hook in `sch_handle_ingress`) finds the packet as if it
    /// had come by Ethernet.
    #[inline(always)]
    fn insert_ethernet(&mut self) -> Result<(), Refused> {
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        match unsafe { bpf_skb_change_head(self.context, ETHERNET_LENGTH as u32, 0) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above, and `self` is borrowed for as long.
        self.address::<T>(offset)
            .map(|address| unsafe { &mut *(address as *mut T) })
    }

    #[inline(always)]
    fn change_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused> {
        let offset = change.offset as u32;
        let mangled = if change.udp {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        if !change.pseudo.is_none() {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
            // SAFETY: the context is the program's; size 0 makes `to` a difference.
            if unsafe { bpf_l4_csum_replace(self.context, offset, 0, u64::from(change.pseudo.raw()), flags) }
                != 0
            {
                return Err(Refused);
            }
        }
        if !change.body.is_none() {
            // SAFETY: as above.
            if unsafe { bpf_l4_csum_replace(self.context, offset, 0, u64::from(change.body.raw()), mangled) }
                != 0
            {
                return Err(Refused);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn insert_outer(&mut self, length: usize) -> Result<(), Refused> {
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
        self.adjust_room(length as i32, u64::from(flags))
    }

    #[inline(always)]
    fn remove_outer(&mut self, length: usize) -> Result<(), Refused> {
        self.adjust_room(-(length as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
        // The headers were payload of a datagram: they may be outside the linear part.
        self.pull(PLAIN_HEADERS)
    }

    /// A checksum that is left to the hardware would corrupt the new packet. The kernel discards it when
    /// the bytes that it starts at are removed from the front; so as many bytes are added at the end, and
    /// then removed at the front.
    ///
    /// The kernel does not change the end of an skb that is marked as encapsulated, which one is that a veth
    /// has brought here as a peer's program made it. It keeps its end, which the message's receiver ignores.
    #[inline(always)]
    fn renew<const L3: usize>(&mut self, outer: usize) -> Result<(), Refused> {
        let kept = ETHERNET_LENGTH + L3;
        // SAFETY: the context is the program's.
        let changed = unsafe { bpf_skb_change_tail(self.context, (kept + outer + RENEWAL) as u32, 0) } == 0;
        if changed {
            self.adjust_room(-((outer + RENEWAL) as i32), 0)?;
        } else if outer == 0 || self.length() < kept as u32 {
            return Err(Refused);
        } else {
            let outer = (self.length() - kept as u32).min(outer as u32);
            self.adjust_room(-(outer as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
        }
        self.pull(kept)
    }

    #[inline(always)]
    fn route(&self, source: Be32, destination: Be32, l3_length: u16) -> Route {
        // SAFETY: the context is the program's.
        let interface = unsafe { (*self.context).ifindex };
        route(self.context.cast(), interface, source, destination, l3_length)
    }
}

impl CopyFrame for Skb {
    #[inline(always)]
    fn load(&self, offset: usize, length: usize, to: NonNull<Held>) -> Result<(), Refused> {
        let length = bounded::<HELD_LENGTH>(length)?;
        // SAFETY: the context is the program's, and `to` has room for `HELD_LENGTH` bytes.
        unsafe {
            let bytes = (&raw mut (*to.as_ptr()).bytes).cast();
            if bpf_skb_load_bytes(self.context.cast(), offset as u32, bytes, length) != 0 {
                return Err(Refused);
            }
            (&raw mut (*to.as_ptr()).length).write(u64::from(length));
        }
        Ok(())
    }
}

impl FragmentFrame for Skb {
    #[inline(always)]
    fn send_copy_again(&mut self) -> Result<(), Refused> {
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        match unsafe { bpf_clone_redirect(self.context, (*self.context).ifindex, self.again()) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Result<(), Refused> {
        // SAFETY: as above.
        match unsafe { bpf_skb_change_tail(self.context, length as u32, 0) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    fn replace(&mut self, offset: usize, with: &Held) -> Result<(), Refused> {
        let length = bounded::<HELD_LENGTH>(with.length as usize)?;
        self.truncate(offset + length as usize)?;
        // SAFETY: the context is the program's, and at most `HELD_LENGTH` bytes are read.
        match unsafe {
            bpf_skb_store_bytes(self.context, offset as u32, with.bytes.as_ptr().cast(), length, 0)
        } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }
}

/// A length that [`Held`] has room for, and that the verifier knows as such.
#[inline(always)]
fn bounded<const MOST: usize>(length: usize) -> Result<u32, Refused> {
    let mut last = (length as u64).wrapping_sub(1);
    if last >= MOST as u64 {
        return Err(Refused);
    }
    // SAFETY: changes nothing. The compiler no longer knows that the mask changes nothing either; Linux 6.1
    // needs it to see that the length is not 0.
    unsafe { asm!("{last} = {last}", last = inout(reg) last, options(pure, nomem, nostack)) };
    Ok((last & (MOST as u64 - 1)) as u32 + 1)
}

impl Skb {
    /// The EtherType that the kernel knows the packet by.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Be16 {
        // SAFETY: the context outlives the program's run.
        Be16::from_raw(unsafe { (*self.context).protocol } as u16)
    }

    /// Whether the packet is IPv4, for such an address.
    #[inline(always)]
    fn is_ipv4_to(&self, is_such: impl Fn(Be32) -> bool) -> bool {
        let ip = self.at::<Ipv4>(ETHERNET_LENGTH);
        self.protocol() == ETHERTYPE_IPV4 && ip.is_some_and(|ip| is_such(ip.destination))
    }

    /// The flags of a redirection to this hook.
    #[inline(always)]
    fn again(&self) -> u64 {
        if self.egress { 0 } else { u64::from(BPF_F_INGRESS) }
    }

    #[inline(always)]
    pub(crate) fn new(context: &TcContext, hook: Hook) -> Self {
        Self {
            context: context.skb.skb,
            egress: matches!(hook, Hook::TcMesh0),
        }
    }

    #[inline(always)]
    fn address<T>(&self, offset: usize) -> Option<usize> {
        let (data, end) = self.bounds();
        let mut offset = offset;
        if !is_val_statically_known(offset) {
            // SAFETY: changes nothing. (An instruction, as BTF has no lines for none.) The compiler no longer
            // knows what the offset is made of: it would add its parts to the pointer one by one and subtract
            // the rest, which the verifier refuses.
            unsafe { asm!("{offset} = {offset}", offset = inout(reg) offset, options(pure, nomem, nostack)) };
        }
        let start = data + offset;
        (start + size_of::<T>() <= end).then_some(start)
    }

    /// Where the linear data begins and ends.
    ///
    /// By instructions of our own: the fields have 32 bits, but hold pointers. The compiler may load them in
    /// one block and widen them in another, and the verifier does not take the result for a pointer.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (data, end): (u64, u64);
        // SAFETY: loads from the context, which is the program's, at its own offsets.
        unsafe {
            asm!("{data} = *(u32 *)({context} + {offset})", data = out(reg) data, context = in(reg) self.context,
                offset = const offset_of!(__sk_buff, data), options(pure, readonly, nostack));
            asm!("{end} = *(u32 *)({context} + {offset})", end = out(reg) end, context = in(reg) self.context,
                offset = const offset_of!(__sk_buff, data_end), options(pure, readonly, nostack));
        }
        (data as usize, end as usize)
    }

    /// Moves the headers into the linear data if a driver or GRO left them in pages.
    #[inline(always)]
    pub(crate) fn pull_headers(&mut self) {
        let wanted = self.length().min(ALL_HEADERS as u32);
        // SAFETY: the context is the program's.
        unsafe {
            let linear = distance((*self.context).data, (*self.context).data_end);
            if linear < wanted {
                // If it fails, the headers cannot be read, which is noticed later.
                bpf_skb_pull_data(self.context, wanted);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn pull(&mut self, length: usize) -> Result<(), Refused> {
        if self.address::<u8>(length - 1).is_some() {
            return Ok(());
        }
        // SAFETY: the context is the program's.
        match unsafe { bpf_skb_pull_data(self.context, self.length().min(length as u32)) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    pub(crate) fn adjust_room(&mut self, change: i32, flags: u64) -> Result<(), Refused> {
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        match unsafe { bpf_skb_adjust_room(self.context, change, BPF_ADJ_ROOM_MAC, flags) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    /// Addresses an answer to a local process: the stack accepts only frames to its own interface.
    #[inline(always)]
    fn address_host(&mut self, mac: [u8; 6]) {
        if let Some(destination) = self.at_mut::<[u8; 6]>(0) {
            *destination = mac;
        }
    }
}
