//! The tunnel between nodes: its headers, and which packets fit into it.

use crate::{
    abi::{Backend, Config, DropReason, FlowKey, NextHop},
    bytes::Be16,
    checksum::{self, Difference},
    frame::{Frame, ReadFrame, Refused},
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH,
        GENEVE_VERSION_AND_LENGTH, Geneve, GeneveKind, IPV4_LENGTH, Ipv4, KEY_LENGTH, KEYED_OPTION_LENGTH,
        KEYED_OUTER_LENGTH, KEYED_VERSION_AND_LENGTH, L4_OFFSET, OUTER_LENGTH, Outer, PROTOCOL_TCP,
        PROTOCOL_UDP, Tcp, UDP_LENGTH, Udp,
    },
    ipv4,
    tables::Tables,
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

/// The key that a packet to a peer carries; 0 for none.
#[inline(always)]
pub fn key_for<T: Tables>(tables: &T, next_hop: &NextHop) -> u64 {
    match tables.keys() {
        Some(keys) if next_hop.key != 0 => keys.named(next_hop.key),
        _ => 0,
    }
}

/// Bytes of the outer headers of an encapsulated packet, with a key or without, whose Geneve header has been
/// checked.
///
/// The verifier must not know which of the two it is, or it would follow both through everything that comes
/// after. So the length is calculated from the header each time, and never compared.
#[inline(always)]
pub fn outer_length<F: ReadFrame>(frame: &F) -> usize {
    match frame.at::<[u8; 1]>(L4_OFFSET + UDP_LENGTH) {
        Some(version_and_length) => {
            // SAFETY: a reference is readable. Volatile, so that the compiler does not take the value from a
            // register that has been compared.
            let [lengths] = unsafe { core::ptr::from_ref(version_and_length).read_volatile() };
            OUTER_LENGTH + usize::from(lengths & KEY_BIT) * (KEY_LENGTH / KEY_BIT as usize)
        }
        None => OUTER_LENGTH,
    }
}

/// What distinguishes [`KEYED_VERSION_AND_LENGTH`] from [`GENEVE_VERSION_AND_LENGTH`].
const KEY_BIT: u8 = 4;
const _: () = assert!(GENEVE_VERSION_AND_LENGTH & KEY_BIT == 0 && KEYED_VERSION_AND_LENGTH & KEY_BIT != 0);

/// Encapsulates a packet for a peer. `ip` is the packet's header; `key` is 0 for none. The outer header has
/// the inner one's DSCP and ECN (RFC 6040, 4.1).
///
/// The UDP checksum is left out, as RFC 8926 (3.4) allows over IPv4: the inner packet has its own.
///
/// # Errors
/// [`Refused`] when there is no room before the packet.
#[expect(
    clippy::too_many_arguments,
    reason = "each is one of the outer headers' fields"
)]
#[inline(always)]
pub fn encapsulate<F: Frame>(
    frame: &mut F,
    config: &Config,
    next_hop: &NextHop,
    key: u64,
    backend: &Backend,
    kind: GeneveKind,
    inner: &FlowKey,
    ip: &Ipv4,
) -> Result<(), Refused> {
    let (outer_length, version_and_length, option_length) = if key == 0 {
        (OUTER_LENGTH, GENEVE_VERSION_AND_LENGTH, GENEVE_OPTION_LENGTH)
    } else {
        (KEYED_OUTER_LENGTH, KEYED_VERSION_AND_LENGTH, KEYED_OPTION_LENGTH)
    };
    let length = ipv4::length(frame, ETHERNET_LENGTH, ip) + outer_length as u32;
    let outer = Outer {
        ip: ipv4::header(
            config.node_address,
            next_hop.address,
            PROTOCOL_UDP,
            ipv4::length_field(length),
            ip.service_type,
        ),
        udp: Udp {
            source: entropy_port(inner),
            destination: config.geneve_port,
            length: ipv4::length_field(length - IPV4_LENGTH as u32),
            checksum: Be16::new(0),
        },
        geneve: Geneve {
            version_and_length,
            flags: GENEVE_FLAGS,
            protocol: ETHERTYPE_IPV4,
            vni: config.vni,
            option_class: GENEVE_CLASS,
            option_kind: kind as u8,
            option_length,
            backend_address: backend.key.address,
            backend_port: backend.target_port,
            backend_tag: backend.tag,
        },
    };
    frame.insert_outer(outer_length)?;
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination: next_hop.destination_mac,
        source: next_hop.source_mac,
        ethertype: ETHERTYPE_IPV4,
    };
    *frame.at_mut::<Outer>(ETHERNET_LENGTH).ok_or(Refused)? = outer;
    write_key(frame, key)
}

/// Takes the outer headers off. A congestion mark that the outer header got on its way goes on in the inner
/// one (RFC 6040, 4.2); the Ethernet header is yet to be written.
///
/// # Errors
/// The reason to drop the packet: also that it was marked although its sender does not understand marks.
#[inline(always)]
pub fn decapsulate<F: Frame>(frame: &mut F) -> Result<(), DropReason> {
    let outer = frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?.service_type;
    frame.remove_outer(outer_length(frame))?;
    if outer & ECN != CONGESTION_EXPERIENCED {
        return Ok(());
    }
    let ip = frame.at_mut::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    let old = ip.service_type;
    if old & ECN == 0 {
        return Err(DropReason::BadGeneve);
    }
    ip.service_type = old | CONGESTION_EXPERIENCED;
    let word = |service_type| Be16::from_raw(u16::from_ne_bytes([ip.version_and_length, service_type]));
    let change = Difference::NONE.replace16(word(old), word(ip.service_type));
    ip.checksum = checksum::updated(ip.checksum, change);
    Ok(())
}

/// The bits of [`Ipv4::service_type`] for explicit congestion notification (RFC 3168); 0: not understood.
const ECN: u8 = 3;
/// ... when a router has marked the packet.
const CONGESTION_EXPERIENCED: u8 = 3;

/// Writes the key behind the outer headers, unless it is 0.
#[inline(always)]
fn write_key<F: Frame>(frame: &mut F, key: u64) -> Result<(), Refused> {
    if key != 0 {
        *frame
            .at_mut::<[u8; KEY_LENGTH]>(ETHERNET_LENGTH + OUTER_LENGTH)
            .ok_or(Refused)? = key.to_ne_bytes();
    }
    Ok(())
}

/// Addresses an encapsulated packet to another peer, for another backend or for the one it names already. The
/// inner packet stays as it is.
///
/// # Errors
/// [`Refused`] when the frame ends within the headers, or when the packet has a key and the peer takes none,
/// or the other way round: while a cluster is being upgraded. The client sends its packet again, to the new
/// peer.
#[inline(always)]
pub fn readdress<F: Frame>(
    frame: &mut F,
    config: &Config,
    next_hop: &NextHop,
    key: u64,
    kind: GeneveKind,
    backend: Option<&Backend>,
) -> Result<(), Refused> {
    let outer = frame.at_mut::<Outer>(ETHERNET_LENGTH).ok_or(Refused)?;
    if (outer.geneve.version_and_length == KEYED_VERSION_AND_LENGTH) != (key != 0) {
        return Err(Refused);
    }
    let (length, service_type) = (outer.ip.total_length, outer.ip.service_type);
    outer.ip = ipv4::header(
        config.node_address,
        next_hop.address,
        PROTOCOL_UDP,
        length,
        service_type,
    );
    outer.geneve.option_kind = kind as u8;
    if let Some(backend) = backend {
        outer.geneve.backend_address = backend.key.address;
        outer.geneve.backend_port = backend.target_port;
        outer.geneve.backend_tag = backend.tag;
    }
    write_key(frame, key)?;
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
    address_frame_of(frame, source, destination, ETHERTYPE_IPV4)
}

/// The same with the EtherType of what the frame carries.
#[inline(always)]
pub fn address_frame_of<F: Frame>(
    frame: &mut F,
    source: [u8; 6],
    destination: [u8; 6],
    ethertype: Be16,
) -> Result<(), Refused> {
    *frame.at_mut::<Ethernet>(0).ok_or(Refused)? = Ethernet {
        destination,
        source,
        ethertype,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
