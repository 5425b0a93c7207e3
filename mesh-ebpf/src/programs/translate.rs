//! The programs between IPv6 and the pipeline: tc programs that those of the hooks call.

use core::mem::{MaybeUninit, size_of, transmute_copy};

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
    },
    helpers::{bpf_skb_adjust_room, bpf_skb_change_proto, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use mesh_ebpf::{
    abi::{Called, Hook, Ipv6Address},
    bytes::Be16,
    frame::{Frame, ReadFrame, Refused, Route, TranslateFrame},
    headers::{ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6},
    to_ipv4::{self, Next},
    to_ipv6,
};

use crate::{
    maps::KernelTables,
    tc::{Skb, TC_ACT_UNSPEC, WAS_IPV6, act, call},
    xdp::route_ipv6,
};

/// The kernel's mark of frames with the interface's own MAC address (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// An IPv6 packet of an uplink.
#[classifier]
#[inline(always)]
pub(crate) fn to_ipv4_uplink(context: TcContext) -> i32 {
    translate(
        &context,
        Hook::TcUplink,
        Called::Uplink,
        Called::ExceptionalUplink,
    )
}

/// An IPv6 packet of a container.
#[classifier]
#[inline(always)]
pub(crate) fn to_ipv4_container(context: TcContext) -> i32 {
    translate(
        &context,
        Hook::TcContainer,
        Called::Container,
        Called::ExceptionalContainer,
    )
}

/// A packet for an IPv6 client, on mesh0.
#[classifier]
#[inline(always)]
pub(crate) fn to_ipv6(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context, Hook::TcMesh0);
    skb.pull_headers();
    let action = to_ipv6::run(&mut skb, &KernelTables, Hook::TcMesh0);
    act(&mut skb, action, None)
}

#[inline(always)]
fn translate(context: &TcContext, hook: Hook, pipeline: Called, exceptional: Called) -> i32 {
    let mut skb = Skb::new(context, hook);
    skb.pull_headers();
    let program = match to_ipv4::run(&mut skb, &KernelTables, hook) {
        Next::Pass => return TC_ACT_UNSPEC,
        Next::Drop => return TC_ACT_SHOT,
        Next::Pipeline => pipeline,
        Next::Exceptional => exceptional,
    };
    // SAFETY: nothing is left to drop.
    unsafe { call(&skb, program) };
    // There is no such program: what is IPv4 now is of no use to the kernel.
    TC_ACT_SHOT
}

impl TranslateFrame for Skb {
    #[inline(always)]
    fn put_ipv4(&mut self, header: &Ipv4) -> Result<(), Refused> {
        self.change_protocol(ETHERTYPE_IPV4)?;
        // SAFETY: both are of the same size, and of integers.
        self.store(unsafe { transmute_copy::<Ipv4, [u32; 5]>(header) })
    }

    #[inline(always)]
    fn put_ipv6(&mut self, header: &Ipv6) -> Result<(), Refused> {
        self.change_protocol(ETHERTYPE_IPV6)?;
        // SAFETY: as above.
        self.store(unsafe { transmute_copy::<Ipv6, [u32; 10]>(header) })
    }

    /// At the front, where the kernel lets also an skb that is marked as encapsulated grow.
    #[inline(always)]
    fn lengthen(&mut self, length: usize) -> Result<(), Refused> {
        let missing = (length as u32).saturating_sub(self.length());
        if missing != 0 {
            self.adjust_room(missing as i32, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
        }
        self.pull(length)
    }

    #[inline(always)]
    fn insert_extension(&mut self, length: usize) -> Result<(), Refused> {
        self.adjust_extension(length as i32)
    }

    #[inline(always)]
    fn remove_extension(&mut self, length: usize) -> Result<(), Refused> {
        self.adjust_extension(-(length as i32))
    }

    #[inline(always)]
    fn is_for_interface(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.context).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn note_ipv6(&mut self) {
        // SAFETY: the context is the program's.
        unsafe {
            (*self.context).cb[0] = WAS_IPV6[0];
            (*self.context).cb[1] = WAS_IPV6[1];
        }
    }

    #[inline(always)]
    fn route_ipv6(&self, source: &Ipv6Address, destination: &Ipv6Address) -> Route {
        // SAFETY: the context outlives the program's run.
        let interface = unsafe { (*self.context).ifindex };
        route_ipv6(self.context.cast(), interface, source, destination)
    }
}

impl Skb {
    /// Lets the frame have a header of the other IP version, of undefined content.
    #[inline(always)]
    pub(crate) fn change_protocol(&mut self, ethertype: Be16) -> Result<(), Refused> {
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        if unsafe { bpf_skb_change_proto(self.context, ethertype.raw(), 0) } != 0 {
            return Err(Refused);
        }
        self.at_mut::<Ethernet>(0).ok_or(Refused)?.ethertype = ethertype;
        Ok(())
    }

    /// Adds or removes bytes behind the IPv6 header.
    #[inline(always)]
    fn adjust_extension(&mut self, difference: i32) -> Result<(), Refused> {
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        match unsafe { bpf_skb_adjust_room(self.context, difference, BPF_ADJ_ROOM_NET, flags) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    /// Writes an IP header. The sum of the whole packet, which the card may have computed, follows.
    #[inline(always)]
    fn store<const WORDS: usize>(&mut self, header: [u32; WORDS]) -> Result<(), Refused> {
        let mut memory = [const { MaybeUninit::<u32>::uninit() }; WORDS];
        for (slot, word) in memory.iter_mut().zip(header) {
            // SAFETY: the memory is this function's. By whole words: the compiler would join the header's
            // fields at other offsets, where the verifier refuses stores to the stack.
            unsafe { slot.as_mut_ptr().write_volatile(word) };
        }
        let length = size_of::<[u32; WORDS]>() as u32;
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: the context is the program's, and the memory has so many bytes.
        match unsafe {
            bpf_skb_store_bytes(
                self.context,
                ETHERNET_LENGTH as u32,
                memory.as_ptr().cast(),
                length,
                flags,
            )
        } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }
}
