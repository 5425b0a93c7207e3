//! The socket hooks: a local process that dials a frontend is redirected to the service address, and does not
//! notice.
//!
//! `connect` and `sendmsg` rewrite the destination, `recvmsg` and `getpeername` restore what was dialled.
//! Sockets of other network namespaces (containers) are left alone.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_ebpf::{
    abi::{Config, Dialled, FrontendKey, Ipv6Address, OwnKey},
    bytes::{Be16, Be32},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    mapped,
    mapped_tables::MappedTables,
    tables::Tables,
};

use crate::maps::{CONFIG, DIALLED, KernelTables};

/// The system call continues.
const PROCEED: i32 = 1;
/// The third 32 bits of `::ffff:0:0/96`.
const MAPPED_PART: u32 = u32::from_be(0x0000_ffff);
/// The last 32 bits of `::1`.
const LOOPBACK_PART: u32 = u32::from_be(1);

/// `connect` of IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub(crate) fn mesh_connect4(context: SockAddrContext) -> i32 {
    dial4(context.sock_addr)
}

/// `sendto` of unconnected IPv4 sockets.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn mesh_sendmsg4(context: SockAddrContext) -> i32 {
    dial4(context.sock_addr)
}

/// `connect` of IPv6 sockets, which reach IPv4 by mapped addresses (RFC 4291, 2.5.5.2), unless they are for
/// IPv6 only.
#[cgroup_sock_addr(connect6)]
pub(crate) fn mesh_connect6(context: SockAddrContext) -> i32 {
    dial6(context.sock_addr)
}

/// `sendto` of unconnected IPv6 sockets, but for mapped addresses, which are for `sendmsg4`. The kernel sends
/// nothing to IPv4 from here (`udpv6_sendmsg` fails with `ENOTSUPP`), so these datagrams are left to it.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn mesh_sendmsg6(context: SockAddrContext) -> i32 {
    let context = context.sock_addr;
    if own_namespace(context).is_some() {
        // SAFETY: as in `dial4`.
        let address = unsafe { address6(context) };
        note_own(context, mapped_peer(&Ipv6Address(address.map(Be32::from_raw))));
    }
    PROCEED
}

/// `recvfrom` of IPv4 sockets.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn mesh_recvmsg4(context: SockAddrContext) -> i32 {
    restore4(context.sock_addr)
}

/// `getpeername` of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn mesh_getpeername4(context: SockAddrContext) -> i32 {
    restore4(context.sock_addr)
}

/// `recvfrom` of IPv6 sockets.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn mesh_recvmsg6(context: SockAddrContext) -> i32 {
    restore6(context.sock_addr)
}

/// `getpeername` of IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn mesh_getpeername6(context: SockAddrContext) -> i32 {
    restore6(context.sock_addr)
}

#[inline(always)]
fn dial4(context: *mut bpf_sock_addr) -> i32 {
    // SAFETY: the context is the program's; the verifier checks which fields a hook may touch.
    unsafe {
        let address = Be32::from_raw((*context).user_ip4);
        if let Some(config) = redirected(context, address, false) {
            (*context).user_ip4 = config.service_address.raw();
        }
    }
    PROCEED
}

#[inline(always)]
fn dial6(context: *mut bpf_sock_addr) -> i32 {
    // SAFETY: as in `dial4`.
    unsafe {
        let [first, second, third, fourth] = address6(context);
        let (address, loopback) = match [first, second, third] {
            [0, 0, MAPPED_PART] => (Be32::from_raw(fourth), false),
            // `::1` and `::`, which connects to it.
            [0, 0, 0] if fourth == LOOPBACK_PART || fourth == 0 => (Be32::new(0x7f00_0001), true),
            _ => {
                let address = Ipv6Address([first, second, third, fourth].map(Be32::from_raw));
                (mapped_peer(&address), false)
            }
        };
        if let Some(config) = redirected(context, address, loopback) {
            (*context).user_ip6[0] = 0;
            (*context).user_ip6[1] = 0;
            (*context).user_ip6[2] = MAPPED_PART;
            (*context).user_ip6[3] = config.service_address.raw();
        }
    }
    PROCEED
}

/// The address of a context of IPv6, as it is in memory. Word by word: the verifier allows no other access.
///
/// # Safety
/// The context is the program's, of a hook that may read it.
#[inline(always)]
unsafe fn address6(context: *mut bpf_sock_addr) -> [u32; 4] {
    // SAFETY: this function's contract.
    unsafe {
        [
            (*context).user_ip6[0],
            (*context).user_ip6[1],
            (*context).user_ip6[2],
            (*context).user_ip6[3],
        ]
    }
}

/// What stands for an address that is dialled: of another machine, what its answers would come from, see
/// `to_ipv4`.
#[inline(always)]
fn mapped_peer(address: &Ipv6Address) -> Be32 {
    KernelTables
        .own_mapped(address)
        .unwrap_or_else(|| mapped::preferred(address))
}

/// The settings, if the socket dials a frontend of this node; records what it dialled.
#[inline(always)]
fn redirected(context: *mut bpf_sock_addr, address: Be32, ipv6_loopback: bool) -> Option<&'static Config> {
    let config = own_namespace(context)?;
    note_own(context, address);
    // SAFETY: the context is the program's.
    let (protocol, port) = unsafe {
        (
            (*context).protocol as u8,
            Be16::from_raw((*context).user_port as u16),
        )
    };
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return None;
    }
    if !KernelTables.is_published(protocol, port.get()) || config.mesh0 == 0 {
        return None;
    }
    let loopback = address.get() >> 24 == 127 || address.is_zero();
    let dialled = if loopback { config.service_address } else { address };
    let key = FrontendKey {
        address: dialled,
        port,
        protocol: u16::from(protocol),
    };
    KernelTables.frontend(&key)?;
    // SAFETY: the context is the program's.
    let cookie = unsafe { bpf_get_socket_cookie(context.cast()) };
    let record = Dialled {
        address,
        ipv6_loopback: u32::from(ipv6_loopback),
    };
    DIALLED.insert(cookie, record, 0).ok()?;
    Some(config)
}

/// Notes that a process awaits an answer at a UDP port that is also published. (A socket without a port gets
/// one later, from a range in which ports are seldom published.)
#[inline(always)]
fn note_own(context: *mut bpf_sock_addr, address: Be32) {
    // SAFETY: the context is the program's, and the socket was checked.
    let (protocol, remote_port, local_port) = unsafe {
        let socket = (*context).__bindgen_anon_1.sk;
        if socket.is_null() {
            return;
        }
        (
            (*context).protocol as u8,
            Be16::from_raw((*context).user_port as u16),
            Be16::new((*socket).src_port as u16),
        )
    };
    if protocol == PROTOCOL_UDP && KernelTables.is_published(PROTOCOL_UDP, local_port.get()) {
        KernelTables.note_own(&OwnKey {
            remote: address,
            remote_port,
            local_port,
        });
    }
}

#[inline(always)]
fn restore4(context: *mut bpf_sock_addr) -> i32 {
    // SAFETY: as in `dial4`.
    unsafe {
        if let Some(dialled) = original(context, Be32::from_raw((*context).user_ip4)) {
            (*context).user_ip4 = dialled.address.raw();
        }
    }
    PROCEED
}

#[inline(always)]
fn restore6(context: *mut bpf_sock_addr) -> i32 {
    // SAFETY: as in `dial4`.
    unsafe {
        if (*context).user_ip6[2] != MAPPED_PART {
            return PROCEED;
        }
        if let Some(dialled) = original(context, Be32::from_raw((*context).user_ip6[3])) {
            if dialled.ipv6_loopback != 0 {
                (*context).user_ip6[2] = 0;
                (*context).user_ip6[3] = LOOPBACK_PART;
            } else if let Some(Ipv6Address([first, second, third, fourth])) =
                KernelTables.own_ipv6(dialled.address)
            {
                (*context).user_ip6[0] = first.raw();
                (*context).user_ip6[1] = second.raw();
                (*context).user_ip6[2] = third.raw();
                (*context).user_ip6[3] = fourth.raw();
            } else {
                (*context).user_ip6[3] = dialled.address.raw();
            }
        }
    }
    PROCEED
}

/// What the socket dialled, if its peer is the service address.
#[inline(always)]
fn original(context: *mut bpf_sock_addr, address: Be32) -> Option<Dialled> {
    let config = own_namespace(context)?;
    if address != config.service_address {
        return None;
    }
    // SAFETY: the context is the program's; the value is copied at once.
    unsafe {
        let cookie = bpf_get_socket_cookie(context.cast());
        DIALLED.get(cookie).copied()
    }
}

#[inline(always)]
fn own_namespace(context: *mut bpf_sock_addr) -> Option<&'static Config> {
    let config = CONFIG.get(0)?;
    // SAFETY: the context is the program's.
    let cookie = unsafe { bpf_get_netns_cookie(context.cast()) };
    (cookie == config.netns_cookie).then_some(config)
}
