//! The way that a packet takes from this node, and whether the packet fits it. Looked up before the packet is
//! rewritten.

use crate::{
    abi::{Config, KnownWay, Origin, is_mapped_client},
    encapsulation,
    frame::{Frame, Refused, Route},
    headers::{ETHERNET_LENGTH, IPV4_FRAGMENT_MASK, Ipv4, Ipv6Fragment},
    tables::{FlowEntry, Tables},
};

/// A [`Route`] that is kept while the packet is rewritten. Every field has a value whatever the route: what
/// is undefined in an enum's other variants can be a pointer's register, of which the verifier refuses a
/// spill of 32 bits.
#[derive(Clone, Copy)]
pub struct Way {
    /// Which of the others mean something.
    pub reach: Reach,
    /// Interface index.
    pub interface: u32,
    /// That interface's MAC address.
    pub source_mac: [u8; 6],
    /// MAC address of the client or of the router before it.
    pub destination_mac: [u8; 6],
    /// The largest packet that fits, bytes.
    pub mtu: u16,
}

/// The kinds of [`Route`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Interface and MAC addresses are known.
    Resolved,
    /// The interface is known.
    Unresolved,
    /// There is none, or none is needed.
    Nowhere,
    /// The packet is larger than the MTU.
    TooBig,
}

impl Way {
    const NOWHERE: Self = Self {
        reach: Reach::Nowhere,
        interface: 0,
        source_mac: [0; 6],
        destination_mac: [0; 6],
        mtu: 0,
    };

    #[inline(always)]
    fn of(route: Route) -> Self {
        match route {
            Route::Resolved(next_hop) => Self {
                reach: Reach::Resolved,
                interface: next_hop.interface,
                source_mac: next_hop.source_mac,
                destination_mac: next_hop.destination_mac,
                ..Self::NOWHERE
            },
            Route::Unresolved { interface } => Self {
                reach: Reach::Unresolved,
                interface,
                ..Self::NOWHERE
            },
            Route::Unreachable => Self::NOWHERE,
            Route::TooBig { mtu } => Self {
                reach: Reach::TooBig,
                mtu,
                ..Self::NOWHERE
            },
        }
    }
}

/// The way of a local backend's reply: to its client, or nowhere if it goes to a process of this node or to
/// its entry node.
#[inline(always)]
pub fn of_reply<F: Frame, T: Tables>(frame: &F, tables: &T, config: &Config, flow: FlowEntry) -> Way {
    let origin = flow.origin();
    if origin == Origin::MESH0 {
        return Way::NOWHERE;
    }
    let length = length(frame, ETHERNET_LENGTH, flow).unwrap_or(u16::MAX);
    if origin != Origin::TUNNEL {
        let way = lately(frame, tables, flow, length);
        if origin != Origin::TUNNEL_DIRECT || way.reach != Reach::Nowhere {
            return way;
        }
    }
    let mtu = mtu_to_entry_node(tables, config, flow);
    if length <= mtu {
        Way::NOWHERE
    } else {
        Way::of(Route::TooBig { mtu })
    }
}

/// Whether the packet, or each segment of an aggregated one, is at most `mtu` bytes.
#[inline(always)]
pub fn fits<F: Frame>(frame: &F, mtu: u16) -> bool {
    encapsulation::wire_length(frame, ETHERNET_LENGTH).is_ok_and(|length| length <= mtu)
}

/// The largest reply that fits into the tunnel to its flow's entry node.
#[inline(always)]
pub fn mtu_to_entry_node<T: Tables>(tables: &T, config: &Config, flow: FlowEntry) -> u16 {
    match tables.next_hop(flow.peer()) {
        Some(next_hop) => encapsulation::inner_mtu(config, next_hop),
        None => config.inner_mtu,
    }
}

/// The way of an encapsulated packet to its flow's client; nowhere for a process of this node, which needs
/// none.
#[inline(always)]
pub fn to_client<F: Frame, T: Tables>(frame: &F, tables: &T, flow: FlowEntry) -> Way {
    if flow.origin() == Origin::MESH0 {
        return Way::NOWHERE;
    }
    let length = length(frame, ETHERNET_LENGTH + encapsulation::outer_length(frame), flow).unwrap_or(0);
    lately(frame, tables, flow, length)
}

/// Bytes of the packet at `offset`, or of each segment of an aggregated one, on its way to its flow's client.
#[inline(always)]
fn length<F: Frame>(frame: &F, offset: usize, flow: FlowEntry) -> Result<u16, Refused> {
    let length = encapsulation::wire_length(frame, offset)?;
    let ip = frame.at::<Ipv4>(offset).ok_or(Refused)?;
    let is_fragment = ip.fragment.raw() & IPV4_FRAGMENT_MASK.raw() != 0;
    if is_fragment && is_mapped_client(flow.client().address) {
        // IPv6 says that in a header of its own.
        return Ok(length.saturating_add(size_of::<Ipv6Fragment>() as u16));
    }
    Ok(length)
}

/// The way of a packet of `length` bytes to its flow's client: the one found a moment ago, or the kernel's.
/// Routes and neighbours that change are followed within that moment, without an agent.
#[inline(always)]
fn lately<F: Frame, T: Tables>(frame: &F, tables: &T, flow: FlowEntry, length: u16) -> Way {
    let moment = tables.moment();
    if let Some(known) = flow.way(moment)
        && length <= known.mtu
        && length != 0
    {
        return Way {
            reach: Reach::Resolved,
            interface: known.interface,
            source_mac: bytes(known.source_mac),
            destination_mac: bytes(known.destination_mac),
            mtu: 0,
        };
    }
    let route = frame.route(flow.frontend().address, flow.client().address, length);
    if let Route::Resolved(next_hop) = route
        && next_hop.takes_frames()
    {
        flow.note_way(KnownWay {
            moment,
            interface: next_hop.interface,
            mtu: next_hop.inner_mtu,
            source_mac: pairs(next_hop.source_mac),
            destination_mac: pairs(next_hop.destination_mac),
            padding: 0,
        });
    }
    Way::of(route)
}

/// A MAC address in units that are aligned in an entry.
#[inline(always)]
fn pairs([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [
        u16::from_ne_bytes([a, b]),
        u16::from_ne_bytes([c, d]),
        u16::from_ne_bytes([e, f]),
    ]
}

#[inline(always)]
fn bytes([first, second, third]: [u16; 3]) -> [u8; 6] {
    let ([a, b], [c, d], [e, f]) = (first.to_ne_bytes(), second.to_ne_bytes(), third.to_ne_bytes());
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests;
