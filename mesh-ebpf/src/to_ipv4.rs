//! Makes a client's IPv6 packet one that the pipeline knows: IPv4, between the addresses that stand for the
//! client and for what it dialled (RFC 7915, 5). The hook's program calls this for what it passes, and is
//! called again with the result. Nothing else of IPv6 is touched: neighbour discovery, other ports, and
//! packets with extension headers but that of fragments, which the kernel refuses at ports that no process
//! listens on.

use crate::{
    abi::{DropReason, Event, Hook, Ipv6Address, OwnKey},
    bytes::Be32,
    checksum::Difference,
    entry::is_for_this_node,
    frame::{ChecksumChange, CopyFrame, TranslateFrame},
    headers::{
        ETHERNET_LENGTH, IPV6_FRAGMENT, IPV6_L4_OFFSET, IPV6_LENGTH, PROTOCOL_ICMPV6, PROTOCOL_TCP,
        PROTOCOL_UDP, Ports, TCP_CHECKSUM_OFFSET, TCP_LENGTH, UDP_CHECKSUM_OFFSET, UDP_LENGTH, Udp,
    },
    ipv6::{self, Header},
    mapped,
    mapped_tables::MappedTables,
    observe, translated_error,
};

mod fragments;

/// What happens to an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is not the mesh's, and is as it came.
    Pass,
    /// It is IPv4 now: for the hook's program.
    Pipeline,
    /// It is an ICMP error or a later fragment of IPv4 now: for the program of exceptional packets.
    Exceptional,
    /// It is dropped, and counted.
    Drop,
}

/// Translates the packet if it is for a frontend.
#[inline(always)]
pub fn run<F: TranslateFrame + CopyFrame, T: MappedTables>(frame: &mut F, tables: &T, hook: Hook) -> Next {
    let Some(ip) = Header::read(frame, ETHERNET_LENGTH) else {
        return Next::Pass;
    };
    let Some(own) = tables.own_mapped(&ip.destination) else {
        return Next::Pass;
    };
    let done = match ip.next_header {
        PROTOCOL_TCP | PROTOCOL_UDP => whole(frame, tables, hook, &ip, own),
        IPV6_FRAGMENT => fragments::run(frame, tables, hook, &ip, own),
        PROTOCOL_ICMPV6 => match translated_error::to_ipv4(frame, tables, &ip, own) {
            Ok(true) => Ok(Next::Exceptional),
            Ok(false) => Ok(Next::Pass),
            Err(reason) => Err(reason),
        },
        _ => Ok(Next::Pass),
    };
    match done {
        Ok(next) => {
            if !matches!(next, Next::Pass) {
                frame.note_ipv6();
            }
            next
        }
        Err(reason) => {
            observe::dropped(frame, tables, hook, reason);
            Next::Drop
        }
    }
}

#[inline(always)]
fn whole<F: TranslateFrame, T: MappedTables>(
    frame: &mut F,
    tables: &T,
    hook: Hook,
    ip: &Header,
    own: Be32,
) -> Result<Next, DropReason> {
    let payload = if frame.segment_size() == 0 {
        u32::from(ip.payload_length.get())
    } else {
        frame.length().wrapping_sub(IPV6_L4_OFFSET as u32)
    };
    let Some(client) = addresses::<0, F, T>(frame, tables, hook, ip, own, (ip.next_header, payload))? else {
        return Ok(Next::Pass);
    };
    frame.put_ipv4(&ipv6::to_ipv4(ip, ip.next_header, payload, client, own))?;
    Ok(Next::Pipeline)
}

/// Changes the checksum of what has ports to that between mapped addresses, if it is for a frontend. Returns
/// the client's. Behind the IP header are `SKIPPED` bytes and the payload, of a protocol and a length.
#[inline(always)]
fn addresses<const SKIPPED: usize, F: TranslateFrame, T: MappedTables>(
    frame: &mut F,
    tables: &T,
    hook: Hook,
    ip: &Header,
    own: Be32,
    (protocol, payload): (u8, u32),
) -> Result<Option<Be32>, DropReason> {
    let (source, destination) = (&ip.source, &ip.destination);
    let Some(ports) = frame.at::<Ports>(IPV6_L4_OFFSET + SKIPPED).copied() else {
        return Ok(None);
    };
    if !mapped::is_frontend(tables, protocol, own, ports.destination) || !source.is_global() {
        return Ok(None);
    }
    if matches!(hook, Hook::TcUplink) && is_for_another_machine(frame, tables) {
        tables.count_event(Event::OtherMachine);
        return Ok(None);
    }
    let is_udp = protocol == PROTOCOL_UDP;
    if is_udp && (has_no_checksum::<SKIPPED, F>(frame) || is_answer(tables, source, &ports)) {
        return Ok(None);
    }
    if payload + (IPV6_L4_OFFSET + SKIPPED) as u32 > frame.length() {
        return Err(DropReason::BadLength);
    }
    let (header, field) = if is_udp {
        (UDP_LENGTH, UDP_CHECKSUM_OFFSET)
    } else {
        (TCP_LENGTH, TCP_CHECKSUM_OFFSET)
    };
    if payload < header as u32 {
        return Err(DropReason::Truncated);
    }
    let client = mapped::client(tables, source, frame.interface())?;
    frame.change_checksum(ChecksumChange {
        offset: IPV6_L4_OFFSET + SKIPPED + field,
        udp: is_udp,
        pseudo: Difference::NONE
            .replace128(source, &Ipv6Address::padded(client))
            .replace128(destination, &Ipv6Address::padded(own)),
        body: Difference::NONE,
    })?;
    Ok(Some(client))
}

/// Whether the frame has the MAC address of another machine, and its packet only the IP address of this one.
/// The pipeline passes those that open no flow; here none may become IPv4.
#[inline(always)]
fn is_for_another_machine<F: TranslateFrame, T: MappedTables>(frame: &F, tables: &T) -> bool {
    !frame.is_for_interface()
        && tables
            .config()
            .is_none_or(|config| !is_for_this_node(frame, tables, config))
}

/// Whether a datagram has no checksum: the kernel drops it (RFC 8200, 8.1).
#[inline(always)]
fn has_no_checksum<const SKIPPED: usize, F: TranslateFrame>(frame: &F) -> bool {
    frame.at::<Udp>(IPV6_L4_OFFSET + SKIPPED).is_some_and(|udp| {
        let checksum = udp.checksum;
        checksum.raw() == 0
    })
}

/// Whether it is an answer to a process of this node, which uses a published port itself.
#[inline(always)]
fn is_answer<T: MappedTables>(tables: &T, source: &Ipv6Address, ports: &Ports) -> bool {
    tables.is_own(&OwnKey {
        remote: mapped::preferred(source),
        remote_port: ports.source,
        local_port: ports.destination,
    })
}

const _: () = assert!(IPV6_L4_OFFSET == ETHERNET_LENGTH + IPV6_LENGTH);

#[cfg(test)]
mod tests;
