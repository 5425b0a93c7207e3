//! Makes IPv6 frames of the IPv4 ones: of the same packets, between addresses of IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::oracle::{ETHERNET, FRAGMENT, ICMPV6, IPV6, IPV6_HEADER, Ip, number, pseudo_header, sum};
use crate::cluster::{NODE, OWN_IPV6};

const ICMP: u8 = 1;
/// Next headers of extension headers: hop-by-hop options, routing, fragment, destination options.
pub(super) const EXTENSIONS: [u8; 4] = [0, 43, FRAGMENT, 60];

/// The frame with an IPv6 packet instead of the IPv4 one; `None` if it has none without options.
pub(super) fn frame(ipv4: &[u8]) -> Option<Vec<u8>> {
    let is_plain = ipv4.get(12..15)? == [8, 0, 0x45];
    let mut packet = is_plain.then(|| packet(&ipv4[ETHERNET..])).flatten()?;
    fix_checksum(&mut packet);
    let mut frame = ipv4[..12].to_vec();
    frame.extend(IPV6);
    frame.extend(packet);
    Some(frame)
}

/// Puts an extension header of 8 bytes behind the IP header.
pub(super) fn extend(frame: &mut Vec<u8>, kind: u8, content: [u8; 7]) {
    let at = ETHERNET + IPV6_HEADER;
    let mut header = [0; 8];
    header[0] = std::mem::replace(&mut frame[ETHERNET + 6], kind);
    // Its length is zero: no more than these bytes.
    header[2..].copy_from_slice(&content[..6]);
    frame.splice(at..at, header);
    let length = (frame.len() - at) as u16;
    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
}

/// The IPv6 packet of an IPv4 one, or of the beginning of one.
fn packet(ipv4: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = ipv4.split_at_checked(20)?;
    let is_icmp = header[9] == ICMP;
    let rest = if is_icmp { message(rest)? } else { rest.to_vec() };
    let protocol = if is_icmp { ICMPV6 } else { header[9] };
    let length = if is_icmp {
        rest.len() as u16
    } else {
        number(&header[2..]).saturating_sub(20)
    };
    let mut packet = vec![0x60 | header[1] >> 4, header[1] << 4, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([protocol, header[8]]);
    for at in [12, 16] {
        packet.extend(address(&header[at..at + 4]).octets());
    }
    packet.extend(rest);
    Some(packet)
}

/// An ICMPv6 message like one of ICMP (RFC 7915, 4.2), with the packet in it.
fn message(icmp: &[u8]) -> Option<Vec<u8>> {
    let (header, about) = icmp.split_at_checked(8)?;
    let (kind, code) = match (header[0], header[1]) {
        (3, 4) => (2, 0),
        (3, 3) => (1, 4),
        (3, code) => (1, code),
        (11, code) => (3, code),
        (8, _) => (128, 0),
        (kind, code) => (kind, code),
    };
    let mut message = vec![kind, code, 0, 0];
    message.extend(&header[4..]);
    message.extend(packet(about)?);
    Some(message)
}

/// The address that an IPv4 one stands for.
fn address(ipv4: &[u8]) -> Ipv6Addr {
    let ipv4 = Ipv4Addr::new(ipv4[0], ipv4[1], ipv4[2], ipv4[3]);
    if ipv4 == NODE {
        return OWN_IPV6;
    }
    let [.., network, host] = ipv4.octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, network.into(), 0, 0, 0, host.into())
}

/// Makes the checksum of what an IPv6 packet carries right.
fn fix_checksum(packet: &mut [u8]) {
    let Some(at) = Ip::of(packet).and_then(|ip| ip.checksum_at()) else {
        return;
    };
    let Some(field) = packet.get_mut(IPV6_HEADER + at..IPV6_HEADER + at + 2) else {
        return;
    };
    field.fill(0);
    let Some(ip) = Ip::of(packet) else { return };
    let checksum = match !sum(ip.rest, pseudo_header(&ip)) {
        // Means that there is none.
        0 => 0xffff,
        checksum => checksum,
    };
    packet[IPV6_HEADER + at..IPV6_HEADER + at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{CLIENT, WEB, arriving, frontend},
        frames::{Packet, SYN},
        fuzz::oracle::{has_followers, is_not_ours, is_sound},
        run::Entry,
    };

    #[test]
    fn a_packet_of_ipv6_is_sound_and_may_be_ours() {
        let tcp = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let udp = Packet::udp(arriving(), CLIENT, frontend(WEB)).with_payload(11);
        for packet in [tcp, udp] {
            let mut sent = frame(&packet.frame()).unwrap();
            assert!(is_sound(&sent) && !has_followers(Entry::Uplink, &sent));
            assert!(!is_not_ours(Entry::Uplink, &sent) && is_not_ours(Entry::Xdp, &sent));
            let mut spoilt = sent.clone();
            *spoilt.last_mut().unwrap() ^= 1;
            assert!(!is_sound(&spoilt));
            extend(&mut sent, 60, [1, 4, 0, 0, 0, 0, 0]);
            assert!(is_not_ours(Entry::Uplink, &sent), "the kernel refuses it");
        }
    }
}
