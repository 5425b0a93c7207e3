//! Sends raw frames, past the kernel's own protocols. The only file here with `unsafe`; depends on nothing.

use std::{
    io::BufRead,
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket},
};

/// Sends frames out of an interface, one for each line of hexadecimal digits; returns how many.
///
/// # Errors
/// When a line is no frame, or the kernel refuses it.
pub fn from_lines(interface: &str, lines: impl BufRead) -> Result<usize> {
    let (socket, address) = (raw_socket()?, link_address(interface)?);
    let mut count = 0;
    for line in lines.lines() {
        let frame = bytes(line.context("could not read a frame")?.trim())?;
        sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())
            .with_context(|| format!("could not send frame {} of {} bytes", count + 1, frame.len()))?;
        count += 1;
    }
    Ok(count)
}

/// A socket that sends frames as they are.
pub(crate) fn raw_socket() -> Result<OwnedFd> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("could not open a packet socket; that needs CAP_NET_RAW")
}

/// Where such a socket sends to: out of an interface.
pub(crate) fn link_address(interface: &str) -> Result<LinkAddr> {
    let index = if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))?;
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index
            .try_into()
            .context("the interface's index is out of range")?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole, initialised `sockaddr_ll` that lives until the call returns,
    // its length is passed, and the call copies from it; `sockaddr` is a prefix of it by its family.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.context("the kernel's link address is malformed")
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        bail!("`{digits}` is not bytes as hexadecimal digits");
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&digits[at..at + 2], 16)
                .with_context(|| format!("`{digits}` is not hexadecimal"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_become_bytes() -> Result<()> {
        assert_eq!(bytes("00ff10")?, [0, 255, 16]);
        assert!(bytes("0").is_err() && bytes("zz").is_err());
        Ok(())
    }
}
