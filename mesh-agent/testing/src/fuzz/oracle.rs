//! What is known of a frame without the code under test: whether it can be the mesh's, and whether its
//! lengths and checksums are right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    cluster::{DNS, NODE, OWN_IPV6, SERVICE_ADDRESS, WEB, target},
    run::{Entry, TC_REDIRECT, TC_SHOT, TC_UNSPEC, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// IPv6's EtherType.
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
/// Bytes of an IPv6 header.
pub(super) const IPV6_HEADER: usize = 40;
/// The UDP port between nodes.
pub(super) const GENEVE: u16 = 6081;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
/// IPv6's fragment header.
pub(super) const FRAGMENT: u8 = 44;
/// ICMPv6 messages that are errors (RFC 4443): all others are the kernel's, such as neighbour discovery.
const ERRORS: std::ops::RangeInclusive<u8> = 1..=4;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Left to the kernel.
    Passed,
    Dropped,
    /// Sent on or answered.
    Sent,
}

/// `None` for a verdict that the hook's program never has.
pub(super) fn fate(entry: Entry, verdict: u32) -> Option<Fate> {
    match (entry, verdict) {
        (Entry::Xdp, XDP_PASS) => Some(Fate::Passed),
        (Entry::Xdp, XDP_DROP) => Some(Fate::Dropped),
        (Entry::Xdp, XDP_TX | XDP_REDIRECT) => Some(Fate::Sent),
        (Entry::Xdp, _) => None,
        (_, TC_UNSPEC) => Some(Fate::Passed),
        (_, TC_SHOT) => Some(Fate::Dropped),
        (_, TC_REDIRECT) => Some(Fate::Sent),
        _ => None,
    }
}

/// A packet as far as it can be read. Extension headers of IPv6 are part of the rest.
pub(super) struct Ip<'a> {
    header: &'a [u8],
    pub(super) rest: &'a [u8],
    protocol: u8,
    destination: IpAddr,
}

impl<'a> Ip<'a> {
    pub(super) fn of(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let is_ipv6 = first >> 4 == 6;
        let length = if is_ipv6 {
            IPV6_HEADER
        } else {
            usize::from(first & 15) * 4
        };
        let is_header = [4, 6].contains(&(first >> 4)) && length >= 20 && packet.len() >= length;
        let (header, rest) = is_header.then(|| packet.split_at(length))?;
        let (protocol, destination) = if is_ipv6 {
            (header[6], address16(&header[24..]))
        } else {
            (header[9], address4(&header[16..]))
        };
        Some(Self {
            header,
            rest,
            protocol,
            destination,
        })
    }

    fn is_ipv6(&self) -> bool {
        self.destination.is_ipv6()
    }

    /// The packet's length as its header has it.
    fn length(&self) -> usize {
        if self.is_ipv6() {
            IPV6_HEADER + usize::from(number(&self.header[4..]))
        } else {
            usize::from(number(&self.header[2..]))
        }
    }

    fn is_fragment(&self) -> bool {
        if self.is_ipv6() {
            self.protocol == FRAGMENT
        } else {
            number(&self.header[6..]) & 0x3fff != 0
        }
    }

    fn is_carrier(&self) -> bool {
        !self.is_ipv6() && number(&self.header[6..]) & 0x3fff == 0x3fff
    }

    /// Source and destination port.
    fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = [TCP, UDP].contains(&self.protocol) && self.rest.len() >= 4;
        has_ports.then(|| (number(self.rest), number(&self.rest[2..])))
    }

    /// Where the rest has its checksum.
    pub(super) fn checksum_at(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(16),
            UDP => Some(6),
            ICMPV6 => Some(2),
            _ => None,
        }
    }
}

/// The sum over what the checksums of TCP, UDP and ICMPv6 include of the IP header.
pub(super) fn pseudo_header(ip: &Ip<'_>) -> u32 {
    let addresses = if ip.is_ipv6() {
        &ip.header[8..40]
    } else {
        &ip.header[12..20]
    };
    let fields = u32::from(ip.protocol) + ip.rest.len() as u32;
    u32::from(sum(addresses, fields))
}

/// Whether a packet has the fragment field of those in which the programs carry a fragment that they have
/// held back: no other sender has use for it, as no packet is so long. They put that fragment into it.
pub(super) fn is_carrier(entry: Entry, frame: &[u8]) -> bool {
    let start = if entry == Entry::Layer3 { 0 } else { ETHERNET };
    let ip = frame.get(start..).and_then(Ip::of);
    ip.is_some_and(|ip| ip.is_carrier())
}

/// Whether parts of a packet, or fragments that came before it, may arrive after it, at the programs that are
/// attached.
pub(super) fn has_followers(entry: Entry, frame: &[u8]) -> bool {
    /// What the tunnel carries.
    const LARGEST: usize = 1400;
    let start = if entry == Entry::Layer3 { 0 } else { ETHERNET };
    let ip = frame.get(start..).and_then(Ip::of);
    frame.len() > LARGEST || ip.is_some_and(|ip| ip.is_fragment())
}

/// Whether no program may do more than pass a frame on. False where that is not certain.
pub(super) fn is_not_ours(entry: Entry, frame: &[u8]) -> bool {
    match entry {
        Entry::Xdp | Entry::Uplink | Entry::Container => {}
        // A test run reads the protocol from what it takes for an Ethernet header; and whatever gets to mesh0
        // is for a frontend or dropped.
        Entry::Layer3 | Entry::Local => return false,
    }
    let Some(version) = version(frame) else {
        return true;
    };
    let Some(ip) = Ip::of(&frame[ETHERNET..]) else {
        return false;
    };
    if version == 6 {
        return entry == Entry::Xdp || !ip.is_ipv6() || !may_be_ours(&ip);
    }
    // A fragment can belong to a datagram whose first one came in elsewhere.
    if ip.is_fragment() {
        return false;
    }
    if ![ICMP, TCP, UDP].contains(&ip.protocol) {
        return true;
    }
    let published = [WEB.port, DNS.port];
    let for_us = [NODE, SERVICE_ADDRESS]
        .map(IpAddr::from)
        .contains(&ip.destination);
    match entry {
        Entry::Container => ip.ports().is_some_and(|(source, destination)| {
            let is_answer = [target(WEB).port(), target(DNS).port()].contains(&source);
            !(is_answer || for_us && published.contains(&destination))
        }),
        _ if !for_us => true,
        _ => ip
            .ports()
            .is_some_and(|(_, destination)| !published.contains(&destination) && destination != GENEVE),
    }
}

/// Of a packet of IPv6.
fn may_be_ours(ip: &Ip<'_>) -> bool {
    let is_published = |port| [WEB.port, DNS.port].contains(&port);
    let is_about_us = match ip.protocol {
        TCP | UDP => ip
            .ports()
            .is_none_or(|(_, destination)| is_published(destination)),
        FRAGMENT => {
            // A later one can belong to a datagram whose first one came in before.
            let is_first = ip.rest.get(2..4).is_some_and(|field| number(field) >> 3 == 0);
            let port = ip.rest.get(10..12).map(number);
            ip.rest.first().is_some_and(|next| [TCP, UDP].contains(next))
                && (!is_first || port.is_none_or(is_published))
        }
        ICMPV6 => ip.rest.first().is_none_or(|kind| ERRORS.contains(kind)),
        _ => false,
    };
    ip.destination == OWN_IPV6 && is_about_us
}

/// Whether a frame is a whole packet whose lengths and checksums are right, those of an encapsulated packet
/// included.
pub(super) fn is_sound(frame: &[u8]) -> bool {
    has_right_sums(frame, false)
}

/// The same of a frame that may carry a fragment, whose checksum is over all of them.
pub(super) fn is_sound_or_fragment(frame: &[u8]) -> bool {
    has_right_sums(frame, true)
}

/// The IP version that the Ethernet header names.
pub(super) fn version(frame: &[u8]) -> Option<u8> {
    match frame.get(12..ETHERNET)? {
        [8, 0] => Some(4),
        protocol if protocol == IPV6 => Some(6),
        _ => None,
    }
}

fn has_right_sums(frame: &[u8], or_fragment: bool) -> bool {
    let Some(version) = version(frame) else {
        return false;
    };
    let packet = &frame[ETHERNET..];
    packet.first().is_some_and(|first| first >> 4 == version) && is_sound_packet(packet, or_fragment)
}

fn is_sound_packet(packet: &[u8], or_fragment: bool) -> bool {
    let Some(ip) = Ip::of(packet) else { return false };
    if ip.length() != packet.len() || !ip.is_ipv6() && sum(ip.header, 0) != 0xffff {
        return false;
    }
    let rest = ip.rest;
    if ip.is_fragment() {
        return or_fragment;
    }
    let pseudo = pseudo_header(&ip);
    match ip.protocol {
        TCP => {
            let header = rest.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            header >= 20 && header <= rest.len() && sum(rest, pseudo) == 0xffff
        }
        UDP if rest.len() < 8 || usize::from(number(&rest[4..])) != rest.len() => false,
        UDP => {
            let has_none = number(&rest[6..]) == 0;
            let is_right = sum(rest, pseudo) == 0xffff;
            (if has_none { !ip.is_ipv6() } else { is_right }) && is_sound_tunnel(rest, or_fragment)
        }
        ICMP => rest.len() >= 8 && sum(rest, 0) == 0xffff,
        ICMPV6 => rest.len() >= 8 && sum(rest, pseudo) == 0xffff,
        _ => true,
    }
}

/// Whether a datagram between nodes carries a sound packet, or none.
fn is_sound_tunnel(datagram: &[u8], or_fragment: bool) -> bool {
    if number(&datagram[2..]) != GENEVE {
        return true;
    }
    let Some(first) = datagram.get(8) else {
        return false;
    };
    let inner = 16 + usize::from(first & 0x3f) * 4;
    match datagram.get(inner..) {
        None => false,
        Some([]) => true,
        Some(inner) => is_sound_packet(inner, or_fragment),
    }
}

/// The sum of 16-bit words with end-around carry; all ones over what holds a right checksum.
pub(super) fn sum(bytes: &[u8], initial: u32) -> u16 {
    let mut total = initial;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

pub(super) fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn address4(bytes: &[u8]) -> IpAddr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
}

/// Of the 16 bytes at the start.
fn address16(bytes: &[u8]) -> IpAddr {
    let parts = std::array::from_fn(|part| number(&bytes[part * 2..]));
    let [a, b, c, d, e, f, g, h] = parts;
    Ipv6Addr::new(a, b, c, d, e, f, g, h).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{CLIENT, arriving, from_peer, frontend},
        frames::{FORWARD, Packet, SYN},
    };

    #[test]
    fn a_frame_is_sound_until_a_byte_of_it_changes() {
        let packet = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        for frame in [packet.frame(), from_peer(WEB, FORWARD).around(&packet)] {
            assert!(is_sound(&frame));
            let last = frame.len() - 1;
            for at in [16, 24, 33, last] {
                let mut spoilt = frame.clone();
                spoilt[at] ^= 1;
                assert!(!is_sound(&spoilt), "byte {at}");
            }
            assert!(!is_sound(&frame[..last]));
        }
    }

    #[test]
    fn what_is_for_a_published_port_may_be_ours() {
        let packet = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        assert!(!is_not_ours(Entry::Xdp, &packet.frame()));
        let mut other = packet.clone();
        other.destination.set_port(22);
        assert!(is_not_ours(Entry::Xdp, &other.frame()) && is_not_ours(Entry::Container, &other.frame()));
        let mut elsewhere = packet;
        elsewhere.destination.set_ip(Ipv4Addr::new(10, 0, 0, 9));
        assert!(is_not_ours(Entry::Uplink, &elsewhere.frame()));
        let mut vlan = elsewhere.frame();
        vlan[12..14].copy_from_slice(&[0x81, 0]);
        assert!(is_not_ours(Entry::Uplink, &vlan));
    }
}
