//! The tunnel between nodes: its headers, and which packets fit into it.

use crate::{
    abi::{Backend, Config, FlowKey, NextHop},
    bytes::Be16,
    frame::{Frame, Refused},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH,
        GENEVE_VERSION_AND_LENGTH, Geneve, GeneveKind, IPV4_LENGTH, Ipv4, OUTER_LENGTH, Outer, PROTOCOL_TCP,
        PROTOCOL_UDP, Tcp, UDP_LENGTH, Udp,
    },
    ipv4,
};

/// The largest packet that fits into the tunnel to a peer, in bytes from its IP header on.
#[inline(always)]
pub fn inner_mtu(config: &Config, next_hop: &NextHop) -> u16 {
    if next_hop.inner_mtu == 0 {
        config.inner_mtu
    } else {
        next_hop.inner_mtu
    }
}

/// Bytes of the IP packet at `offset`, without options, as it will be on a wire: of a segment if the frame is
/// aggregated.
///
/// # Errors
/// [`Refused`] when the frame ends before.
#[inline(always)]
pub fn wire_length<F: Frame>(frame: &F, offset: usize) -> Result<u16, Refused> {
    let ip = frame.at::<Ipv4>(offset).ok_or(Refused)?;
    let size = frame.segment_size();
    if size == 0 {
        return Ok(ip.total_length.get());
    }
    let l4_length = if ip.protocol == PROTOCOL_TCP {
        let tcp = frame.at::<Tcp>(offset + IPV4_LENGTH).ok_or(Refused)?;
        u32::from(tcp.data_offset >> 4) * 4
    } else {
        UDP_LENGTH as u32
    };
    // A segment's payload has 16 bits in the kernel too.
    Ok(u16::try_from(IPV4_LENGTH as u32 + l4_length + size).unwrap_or(u16::MAX))
}

/// Encapsulates a packet for a peer. `l3_length` is that of the inner packet.
///
/// The UDP checksum is left out, as RFC 8926 (3.4) allows over IPv4: the inner packet has its own.
///
/// # Errors
/// [`Refused`] when there is no room before the packet.
#[inline(always)]
pub fn encapsulate<F: Frame>(
    frame: &mut F,
    config: &Config,
    next_hop: &NextHop,
    backend: &Backend,
    kind: GeneveKind,
    inner: &FlowKey,
    l3_length: u16,
) -> Result<(), Refused> {
    let outer = Outer {
        ip: ipv4::header(
            config.node_address,
            next_hop.address,
            PROTOCOL_UDP,
            l3_length.wrapping_add(OUTER_LENGTH as u16),
        ),
        udp: Udp {
            source: entropy_port(inner),
            destination: config.geneve_port,
            length: Be16::new(l3_length.wrapping_add((OUTER_LENGTH - IPV4_LENGTH) as u16)),
            checksum: Be16::new(0),
        },
        geneve: Geneve {
            version_and_length: GENEVE_VERSION_AND_LENGTH,
            flags: GENEVE_FLAGS,
            protocol: ETHERTYPE_IPV4,
            vni: config.vni,
            option_class: GENEVE_CLASS,
            option_kind: kind as u8,
            option_length: GENEVE_OPTION_LENGTH,
            backend_address: backend.key.address,
            backend_port: backend.target_port,
            backend_tag: backend.tag,
        },
    };
    frame.insert_outer()?;
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination: next_hop.destination_mac,
        source: next_hop.source_mac,
        ethertype: ETHERTYPE_IPV4,
    };
    *frame.at_mut::<Outer>(ETHERNET_LENGTH).ok_or(Refused)? = outer;
    Ok(())
}

/// Addresses an encapsulated packet to another peer, for another backend or for the one it names already. The
/// inner packet stays as it is.
///
/// # Errors
/// [`Refused`] when the frame ends within the headers.
#[inline(always)]
pub fn readdress<F: Frame>(
    frame: &mut F,
    config: &Config,
    next_hop: &NextHop,
    kind: GeneveKind,
    backend: Option<&Backend>,
) -> Result<(), Refused> {
    let outer = frame.at_mut::<Outer>(ETHERNET_LENGTH).ok_or(Refused)?;
    let length = outer.ip.total_length.get();
    outer.ip = ipv4::header(config.node_address, next_hop.address, PROTOCOL_UDP, length);
    outer.geneve.option_kind = kind as u8;
    if let Some(backend) = backend {
        outer.geneve.backend_address = backend.key.address;
        outer.geneve.backend_port = backend.target_port;
        outer.geneve.backend_tag = backend.tag;
    }
    address_frame(frame, next_hop.source_mac, next_hop.destination_mac)
}

/// A source port that is the same for all packets of a flow, in both directions, and differs between flows,
/// so that routers and receive queues spread flows but keep the order within each (RFC 8926, 3.3).
#[inline(always)]
fn entropy_port(inner: &FlowKey) -> Be16 {
    let mixed = (inner.source.raw() ^ inner.destination.raw())
        ^ (u32::from(inner.source_port.raw()) ^ u32::from(inner.destination_port.raw()))
            .wrapping_mul(0x9e37_79b1);
    let folded = mixed.wrapping_mul(0x85eb_ca6b) >> 16;
    Be16::new(0xc000 | (folded as u16 & 0x3fff))
}

const _: () = assert!(UDP_LENGTH + size_of::<Geneve>() + IPV4_LENGTH == OUTER_LENGTH);

/// Rewrites the Ethernet header.
///
/// # Errors
/// [`Refused`] when there is none.
#[inline(always)]
pub fn address_frame<F: Frame>(frame: &mut F, source: [u8; 6], destination: [u8; 6]) -> Result<(), Refused> {
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination,
        source,
        ethertype: ETHERTYPE_IPV4,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
