//! Tun devices: layer 3 devices whose far end is the program that has them open.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The largest packet without aggregation.
const MAX_PACKET: usize = 65_535;

/// A tun device, which is gone when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes one of a name in the calling thread's network namespace. It is down and has no address.
    ///
    /// # Errors
    /// When the name is too long, or the kernel refuses: it has no tun, or there is such an interface.
    pub fn new(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|error| io::Error::other(format!("could not open /dev/net/tun: {error}")))?;
        // SAFETY: every field of `ifreq` is an integer, an array of integers, a raw pointer or a union of
        // these, for all of which zero bytes are a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::other(format!("`{name}` is too long for an interface")));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: `TUNSETIFF` reads and writes one `ifreq`, which `request` is; it is live and exclusively
        // borrowed until the call returns. The name ends in a zero byte, as it is shorter than its field,
        // which was zeroed.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::other(format!(
                "could not make the tun device {name}: {error}"
            )));
        }
        Ok(Self { file })
    }

    /// Lets the device receive a packet, which begins with its IP header.
    ///
    /// # Errors
    /// When the device is down.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write_all(packet)
    }

    /// The next packet that the device sends; `None` when there is none for so long.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut watched = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            if poll(&mut watched, timeout)? > 0 {
                let mut packet = vec![0; MAX_PACKET];
                let length = (&self.file).read(&mut packet)?;
                packet.truncate(length);
                return Ok(Some(packet));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }
}
