//! Makes a packet of the pipeline's for an IPv6 client what the client takes: IPv6, from the address that it
//! dialled (RFC 7915, 4). The routes lead what is for such a client to mesh0, whose program calls this.

use crate::{
    abi::{DropReason, Hook, Ipv6Address, MappedClient},
    bytes::{Be16, Be32},
    checksum::Difference,
    encapsulation::address_frame_of,
    frame::{ChecksumChange, Route, TranslateFrame},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV6, IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH,
        IPV4_MORE_FRAGMENTS, IPV6_FRAGMENT, IPV6_L4_OFFSET, Ipv4, Ipv6Fragment, L4_OFFSET, PROTOCOL_ICMP,
        PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET,
    },
    ipv4, ipv6,
    mapped_tables::MappedTables,
    observe, translated_error,
    verdict::Action,
};

/// Translates the packet and names its way.
#[inline(always)]
pub fn run<F: TranslateFrame, T: MappedTables>(frame: &mut F, tables: &T, hook: Hook) -> Action {
    match translate(frame, tables) {
        Ok(action) => action,
        Err(reason) => {
            observe::dropped(frame, tables, hook, reason);
            Action::Drop
        }
    }
}

#[inline(always)]
fn translate<F: TranslateFrame, T: MappedTables>(frame: &mut F, tables: &T) -> Result<Action, DropReason> {
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(DropReason::Truncated)?;
    if ip.version_and_length != 0x45 {
        return Err(DropReason::IpOptions);
    }
    let client = tables
        .mapped_client(ip.destination)
        .ok_or(DropReason::NotAFrontend)?;
    let own = tables.own_ipv6(ip.source).ok_or(DropReason::NotAFrontend)?;
    match ip.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => packet(frame, &ip, &own, &client.address)?,
        PROTOCOL_ICMP => translated_error::to_ipv6(frame, tables, &ip, &own, &client.address)?,
        _ => return Err(DropReason::NotAFrontend),
    }
    send(frame, &own, &client)
}

#[inline(always)]
fn packet<F: TranslateFrame>(
    frame: &mut F,
    ip: &Ipv4,
    own: &Ipv6Address,
    client: &Ipv6Address,
) -> Result<(), DropReason> {
    let fragment = ip.fragment.get();
    let is_fragment = fragment & IPV4_FRAGMENT_MASK.get() != 0;
    if fragment & IPV4_FRAGMENT_OFFSET_MASK.get() == 0 {
        let is_udp = ip.protocol == PROTOCOL_UDP;
        let field = if is_udp {
            UDP_CHECKSUM_OFFSET
        } else {
            TCP_CHECKSUM_OFFSET
        };
        let offset = L4_OFFSET + field;
        let has_none = |checksum: &[u8; 2]| u16::from_ne_bytes(*checksum) == 0;
        if is_udp && frame.at::<[u8; 2]>(offset).is_some_and(has_none) {
            return Err(DropReason::NoChecksum);
        }
        frame.change_checksum(ChecksumChange {
            offset,
            udp: is_udp,
            pseudo: Difference::NONE
                .replace128(&Ipv6Address::padded(ip.source), own)
                .replace128(&Ipv6Address::padded(ip.destination), client),
            body: Difference::NONE,
        })?;
    }
    let payload = ipv4::length(frame, ETHERNET_LENGTH, ip).saturating_sub(IPV4_LENGTH as u32);
    if !is_fragment {
        let header = ipv6::of_ipv4(ip, ip.protocol, payload, own, client);
        return Ok(frame.put_ipv6(&header)?);
    }
    let payload = payload + size_of::<Ipv6Fragment>() as u32;
    let header = ipv6::of_ipv4(ip, IPV6_FRAGMENT, payload, own, client);
    frame.put_ipv6(&header)?;
    frame.insert_extension(size_of::<Ipv6Fragment>())?;
    let more = u16::from(fragment & IPV4_MORE_FRAGMENTS.get() != 0);
    *frame
        .at_mut::<Ipv6Fragment>(IPV6_L4_OFFSET)
        .ok_or(DropReason::RewriteFailed)? = Ipv6Fragment {
        next_header: ip.protocol,
        reserved: 0,
        fragment: Be16::new((fragment & IPV4_FRAGMENT_OFFSET_MASK.get()) << 3 | more),
        identification: Be32::new(u32::from(ip.identification.get())),
    };
    Ok(())
}

/// The way to the client: as the routes say (the kernel looks them up for devices that forward IPv6, as mesh0
/// does), or by the interface that its packets come in by where they do not say.
#[inline(always)]
fn send<F: TranslateFrame>(
    frame: &mut F,
    own: &Ipv6Address,
    client: &MappedClient,
) -> Result<Action, DropReason> {
    match frame.route_ipv6(own, &client.address) {
        Route::Resolved(way) if way.takes_frames() => {
            address_frame_of(frame, way.source_mac, way.destination_mac, ETHERTYPE_IPV6)?;
            Ok(Action::Transmit {
                interface: way.interface,
            })
        }
        Route::Resolved(way) => Ok(Action::Route {
            interface: way.interface,
        }),
        Route::Unresolved { interface } => Ok(Action::Route { interface }),
        Route::Unreachable | Route::TooBig { .. } => Ok(Action::Route {
            interface: client.interface,
        }),
    }
}

#[cfg(test)]
mod tests;
