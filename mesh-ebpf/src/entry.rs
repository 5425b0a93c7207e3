//! The first decision at every hook: whether a packet is the mesh's, and what happens to it.

use crate::{
    abi::{
        BACKEND_LOCAL, Backend, Config, DropReason, Event, FlowKey, FrontendKey, Hook, Origin, OwnKey, Role,
        is_mapped_client, is_mapped_own,
    },
    breaker, flood,
    flood_tables::Mark,
    flow_state, fragment,
    frame::ReadFrame,
    headers::{ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, PROTOCOL_UDP},
    ipv4, onward, open,
    parse::{Packet, Unparsed, parse},
    reply, select, signals,
    source_rules::{self, Phase},
    tables::{FlowEntry, Tables},
    tunnel,
    verdict::Decision,
};

/// Decides about a frame that arrived at a hook.
#[inline(always)]
pub fn decide<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
) -> Decision<'a> {
    match frame.at::<Ethernet>(0) {
        Some(ethernet) if { ethernet.ethertype } == ETHERTYPE_IPV4 => {}
        _ => return not_ours(hook),
    }
    decide_ipv4(frame, tables, config, hook)
}

/// Decides about a frame of which it is known that it holds an IPv4 packet. Its Ethernet header is not read.
#[inline(always)]
pub fn decide_ipv4<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
) -> Decision<'a> {
    let packet = match parse(frame, ETHERNET_LENGTH) {
        Ok(packet) => packet,
        Err(Unparsed::Other) => return not_ours(hook),
        Err(Unparsed::Exceptional) => return Decision::exceptional(hook),
        Err(Unparsed::Unsupported(reason, key)) => return unsupported(tables, hook, &key, reason),
    };
    if matches!(hook, Hook::Xdp | Hook::TcUplink) && tunnel::is_encapsulated(config, &packet) {
        return tunnel::decide(frame, tables, config, hook, &packet);
    }
    let decision = decide_packet(frame, tables, config, hook, &packet);
    if packet.is_first_fragment {
        return fragment::first(frame, tables, hook, ETHERNET_LENGTH, &packet, decision);
    }
    decision
}

/// Decides about a packet that is not encapsulated.
#[inline(always)]
fn decide_packet<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    packet: &Packet,
) -> Decision<'a> {
    match hook {
        Hook::Xdp | Hook::TcUplink => client(frame, tables, config, packet, hook, Origin::UPLINK),
        Hook::TcContainer => match reply::decide(frame, tables, config, packet) {
            Some(decision) => decision,
            None => client(frame, tables, config, packet, hook, Origin::CONTAINER),
        },
        Hook::TcMesh0 => client(frame, tables, config, packet, hook, Origin::MESH0),
    }
}

/// A packet that is not the mesh's. At mesh0 it is dropped: the device leads nowhere else.
#[inline(always)]
fn not_ours<'a>(hook: Hook) -> Decision<'a> {
    match hook {
        Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Decision::PASS,
        Hook::TcMesh0 => Decision::drop(DropReason::NotAFrontend),
    }
}

/// A malformed packet, or one with IP options: dropped if it is for a frontend.
#[inline(always)]
fn unsupported<'a, T: Tables>(tables: &'a T, hook: Hook, key: &FlowKey, reason: DropReason) -> Decision<'a> {
    if !tables.is_published(key.protocol as u8, key.destination_port.get()) {
        return not_ours(hook);
    }
    match tables.frontend(&FrontendKey::dialled(key)) {
        Some(_) => Decision::drop(reason),
        None => not_ours(hook),
    }
}

/// What the flow table says about a client's packet to a published port.
enum ClientPacket<'a> {
    /// The next packet of a flow whose backend is still there.
    Continues { flow: FlowEntry, backend: &'a Backend },
    /// It may open a flow, and no other flow has a claim to its tuple (any more); or it is in mid-connection,
    /// and a flow may be made for it.
    Opens,
    /// It may open a flow, and gets none: its service is past its flood limit.
    PastLimit,
    /// TCP of a flow whose backend is gone.
    BackendGone,
    /// TCP with the tuple of a reply, or of a connection that is the kernel's.
    OtherRole,
    /// TCP in mid-connection, of a flow that the mesh does not know, or whose entry node was another one.
    UnknownFlow,
}

/// Decides about a packet that is not encapsulated and no reply: it may be a client's.
#[inline(always)]
fn client<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    hook: Hook,
    origin: Origin,
) -> Decision<'a> {
    let key = &packet.key;
    if origin == Origin::CONTAINER {
        note_own(tables, key);
    }
    if !tables.is_published(key.protocol as u8, key.destination_port.get()) {
        return not_ours(hook);
    }
    // Only processes of this node use the service address, and at mesh0 they use no other.
    if (key.destination == config.service_address) != (origin == Origin::MESH0) {
        return not_ours(hook);
    }
    match classify(frame, tables, config, packet, hook, origin) {
        ClientPacket::Continues { flow, backend } => {
            let flow = flow_state::client_packet(frame, tables, flow, backend, config, packet);
            onward::decide(config, hook, flow, backend)
        }
        ClientPacket::Opens => opens(frame, tables, config, packet, hook, origin),
        ClientPacket::PastLimit => past_limit(frame, tables, config, packet, hook),
        ClientPacket::BackendGone => Decision::refuse(DropReason::BackendGone),
        ClientPacket::OtherRole => not_ours(hook),
        ClientPacket::UnknownFlow => match hook {
            Hook::TcMesh0 => Decision::refuse(DropReason::UnknownFlow),
            // tc decides.
            Hook::Xdp | Hook::TcUplink | Hook::TcContainer => Decision::PASS,
        },
    }
}

#[inline(always)]
fn classify<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    hook: Hook,
    origin: Origin,
) -> ClientPacket<'a> {
    let may_open = packet.may_open_flow();
    // Random tuples are in no table, and to find that out costs more than all the rest.
    if origin == Origin::UPLINK && packet.is_syn() && tables.is_past_limit(&packet.key) {
        return ClientPacket::PastLimit;
    }
    // Whether it is adopted or left to the kernel is decided as for a new flow, by the same rules.
    let may_be_unknown = matches!(hook, Hook::TcUplink | Hook::TcContainer);
    let Some(flow) = tables.flow(&packet.key) else {
        // A flood may have kept its flow out of the tables.
        return if may_open || may_be_unknown || (origin == Origin::UPLINK && tables.is_flooded()) {
            ClientPacket::Opens
        } else {
            ClientPacket::UnknownFlow
        };
    };
    if flow.role() != Role::FORWARD || flow.origin().is_tunnel() {
        if flow.role() == Role::FOREIGN {
            flow.touch(config.now);
        }
        return if may_open {
            ClientPacket::Opens
        } else if flow.role() != Role::FORWARD {
            ClientPacket::OtherRole
        } else if may_be_unknown {
            // Its address has moved here, or it comes by another router than before.
            ClientPacket::Opens
        } else {
            ClientPacket::UnknownFlow
        };
    }
    let backend = tables.backend_of(flow);
    match backend {
        // A SYN on a flow that is closed: the client uses its port again. While one side still sends, it is
        // its backend that knows what the SYN is. UDP flows are closed only when they are refused.
        // In a flood, its SYN may have passed without a flow.
        Some(_) if flow.is_closed() && (may_open || (origin == Origin::UPLINK && tables.is_flooded())) => {
            ClientPacket::Opens
        }
        // The client asks once more: its backend answers nothing, or its answer would not be known as one.
        Some(backend) if may_open && !flow.opening().is_open() && signals::is_sent_again(tables, flow) => {
            let is_unanswered = !flow.opening().is_answered();
            if packet.is_syn() {
                signals::asked_again(tables, flow);
            }
            if is_unanswered
                && (packet.is_syn()
                    && (breaker::is_open(tables, flow.backend()) || !open::has_veth(frame, backend))
                    || flow_state::lacks_other(tables, flow, backend, packet.key.protocol))
            {
                ClientPacket::Opens
            } else {
                ClientPacket::Continues { flow, backend }
            }
        }
        Some(backend) => ClientPacket::Continues { flow, backend },
        None if may_open => ClientPacket::Opens,
        None => ClientPacket::BackendGone,
    }
}

/// Opens a flow, if the packet is for a frontend. The packet may be in mid-connection: where a flood has kept
/// flows out of the tables, and where a hash finds its backend again. Any other connection is left to the
/// kernel: it may be older than the mesh. The service's rules are asked first, as the agent removes flows
/// that they no longer let in.
#[inline(always)]
fn opens<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    hook: Hook,
    origin: Origin,
) -> Decision<'a> {
    let key = &packet.key;
    let Some(index) = tables.frontend(&FrontendKey::dialled(key)) else {
        return not_ours(hook);
    };
    let is_from_network = matches!(hook, Hook::Xdp | Hook::TcUplink);
    if is_from_network && let Some(decision) = misdirected(frame, tables, config, hook, key) {
        return decision;
    }
    if is_from_network && is_udp(key) && tables.is_own(&OwnKey::answered(key)) {
        return Decision::PASS;
    }
    let Some(service) = tables.service(index) else {
        return Decision::refuse(DropReason::NoBackend);
    };
    let may_open = packet.may_open_flow();
    let phase = if may_open { Phase::Opening } else { Phase::Open };
    if let Some(refusal) = source_rules::refusal(frame, tables, hook, origin, key, service.policy, phase) {
        return refusal;
    }
    tables.mark(Mark::First, may_open);
    // What its address has brought along, or this node has forgotten: the same backend is found again.
    tables.mark(
        Mark::Hashed,
        origin == Origin::UPLINK
            && !may_open
            && packet.continues()
            && packet.progress().is_none()
            && service.choice.is_by_hash()
            && config.direct_return == 0,
    );
    tables.mark(Mark::Tracked, true);
    // As for source rules, processes of the node itself are under no limit.
    let openings = if origin == Origin::MESH0 {
        None
    } else {
        let Some(openings) = tables.openings(index) else {
            return Decision::refuse(DropReason::NoBackend);
        };
        Some(openings)
    };
    let span = tables.span();
    if origin == Origin::UPLINK
        && let Some(openings) = openings
        && flood::is_recent(openings, span)
    {
        tables.mark(Mark::Hashed, true);
    }
    if !tables.is_marked(Mark::First) && !tables.is_marked(Mark::Hashed) {
        if hook != Hook::Xdp {
            tables.count_event(Event::FlowUnknown);
        }
        return Decision::PASS;
    }
    let Some(chosen) = select::select(tables, key, (index, &service)) else {
        return Decision::refuse(DropReason::NoBackend);
    };
    if hook == Hook::Xdp && chosen.1.location == BACKEND_LOCAL && tables.is_marked(Mark::Hashed) {
        // Left to tc, which chooses the same one, and counts it.
        return Decision::PASS;
    }
    if let Some(openings) = openings
        && let Err(reason) = flood::admit(tables, openings, span, index, packet, origin)
    {
        return Decision::drop(reason);
    }
    match open::at_entry(frame, tables, config, packet, index, origin, chosen) {
        Ok((flow, backend)) => onward::decide(config, hook, flow, backend),
        Err(reason @ (DropReason::NoBackend | DropReason::Undeliverable)) => Decision::refuse(reason),
        Err(reason) => Decision::drop(reason),
    }
}

/// Sends a SYN on without a flow: its service is past its flood limit in this span. The same as [`opens`]
/// comes to, with the least work, as it is done for each packet of a flood.
#[inline(always)]
fn past_limit<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    hook: Hook,
) -> Decision<'a> {
    let key = &packet.key;
    let Some(index) = tables.frontend(&FrontendKey::dialled(key)) else {
        return not_ours(hook);
    };
    if let Some(decision) = misdirected(frame, tables, config, hook, key) {
        return decision;
    }
    let Some(service) = tables.service(index) else {
        return Decision::refuse(DropReason::NoBackend);
    };
    let (origin, phase) = (Origin::UPLINK, Phase::Opening);
    if let Some(refusal) = source_rules::refusal(frame, tables, hook, origin, key, service.policy, phase) {
        return refusal;
    }
    let Some(chosen) = select::by_hash(tables, key, (index, &service)) else {
        return Decision::refuse(DropReason::NoBackend);
    };
    if hook == Hook::Xdp && chosen.1.location == BACKEND_LOCAL {
        return Decision::PASS;
    }
    if let Err(reason) = flood::admit_past_limit(tables, index, key) {
        return Decision::drop(reason);
    }
    match open::untracked(tables, config, key, chosen) {
        Some(flow) => onward::decide(config, hook, flow, chosen.1),
        None => Decision::drop(DropReason::FlowTableFull),
    }
}

/// What happens to a frame of the network's that opens no flow whatever its service says: a martian, or one
/// that is for another machine, and left to the kernel.
#[inline(always)]
fn misdirected<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    config: &Config,
    hook: Hook,
    key: &FlowKey,
) -> Option<Decision<'a>> {
    if is_martian(frame, key) {
        return Some(Decision::drop(DropReason::Martian));
    }
    if is_for_this_node(frame, tables, config) {
        return None;
    }
    if hook != Hook::Xdp {
        tables.count_event(Event::OtherMachine);
    }
    Some(Decision::PASS)
}

/// Whether what would answer the packet would go astray, or to more than its sender.
#[inline(always)]
fn is_martian<F: ReadFrame>(frame: &F, key: &FlowKey) -> bool {
    let is_for_group = frame
        .at::<Ethernet>(0)
        .is_some_and(|ethernet| ethernet.destination[0] & 1 != 0);
    // Mapped addresses are of packets that were IPv6, and of no others.
    let is_mapped = is_mapped_client(key.source) || is_mapped_own(key.destination);
    is_for_group
        || key.source == key.destination
        || ipv4::is_never_on_a_wire(key.source)
        || is_mapped != frame.was_ipv6()
}

/// Whether a frame has a MAC address of this node. Other machines' frames arrive here while a switch does not
/// know where those are, and on ports of a bridge; the kernel takes them for its own no more than this does.
/// Asked as a flow opens, so that an open one does not pay for it.
#[inline(always)]
pub fn is_for_this_node<F: ReadFrame, T: Tables>(frame: &F, tables: &T, config: &Config) -> bool {
    if config.knows_macs == 0 {
        return true;
    }
    match frame.at::<Ethernet>(0) {
        Some(ethernet) => tables.is_host_mac(ethernet.destination),
        // Of a layer 3 device.
        None => true,
    }
}

#[inline(always)]
fn is_udp(key: &FlowKey) -> bool {
    key.protocol == u32::from(PROTOCOL_UDP)
}

/// Notes that a container awaits an answer at a port that is also published: masquerading leaves it the port.
#[inline(always)]
fn note_own<T: Tables>(tables: &T, key: &FlowKey) {
    if is_udp(key) && tables.is_published(PROTOCOL_UDP, key.source_port.get()) {
        tables.note_own(&OwnKey::asked(key));
    }
}

#[cfg(test)]
mod tests;
