//! Fragments of IPv6 packets, which become fragments of IPv4 (RFC 7915, 5.1.1). The first one of a packet is
//! for the pipeline, as any packet, and the later ones follow it ([`crate::fragment`]). One that comes before
//! the first passes, as that of IPv4 does, and a copy of what it is to become is kept.

use super::{Next, addresses, is_for_another_machine};
use crate::{
    abi::{DatagramState, DropReason, Hook, Ipv6Address},
    bytes::{Be16, Be32},
    checksum, fragment,
    frame::{CopyFrame, Refused, TranslateFrame},
    headers::{IPV4_MORE_FRAGMENTS, IPV6_L4_OFFSET, Ipv4, Ipv6Fragment, PROTOCOL_TCP, PROTOCOL_UDP},
    ipv6::{self, Header},
    mapped,
    mapped_tables::MappedTables,
};

/// "More fragments" in [`Ipv6Fragment::fragment`].
const MORE: u16 = 1;

/// Bytes of a packet behind its IP header at most.
const LONGEST: u32 = u16::MAX as u32;

const HEADER: usize = size_of::<Ipv6Fragment>();

/// Translates a fragment if it is of a packet for a frontend.
#[inline(always)]
pub(super) fn run<F: TranslateFrame + CopyFrame, T: MappedTables>(
    frame: &mut F,
    tables: &T,
    hook: Hook,
    ip: &Header,
    own: Be32,
) -> Result<Next, DropReason> {
    let Some(header) = frame.at::<Ipv6Fragment>(IPV6_L4_OFFSET).copied() else {
        return Ok(Next::Pass);
    };
    let protocol = header.next_header;
    if (protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP) || frame.segment_size() != 0 {
        return Ok(Next::Pass);
    }
    let payload = u32::from(ip.payload_length.get()).wrapping_sub(HEADER as u32);
    let field = header.fragment;
    let start = u32::from(field.get() & !7);
    // What would end behind the longest packet is the kernel's to discard.
    if payload == 0 || payload > LONGEST || start + payload > LONGEST {
        return Ok(Next::Pass);
    }
    if field.get() >> 3 != 0 {
        let Some(client) = client(tables, &ip.source) else {
            return Ok(Next::Pass);
        };
        if payload + (IPV6_L4_OFFSET + HEADER) as u32 > frame.length()
            || (matches!(hook, Hook::TcUplink) && is_for_another_machine(frame, tables))
        {
            return Ok(Next::Pass);
        }
        let ipv4 = as_fragment(&ipv6::to_ipv4(ip, protocol, payload, client, own), &header);
        if fragment::state_or_hold(frame, tables, &ipv4, IPV6_L4_OFFSET + HEADER) != DatagramState::OURS {
            return Ok(Next::Pass);
        }
        put(frame, &ipv4)?;
        return Ok(Next::Exceptional);
    }
    let Some(client) = addresses::<HEADER, F, T>(frame, tables, hook, ip, own, (protocol, payload))? else {
        return Ok(Next::Pass);
    };
    let ipv4 = ipv6::to_ipv4(ip, protocol, payload, client, own);
    if field.get() & MORE == 0 {
        // The packet is whole (RFC 6946).
        put(frame, &ipv4)?;
    } else {
        put(frame, &as_fragment(&ipv4, &header))?;
    }
    Ok(Next::Pipeline)
}

/// What stands for the sender of a later fragment, or will: a client gets an address with its first packet to
/// a frontend, and of this one the ports are not known yet.
#[inline(always)]
fn client<T: MappedTables>(tables: &T, source: &Ipv6Address) -> Option<Be32> {
    if let Some((client, _)) = mapped::known(tables, source) {
        return Some(client);
    }
    let preferred = mapped::preferred(source);
    // What is another client's now would follow that one's packets.
    (source.is_global() && tables.mapped_client(preferred).is_none()).then_some(preferred)
}

/// The header of a fragment, from that of a whole packet. IPv4 numbers packets with half as many bits.
#[inline(always)]
fn as_fragment(ip: &Ipv4, header: &Ipv6Fragment) -> Ipv4 {
    let field = header.fragment.get();
    let more = if field & MORE == 0 {
        0
    } else {
        IPV4_MORE_FRAGMENTS.get()
    };
    let mut fragment = Ipv4 {
        identification: Be16::new(header.identification.get() as u16),
        fragment: Be16::new(field >> 3 | more),
        ..*ip
    };
    fragment.checksum = checksum::ipv4(&fragment);
    fragment
}

#[inline(always)]
fn put<F: TranslateFrame>(frame: &mut F, header: &Ipv4) -> Result<(), Refused> {
    frame.remove_extension(HEADER)?;
    frame.put_ipv4(header)
}
