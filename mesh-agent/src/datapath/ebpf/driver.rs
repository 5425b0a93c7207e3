//! The name of an interface's driver, read by ethtool's ioctl.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` (`linux/ethtool.h`).
#[repr(C)]
struct DriverInformation {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// The driver's name, e.g. `veth` or `virtio_net`; `None` if there is no such interface or its driver does
/// not say.
pub(super) fn driver_name(interface: &str) -> Option<String> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    let mut information = DriverInformation {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: every field of `ifreq` is an integer, an array of integers, a raw pointer or a union of these,
    // for all of which zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut information).cast();
    // SAFETY: `ETHTOOL_GDRVINFO` writes one `ethtool_drvinfo` (196 bytes, asserted below) through
    // `ifru_data`, which points to `information` of that size; that and `request` are live and exclusively
    // borrowed until the call returns. The interface's name ends in a zero byte, as it is shorter than its
    // field, which was zeroed.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result != 0 {
        return None;
    }
    let end = information.driver.iter().position(|byte| *byte == 0)?;
    String::from_utf8(information.driver[..end].to_vec()).ok()
}

const _: () = assert!(size_of::<DriverInformation>() == 196);
