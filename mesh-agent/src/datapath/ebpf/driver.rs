//! What an interface's driver says of itself, read by ethtool's ioctl.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;
const ETHTOOL_GFLAGS: u32 = 0x25;
/// The card takes VLAN tags out of the frames that it receives.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_drvinfo` (`linux/ethtool.h`).
#[repr(C)]
struct DriverInformation {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_value` (`linux/ethtool.h`).
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The driver's name, e.g. `veth` or `virtio_net`; `None` if there is no such interface or its driver does
/// not say.
pub(super) fn driver_name(interface: &str) -> Option<String> {
    let mut information = DriverInformation {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: `ETHTOOL_GDRVINFO` writes one `ethtool_drvinfo` (196 bytes, asserted below).
    unsafe { request(interface, &mut information) }?;
    let end = information.driver.iter().position(|byte| *byte == 0)?;
    String::from_utf8(information.driver[..end].to_vec()).ok()
}

/// Whether VLAN tags are out of the frames before XDP sees these: then nothing there tells a VLAN's frames
/// from the card's own. Assumed of a driver that does not say.
pub(super) fn takes_vlan_tags_off(interface: &str) -> bool {
    let mut flags = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    // SAFETY: `ETHTOOL_GFLAGS` writes one `ethtool_value` (8 bytes, asserted below).
    match unsafe { request(interface, &mut flags) } {
        Some(()) => flags.data & ETH_FLAG_RXVLAN != 0,
        None => true,
    }
}

/// Asks ethtool about an interface; `None` if it does not answer.
///
/// # Safety
/// The command in the first four bytes of `message` must read and write no more than `message`.
unsafe fn request<T>(interface: &str, message: &mut T) -> Option<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    // SAFETY: every field of `ifreq` is an integer, an array of integers, a raw pointer or a union of these,
    // for all of which zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *message).cast();
    // SAFETY: what the command writes through `ifru_data` stays within `message`, as the caller has promised;
    // that and `request` are live and exclusively borrowed until the call returns. The interface's name ends
    // in a zero byte, as it is shorter than its field, which was zeroed.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then_some(())
}

const _: () = assert!(size_of::<DriverInformation>() == 196 && size_of::<Value>() == 8);
