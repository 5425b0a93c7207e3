//! Answers to the sender of a packet that cannot be served: TCP RST, ICMP errors.

use crate::{
    abi::Endpoint,
    bytes::{Be16, Be32, Plain},
    checksum::{self, Difference},
    encapsulation,
    frame::{Frame, Refused},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, IPV4_LENGTH, Icmp, Ipv4, L4_OFFSET, PROTOCOL_ICMP,
        PROTOCOL_TCP, TCP_ACK, TCP_FIN, TCP_LENGTH, TCP_RST, TCP_SYN, Tcp,
    },
    ipv4,
};

const ICMP_UNREACHABLE: u8 = 3;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
/// What an ICMP error quotes: the IP header and 8 bytes (RFC 792).
const QUOTE_LENGTH: usize = IPV4_LENGTH + 8;
const RESET_LENGTH: usize = IPV4_LENGTH + TCP_LENGTH;
const ERROR_LENGTH: usize = IPV4_LENGTH + size_of::<Icmp>() + QUOTE_LENGTH;

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Quote {
    ip: Ipv4,
    rest: [u8; 8],
}

// SAFETY: packed, no padding, integers only.
unsafe impl Plain for Quote {}

/// Whether a refusal would be larger than the packet. From the network, where a sender need not be who it
/// says, such a packet gets none, so that no one can make the mesh send more than they do.
#[inline(always)]
pub fn is_larger_than<F: Frame>(frame: &F) -> bool {
    frame.at::<Ipv4>(ETHERNET_LENGTH).is_none_or(|ip| {
        ip.protocol != PROTOCOL_TCP
            && usize::from(ip.total_length.get()) < ERROR_LENGTH
            && frame.segment_size() == 0
    })
}

/// Turns the packet into a refusal, addressed to its sender: RST for TCP (RFC 9293,
/// 3.10.7.1), "port unreachable" for UDP.
///
/// # Errors
/// [`Refused`] when the packet must not be answered (a RST itself) or could not be resized.
#[inline(always)]
pub fn refuse<F: Frame>(frame: &mut F) -> Result<(), Refused> {
    refuse_behind::<false, F>(frame, None)
}

/// The same for an encapsulated packet: the frame becomes a plain one, addressed to `client`, which the inner
/// packet's sender was before its source was translated. Its Ethernet header is yet to be written.
///
/// # Errors
/// As [`refuse`].
#[inline(always)]
pub fn refuse_inner<F: Frame>(frame: &mut F, client: Endpoint) -> Result<(), Refused> {
    refuse_behind::<true, F>(frame, Some(client))
}

#[inline(always)]
fn refuse_behind<const ENCAPSULATED: bool, F: Frame>(
    frame: &mut F,
    client: Option<Endpoint>,
) -> Result<(), Refused> {
    let outer = outer::<ENCAPSULATED, F>(frame);
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH + outer).ok_or(Refused)?;
    if ip.protocol == PROTOCOL_TCP {
        reset::<ENCAPSULATED, F>(frame, &ip, client)
    } else {
        icmp::<ENCAPSULATED, F>(frame, ICMP_PORT_UNREACHABLE, 0, client)
    }
}

/// Bytes of outer headers before the packet.
#[inline(always)]
fn outer<const ENCAPSULATED: bool, F: Frame>(frame: &F) -> usize {
    if ENCAPSULATED {
        encapsulation::outer_length(frame)
    } else {
        0
    }
}

/// Turns the packet into "fragmentation needed" with the MTU that fits.
///
/// # Errors
/// [`Refused`] when it could not be resized.
#[inline(always)]
pub fn too_big<F: Frame>(frame: &mut F, mtu: u16) -> Result<(), Refused> {
    icmp::<false, F>(frame, ICMP_FRAGMENTATION_NEEDED, mtu, None)
}

/// The same for an encapsulated packet: the frame becomes a plain one, to the inner packet's sender.
///
/// # Errors
/// As [`too_big`].
#[inline(always)]
pub fn too_big_inner<F: Frame>(frame: &mut F, mtu: u16) -> Result<(), Refused> {
    icmp::<true, F>(frame, ICMP_FRAGMENTATION_NEEDED, mtu, None)
}

#[inline(always)]
fn reset<const ENCAPSULATED: bool, F: Frame>(
    frame: &mut F,
    ip: &Ipv4,
    client: Option<Endpoint>,
) -> Result<(), Refused> {
    let outer = outer::<ENCAPSULATED, F>(frame);
    let tcp = *frame.at::<Tcp>(L4_OFFSET + outer).ok_or(Refused)?;
    let client = client.unwrap_or(Endpoint::new(ip.source, tcp.source));
    if tcp.flags & TCP_RST != 0 {
        return Err(Refused);
    }
    let ethernet = *frame.at::<Ethernet>(0).ok_or(Refused)?;
    let (sequence, acknowledgement, flags) = if tcp.flags & TCP_ACK != 0 {
        (tcp.acknowledgement, Be32::new(0), TCP_RST)
    } else {
        let header = u16::from(tcp.data_offset >> 4) * 4;
        let payload = ip
            .total_length
            .get()
            .wrapping_sub(IPV4_LENGTH as u16)
            .wrapping_sub(header);
        let controls = u32::from(tcp.flags & TCP_SYN != 0) + u32::from(tcp.flags & TCP_FIN != 0);
        let next = tcp
            .sequence
            .get()
            .wrapping_add(u32::from(payload))
            .wrapping_add(controls);
        (Be32::new(0), Be32::new(next), TCP_RST | TCP_ACK)
    };
    let mut answer = Tcp {
        source: tcp.destination,
        destination: client.port,
        sequence,
        acknowledgement,
        data_offset: (TCP_LENGTH as u8 / 4) << 4,
        flags,
        window: Be16::new(0),
        checksum: Be16::new(0),
        urgent: Be16::new(0),
    };
    let control = u16::from_ne_bytes([answer.data_offset, answer.flags]);
    answer.checksum = checksum::finish(
        checksum::pseudo_header(ip.destination, client.address, PROTOCOL_TCP, TCP_LENGTH as u16)
            + u32::from(client.port.raw())
            + u32::from(tcp.destination.raw())
            + checksum::sum32(sequence)
            + checksum::sum32(acknowledgement)
            + u32::from(control),
    );
    frame.renew::<RESET_LENGTH>(outer)?;
    write_back(
        frame,
        &ethernet,
        ip.destination,
        client.address,
        PROTOCOL_TCP,
        RESET_LENGTH as u16,
    )?;
    *frame.at_mut::<Tcp>(L4_OFFSET).ok_or(Refused)? = answer;
    Ok(())
}

#[inline(always)]
fn icmp<const ENCAPSULATED: bool, F: Frame>(
    frame: &mut F,
    code: u8,
    mtu: u16,
    client: Option<Endpoint>,
) -> Result<(), Refused> {
    let outer = outer::<ENCAPSULATED, F>(frame);
    let ethernet = *frame.at::<Ethernet>(0).ok_or(Refused)?;
    let mut quote = *frame.at::<Quote>(ETHERNET_LENGTH + outer).ok_or(Refused)?;
    if let Some(client) = client {
        let change = Difference::NONE.replace32(quote.ip.source, client.address);
        quote.ip.source = client.address;
        quote.ip.checksum = checksum::updated(quote.ip.checksum, change);
        // UDP's checksum is no longer right, but no receiver can tell: the quote ends before the payload.
        [quote.rest[0], quote.rest[1]] = client.port.raw().to_ne_bytes();
    }
    let mut answer = Icmp {
        kind: ICMP_UNREACHABLE,
        code,
        checksum: Be16::new(0),
        unused: Be16::new(0),
        next_hop_mtu: Be16::new(mtu),
    };
    // A header whose checksum is right sums to all ones, which is zero in one's complement.
    let ip = quote.ip;
    let quoted = (!checksum::ipv4(&ip).raw()) as u32 + u32::from(ip.checksum.raw());
    let kind = u16::from_ne_bytes([answer.kind, answer.code]);
    answer.checksum = checksum::finish(
        u32::from(kind) + u32::from(answer.next_hop_mtu.raw()) + quoted + checksum::sum_bytes(&quote.rest),
    );
    frame.renew::<ERROR_LENGTH>(outer)?;
    write_back(
        frame,
        &ethernet,
        ip.destination,
        ip.source,
        PROTOCOL_ICMP,
        ERROR_LENGTH as u16,
    )?;
    *frame.at_mut::<Icmp>(L4_OFFSET).ok_or(Refused)? = answer;
    *frame
        .at_mut::<Quote>(L4_OFFSET + size_of::<Icmp>())
        .ok_or(Refused)? = quote;
    Ok(())
}

/// Writes Ethernet and IP header of an answer.
#[inline(always)]
fn write_back<F: Frame>(
    frame: &mut F,
    ethernet: &Ethernet,
    source: Be32,
    destination: Be32,
    protocol: u8,
    length: u16,
) -> Result<(), Refused> {
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination: ethernet.source,
        source: ethernet.destination,
        ethertype: ETHERTYPE_IPV4,
    };
    *frame.at_mut::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)? =
        ipv4::header(source, destination, protocol, Be16::new(length), 0);
    Ok(())
}

#[cfg(test)]
mod tests;
