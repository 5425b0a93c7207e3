//! The XDP hook: packets that leave the node again are sent from here, all others pass to tc.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
        xdp_action, xdp_md,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use mesh_ebpf::{
    abi::{Hook, Ipv6Address, NextHop},
    bytes::{Be16, Be32, Plain, Zeros, zeroed},
    checksum,
    frame::{ChecksumChange, Frame, ReadFrame, Refused, Route},
    headers::ETHERNET_LENGTH,
    pipeline,
    verdict::Action,
};

use crate::maps::KernelTables;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// There is no such interface (errno).
const ENODEV: i64 = 19;

/// Balances what arrives on an uplink.
#[xdp]
pub(crate) fn mesh_xdp(context: XdpContext) -> u32 {
    let mut frame = XdpFrame { context: context.ctx };
    match pipeline::run(&mut frame, &KernelTables, Hook::Xdp) {
        // tc has a program for exceptional packets.
        Action::Pass | Action::Exceptional | Action::Split { .. } => xdp_action::XDP_PASS,
        Action::Answer => xdp_action::XDP_TX,
        Action::Transmit { interface } => {
            // SAFETY: the context is the one the program was called with.
            if interface == unsafe { (*context.ctx).ingress_ifindex } {
                xdp_action::XDP_TX
            } else {
                // SAFETY: a plain helper call on values.
                unsafe { bpf_redirect(interface, 0) as u32 }
            }
        }
        Action::Drop
        | Action::Again
        | Action::IntoContainer { .. }
        | Action::IntoHost { .. }
        | Action::Route { .. } => xdp_action::XDP_DROP,
    }
}

/// An XDP frame: linear, never aggregated.
pub(crate) struct XdpFrame {
    pub(crate) context: *mut xdp_md,
}

impl ReadFrame for XdpFrame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { distance((*self.context).data, (*self.context).data_end) }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        // SAFETY: within the packet, as `address` checks; T takes any bytes at any alignment.
        self.address::<T>(offset)
            .map(|address| unsafe { &*(address as *const T) })
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the program's.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn has_interface(&self, index: u32) -> bool {
        has_interface(self.context.cast(), index)
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above, and `self` is borrowed for as long.
        self.address::<T>(offset)
            .map(|address| unsafe { &mut *(address as *mut T) })
    }

    #[inline(always)]
    fn change_checksum(&mut self, change: ChecksumChange) -> Result<(), Refused> {
        let field = self.at_mut::<Be16>(change.offset).ok_or(Refused)?;
        if change.udp && field.raw() == 0 {
            return Ok(());
        }
        let updated = checksum::updated(*field, change.pseudo.and(change.body));
        *field = if change.udp && updated.raw() == 0 {
            Be16::from_raw(0xffff)
        } else {
            updated
        };
        Ok(())
    }

    #[inline(always)]
    fn insert_outer(&mut self, length: usize) -> Result<(), Refused> {
        // SAFETY: the context is the program's; pointers into the packet are fetched again afterwards.
        match unsafe { bpf_xdp_adjust_head(self.context, -(length as i32)) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    fn remove_outer(&mut self, length: usize) -> Result<(), Refused> {
        // SAFETY: as above.
        match unsafe { bpf_xdp_adjust_head(self.context, length as i32) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    fn renew<const L3: usize>(&mut self, _: usize) -> Result<(), Refused> {
        let change = (ETHERNET_LENGTH + L3) as i32 - self.length() as i32;
        // SAFETY: as above.
        match unsafe { bpf_xdp_adjust_tail(self.context, change) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    #[inline(always)]
    fn route(&self, source: Be32, destination: Be32, l3_length: u16) -> Route {
        // SAFETY: the context is the program's.
        let interface = unsafe { (*self.context).ingress_ifindex };
        match route(self.context.cast(), interface, source, destination, l3_length) {
            // A layer 3 device: the kernel's neighbours have no address there, and only tc can send to it.
            Route::Resolved(next_hop) if !next_hop.takes_frames() => Route::Unresolved {
                interface: next_hop.interface,
            },
            route => route,
        }
    }
}

impl XdpFrame {
    #[inline(always)]
    fn address<T>(&self, offset: usize) -> Option<usize> {
        // SAFETY: the context is the program's.
        let (data, end) = unsafe { ((*self.context).data as usize, (*self.context).data_end as usize) };
        (data + offset + size_of::<T>() <= end).then_some(data + offset)
    }
}

/// Whether there is an interface with this index in the network namespace: without it, the kernel refuses to
/// look up routes from there. (`bpf_check_mtu` would do, but Linux has it since 5.12.)
#[inline(always)]
pub(crate) fn has_interface(context: *mut core::ffi::c_void, index: u32) -> bool {
    let mut memory = MaybeUninit::uninit();
    let FibParameters(parameters) = zeroed(&mut memory);
    parameters.family = AF_INET;
    parameters.ifindex = index;
    // SAFETY: the parameters live on this stack, with their size.
    let result = unsafe { fib_lookup(context, parameters, size_of::<bpf_fib_lookup>() as i32, 0) };
    i64::from(result as i32) != -ENODEV
}

/// Looks an address up in the kernel's routes and neighbours.
#[inline(always)]
pub(crate) fn route(
    context: *mut core::ffi::c_void,
    interface: u32,
    source: Be32,
    destination: Be32,
    l3_length: u16,
) -> Route {
    let mut memory = MaybeUninit::uninit();
    let FibParameters(parameters) = zeroed(&mut memory);
    parameters.family = AF_INET;
    parameters.ifindex = interface;
    parameters.__bindgen_anon_1.tot_len = l3_length;
    parameters.__bindgen_anon_3.ipv4_src = source.raw();
    parameters.__bindgen_anon_4.ipv4_dst = destination.raw();
    // SAFETY: the parameters live on this stack, with their size.
    let result = unsafe { fib_lookup(context, parameters, size_of::<bpf_fib_lookup>() as i32, 0) };
    match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Route::Resolved(NextHop {
            address: destination,
            interface: parameters.ifindex,
            source_mac: mac(&parameters.smac),
            destination_mac: mac(&parameters.dmac),
            // SAFETY: integers share the union. The kernel writes the MTU in place of the length; before
            // Linux 5.12 the length stays.
            inner_mtu: unsafe { parameters.__bindgen_anon_1.mtu_result },
            key: 0,
        }),
        BPF_FIB_LKUP_RET_NO_NEIGH => Route::Unresolved {
            interface: parameters.ifindex,
        },
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: integers share the union. The kernel writes the MTU in place of the length.
            let mtu = unsafe { parameters.__bindgen_anon_1.mtu_result };
            Route::TooBig {
                // Before Linux 5.12 it does not: then what every route carries.
                mtu: if mtu < l3_length { mtu } else { 576 },
            }
        }
        _ => Route::Unreachable,
    }
}

/// The same of IPv6, whatever the packet's size.
#[inline(always)]
pub(crate) fn route_ipv6(
    context: *mut core::ffi::c_void,
    interface: u32,
    source: &Ipv6Address,
    destination: &Ipv6Address,
) -> Route {
    let mut memory = MaybeUninit::uninit();
    let FibParameters(parameters) = zeroed(&mut memory);
    parameters.family = AF_INET6;
    parameters.ifindex = interface;
    parameters.__bindgen_anon_3.ipv6_src = source.0.map(Be32::raw);
    parameters.__bindgen_anon_4.ipv6_dst = destination.0.map(Be32::raw);
    // SAFETY: the parameters live on this stack, with their size.
    let result = unsafe { fib_lookup(context, parameters, size_of::<bpf_fib_lookup>() as i32, 0) };
    match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Route::Resolved(NextHop {
            address: Be32::new(0),
            interface: parameters.ifindex,
            source_mac: mac(&parameters.smac),
            destination_mac: mac(&parameters.dmac),
            inner_mtu: 0,
            key: 0,
        }),
        BPF_FIB_LKUP_RET_NO_NEIGH => Route::Unresolved {
            interface: parameters.ifindex,
        },
        _ => Route::Unreachable,
    }
}

/// Parameters of a look-up, in units of which stores to the stack are aligned.
#[repr(C, align(8))]
struct FibParameters(bpf_fib_lookup);

// SAFETY: `align(8)`, so its size is a multiple of that, too; integers and arrays of integers, of which all
// zeros are valid.
unsafe impl Zeros for FibParameters {}

/// The bytes between two pointers into a packet.
///
/// By an instruction on whole registers: the fields of the context have 32 bits, but hold pointers, and the
/// verifier refuses a program that keeps half of a pointer on its stack.
#[inline(always)]
pub(crate) fn distance(data: u32, end: u32) -> u32 {
    let mut length = u64::from(end);
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("{length} -= {data}", length = inout(reg) length, data = in(reg) u64::from(data),
            options(pure, nomem, nostack));
    }
    length as u32
}

/// Reads a MAC address of a [`bpf_fib_lookup`], 16 bits at a time.
///
/// Its second one is at offset 58, where the verifier refuses wider reads from the stack. The compiler
/// would choose them, as they are allowed in packets and maps.
#[inline(always)]
fn mac(address: &[u8; 6]) -> [u8; 6] {
    let parts = address.as_ptr().cast::<u16>();
    // SAFETY: within the address; both are at even offsets of an aligned structure.
    let [first, second, third] = unsafe {
        [
            parts.read_volatile(),
            parts.add(1).read_volatile(),
            parts.add(2).read_volatile(),
        ]
    };
    let ([a, b], [c, d], [e, f]) = (first.to_ne_bytes(), second.to_ne_bytes(), third.to_ne_bytes());
    [a, b, c, d, e, f]
}
