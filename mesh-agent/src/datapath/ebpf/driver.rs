//! The name of an interface's driver, by ethtool's ioctl. Used by this folder only.

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

/// The driver's name, e.g. `veth` or `virtio_net`; `None` if the interface or its driver does not tell.
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
    // SAFETY: `ifreq` is plain data; all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut information).cast();
    // SAFETY: the request names a buffer of the size that the command fills (196 bytes), which outlives it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result != 0 {
        return None;
    }
    let end = information.driver.iter().position(|byte| *byte == 0)?;
    String::from_utf8(information.driver[..end].to_vec()).ok()
}

const _: () = assert!(size_of::<DriverInformation>() == 196);
