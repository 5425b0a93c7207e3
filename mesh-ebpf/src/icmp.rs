//! ICMP errors about packets of flows: "fragmentation needed" of a router on the way to a client, "port
//! unreachable" of a replica. The error goes where the packet that it quotes came from, and its quote names
//! the addresses that its receiver knows.
//!
//! Whose error it is follows from the quote alone; a router that sends it can have any address. Only the
//! mesh's flows are looked at. Errors about the tunnel's own packets are the agent's (path MTU probes).

use crate::{
    abi::{BACKEND_LOCAL, Backend, Config, DropReason, Endpoint, FlowKey, Hook, Origin, Role},
    bytes::{Be16, Be32, Plain},
    checksum::{self, Difference},
    encapsulation,
    execute::{counted, into_container, to_client, to_entry_node, to_local_process, to_peer, way_to_peer},
    frame::{Frame, ReadFrame, Refused},
    headers::{
        ETHERNET_LENGTH, GeneveKind, IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET_MASK, IPV4_LENGTH, Icmp, Ipv4,
        L4_OFFSET, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Ports, TCP_CHECKSUM_OFFSET,
        UDP_CHECKSUM_OFFSET,
    },
    ipv4, open,
    tables::{FlowEntry, Tables},
    tunnel::{self, Envelope},
    verdict::Action,
    way::{self, Reach},
};

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Offset of the quote's IP header in a frame that is not encapsulated, and of the ports behind it.
const QUOTE_OFFSET: usize = L4_OFFSET + size_of::<Icmp>();
const QUOTED_PORTS_OFFSET: usize = QUOTE_OFFSET + IPV4_LENGTH;

/// What happens to an ICMP message. A struct with every field initialised, for the reason that
/// [`crate::verdict::Decision`] is one.
#[derive(Clone, Copy)]
pub struct Decision<'a> {
    toward: Toward,
    reason: DropReason,
    flow: Option<FlowEntry>,
    backend: Option<&'a Backend>,
    is_encapsulated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Toward {
    Stack,
    Nowhere,
    Backend,
    Client,
}

impl<'a> Decision<'a> {
    /// The packet stays as it is.
    pub const PASS: Self = Self {
        toward: Toward::Stack,
        reason: DropReason::UnknownFlow,
        flow: None,
        backend: None,
        is_encapsulated: false,
    };

    const fn drop(reason: DropReason) -> Self {
        Self {
            toward: Toward::Nowhere,
            reason,
            ..Self::PASS
        }
    }

    const fn to(toward: Toward, flow: FlowEntry, backend: &'a Backend, is_encapsulated: bool) -> Self {
        Self {
            toward,
            flow: Some(flow),
            backend: Some(backend),
            is_encapsulated,
            ..Self::PASS
        }
    }

    /// Whether the packet stays as it is.
    #[inline(always)]
    pub fn leaves_packet(&self) -> bool {
        self.toward == Toward::Stack
    }
}

/// Decides about an ICMP message that arrived at a hook as it is.
#[inline(always)]
pub fn decide<'a, F: ReadFrame, T: Tables>(frame: &F, tables: &'a T, hook: Hook) -> Decision<'a> {
    let not_ours = match hook {
        Hook::TcMesh0 => Decision::drop(DropReason::NotAFrontend),
        Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Decision::PASS,
    };
    let Some(message) = frame.at::<Message>(ETHERNET_LENGTH) else {
        return not_ours;
    };
    let (source, destination) = (message.ip.source, message.ip.destination);
    let Some(key) = message.quoted() else {
        return not_ours;
    };
    // Its quote is of a packet that went the other way.
    let Some((flow, backend)) = current(tables, &key.reversed()) else {
        return not_ours;
    };
    let origin = match hook {
        Hook::Xdp | Hook::TcUplink => Origin::UPLINK,
        Hook::TcContainer => Origin::CONTAINER,
        Hook::TcMesh0 => Origin::MESH0,
    };
    if flow.role() == Role::REPLY && matches!(hook, Hook::TcContainer) && source == backend.address {
        Decision::to(Toward::Client, flow, backend, false)
    } else if flow.role() == Role::FORWARD && flow.origin() == origin && destination == key.source {
        Decision::to(Toward::Backend, flow, backend, false)
    } else {
        not_ours
    }
}

/// Decides about one that a peer has sent through the tunnel.
#[inline(always)]
pub fn decide_encapsulated<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    envelope: &Envelope,
) -> Decision<'a> {
    let unknown = Decision::drop(DropReason::UnknownFlow);
    let offset = ETHERNET_LENGTH + encapsulation::outer_length(frame);
    let Some(message) = frame.at::<Message>(offset) else {
        return Decision::drop(DropReason::BadGeneve);
    };
    let (source, destination) = (message.ip.source, message.ip.destination);
    let Some(key) = message.quoted() else {
        return Decision::drop(DropReason::BadGeneve);
    };
    if ipv4::is_never_on_a_wire(source) || ipv4::is_never_on_a_wire(destination) {
        return Decision::drop(DropReason::BadGeneve);
    }
    let (toward, key) = match envelope.kind {
        GeneveKind::Forward | GeneveKind::ForwardDirect => (Toward::Backend, key.reversed()),
        GeneveKind::Reply => (Toward::Client, key),
        GeneveKind::Undeliverable | GeneveKind::Probe | GeneveKind::ProbeAnswer => return unknown,
    };
    let Some((flow, backend)) = current(tables, &key) else {
        return unknown;
    };
    if is_of_peer(flow, backend, envelope, toward == Toward::Backend) {
        Decision::to(toward, flow, backend, true)
    } else {
        unknown
    }
}

/// Whether a peer may send something of a flow: to its backend here, as the entry node, or else from its
/// backend there, to the client.
#[inline(always)]
pub fn is_of_peer(flow: FlowEntry, backend: &Backend, envelope: &Envelope, to_backend: bool) -> bool {
    if to_backend {
        flow.role() == Role::FORWARD
            && flow.origin().is_tunnel()
            && (flow.peer(), flow.peer_address()) == envelope.peer
            && open::is_named(backend, &envelope.geneve)
            && backend.location == BACKEND_LOCAL
    } else {
        flow.role() != Role::REPLY
            && !flow.origin().is_tunnel()
            && tunnel::is_sender(backend, &envelope.geneve, envelope.peer.0)
    }
}

/// A flow's entry and its backend, if that is still the same.
#[inline(always)]
pub fn current<'a, T: Tables>(tables: &'a T, key: &FlowKey) -> Option<(FlowEntry, &'a Backend)> {
    let flow = tables.flow(key)?;
    let backend = tables.backend_of(flow)?;
    Some((flow, backend))
}

/// An ICMP error from its own IP header to the ports of the packet that it quotes.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Message {
    ip: Ipv4,
    icmp: Icmp,
    quote: Ipv4,
    ports: Ports,
}

// SAFETY: packed, no padding, integers only.
unsafe impl Plain for Message {}

impl Message {
    /// The tuple of the packet that it is about, if it is an error about TCP or UDP.
    #[inline(always)]
    fn quoted(&self) -> Option<FlowKey> {
        let Self {
            ip,
            icmp,
            quote,
            ports,
        } = *self;
        let is_error = ip.version_and_length == 0x45
            && ip.protocol == PROTOCOL_ICMP
            && ip.fragment.raw() & IPV4_FRAGMENT_MASK.raw() == 0
            && matches!(icmp.kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM);
        let is_legible = quote.version_and_length == 0x45
            && (quote.protocol == PROTOCOL_TCP || quote.protocol == PROTOCOL_UDP)
            && quote.fragment.raw() & IPV4_FRAGMENT_OFFSET_MASK.raw() == 0;
        (is_error && is_legible).then_some(FlowKey {
            source: quote.source,
            destination: quote.destination,
            source_port: ports.source,
            destination_port: ports.destination,
            protocol: u32::from(quote.protocol),
        })
    }
}

/// Carries a decision out.
#[inline(always)]
pub fn execute<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    decision: Decision<'_>,
) -> Action {
    let done = match (decision.toward, decision.flow, decision.backend) {
        (Toward::Backend, Some(flow), Some(backend)) => to_backend(
            frame,
            tables,
            config,
            hook,
            flow,
            backend,
            decision.is_encapsulated,
        ),
        (Toward::Client, Some(flow), Some(backend)) => {
            from_backend(frame, tables, config, flow, backend, decision.is_encapsulated)
        }
        (Toward::Nowhere, ..) => Err(decision.reason),
        (Toward::Stack | Toward::Backend | Toward::Client, ..) => return Action::Pass,
    };
    counted(frame, tables, hook, done)
}

/// An error about what a backend has sent.
#[inline(always)]
fn to_backend<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    hook: Hook,
    flow: FlowEntry,
    backend: &Backend,
    is_encapsulated: bool,
) -> Result<Action, DropReason> {
    let (frontend, presented) = (flow.frontend(), flow.presented());
    if backend.location == BACKEND_LOCAL {
        if is_encapsulated {
            encapsulation::decapsulate(frame)?;
        }
        let container = Endpoint::new(backend.address, backend.target_port);
        let source = frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?.source;
        rewrite(frame, source, backend.address, container, presented)?;
        return Ok(into_container(frame, hook, backend)?);
    }
    let next_hop = way_to_peer(tables, backend).ok_or(DropReason::NoRoute)?;
    let source = frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?.source;
    rewrite(frame, source, frontend.address, frontend, presented)?;
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    encapsulation::encapsulate(
        frame,
        config,
        next_hop,
        encapsulation::key_for(tables, next_hop),
        backend,
        GeneveKind::Forward,
        &FlowKey::between(presented, frontend, u32::from(ip.protocol)),
        &ip,
    )?;
    to_peer(frame, config, next_hop)
}

/// An error of a backend, or of its node, about what a client has sent.
#[inline(always)]
fn from_backend<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    flow: FlowEntry,
    backend: &Backend,
    is_encapsulated: bool,
) -> Result<Action, DropReason> {
    let (frontend, client, origin) = (flow.frontend(), flow.client(), flow.origin());
    let way = if is_encapsulated {
        let way = way::to_client(frame, tables, flow);
        encapsulation::decapsulate(frame)?;
        way
    } else {
        way::of_reply(frame, tables, config, flow)
    };
    // From the address that the client knows, as if the node had sent it.
    rewrite(frame, frontend.address, client.address, client, frontend)?;
    if origin == Origin::MESH0 {
        return to_local_process(frame, config);
    }
    if !origin.is_tunnel() || (origin == Origin::TUNNEL_DIRECT && way.reach != Reach::Nowhere) {
        return to_client(frame, &way);
    }
    let ip = *frame.at::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    let inner = FlowKey::between(frontend, client, u32::from(ip.protocol));
    to_entry_node(frame, tables, config, flow, backend, &inner, &ip)
}

/// Rewrites an error: its own addresses, and those and the ports of the packet that it quotes.
#[inline(always)]
fn rewrite<F: Frame>(
    frame: &mut F,
    source: Be32,
    destination: Be32,
    quoted_source: Endpoint,
    quoted_destination: Endpoint,
) -> Result<(), Refused> {
    let ip = frame.at_mut::<Ipv4>(ETHERNET_LENGTH).ok_or(Refused)?;
    let change = Difference::NONE
        .replace32(ip.source, source)
        .replace32(ip.destination, destination);
    ip.source = source;
    ip.destination = destination;
    ip.checksum = checksum::updated(ip.checksum, change);

    let quote = frame.at_mut::<Ipv4>(QUOTE_OFFSET).ok_or(Refused)?;
    let is_tcp = quote.protocol == PROTOCOL_TCP;
    let addresses = Difference::NONE
        .replace32(quote.source, quoted_source.address)
        .replace32(quote.destination, quoted_destination.address);
    quote.source = quoted_source.address;
    quote.destination = quoted_destination.address;
    // This makes up for the addresses in the sum of the whole message as well.
    quote.checksum = checksum::updated(quote.checksum, addresses);

    let ports = frame.at_mut::<Ports>(QUOTED_PORTS_OFFSET).ok_or(Refused)?;
    let changed_ports = Difference::NONE
        .replace16(ports.source, quoted_source.port)
        .replace16(ports.destination, quoted_destination.port);
    ports.source = quoted_source.port;
    ports.destination = quoted_destination.port;

    let field = if is_tcp {
        TCP_CHECKSUM_OFFSET
    } else {
        UDP_CHECKSUM_OFFSET
    };
    // TCP's is often behind the end of the quote, and UDP need not have one.
    let changed_checksum = match frame.at_mut::<[u8; 2]>(QUOTED_PORTS_OFFSET + field) {
        Some(checksum) if is_tcp || *checksum != [0; 2] => {
            let old = Be16::from_raw(u16::from_ne_bytes(*checksum));
            let new = checksum::updated(old, addresses.and(changed_ports));
            *checksum = new.raw().to_ne_bytes();
            Difference::NONE.replace16(old, new)
        }
        _ => Difference::NONE,
    };
    let icmp = frame.at_mut::<Icmp>(L4_OFFSET).ok_or(Refused)?;
    icmp.checksum = checksum::updated(icmp.checksum, changed_ports.and(changed_checksum));
    Ok(())
}

#[cfg(test)]
mod tests;
