//! Decides about packets that arrive through the tunnel: whether a peer sent them, and to which backend
//! or client they go.

use crate::{
    abi::{
        BACKEND_REMOTE, Backend, BackendKey, Config, DropReason, Endpoint, Flow, FlowKey, FrontendKey, Hook,
        Opening, Origin, Role,
    },
    bytes::Be32,
    encapsulation::outer_length,
    flow_state, fragment,
    frame::ReadFrame,
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH,
        GENEVE_VERSION_AND_LENGTH, Geneve, GeneveBase, GeneveKind, KEY_LENGTH, KEYED_OPTION_LENGTH,
        KEYED_VERSION_AND_LENGTH, L4_OFFSET, OUTER_LENGTH, Outer, PROTOCOL_UDP, UDP_LENGTH,
    },
    ipv4, onward, open,
    parse::{Packet, Unparsed, parse},
    probe, signals,
    tables::{FlowEntry, Tables},
    verdict::Decision,
};

/// Whether a packet is for this node's end of the tunnel.
#[inline(always)]
pub fn is_encapsulated(config: &Config, packet: &Packet) -> bool {
    packet.key.destination_port == config.geneve_port
        && packet.key.protocol == u32::from(PROTOCOL_UDP)
        && packet.key.destination == config.node_address
}

/// What the outer headers of a peer's packet say.
#[derive(Clone, Copy)]
pub struct Envelope {
    /// What it carries.
    pub kind: GeneveKind,
    /// The Geneve header.
    pub geneve: Geneve,
    /// The peer's index and address.
    pub peer: (u32, Be32),
}

/// Reads the outer headers of a packet to this node's Geneve port.
///
/// # Errors
/// What happens to a packet that is not the mesh's, or not a peer's.
#[inline(always)]
pub fn open_envelope<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    outer_packet: &Packet,
) -> Result<Envelope, Decision<'a>> {
    match frame.at::<GeneveBase>(L4_OFFSET + UDP_LENGTH) {
        // Another network's Geneve on the same port.
        Some(base) if { base.vni } != config.vni => return Err(Decision::PASS),
        Some(_) => {}
        None => return Err(Decision::drop(DropReason::Truncated)),
    }
    let Some(outer) = frame.at::<Outer>(ETHERNET_LENGTH) else {
        return Err(Decision::drop(DropReason::Truncated));
    };
    let geneve = outer.geneve;
    let lengths = (geneve.version_and_length, geneve.option_length);
    let is_keyed = lengths == (KEYED_VERSION_AND_LENGTH, KEYED_OPTION_LENGTH);
    if !(is_keyed || lengths == (GENEVE_VERSION_AND_LENGTH, GENEVE_OPTION_LENGTH))
        || geneve.flags != GENEVE_FLAGS
        || { geneve.protocol } != ETHERTYPE_IPV4
        || { geneve.option_class } != GENEVE_CLASS
    {
        return Err(Decision::drop(DropReason::BadGeneve));
    }
    let Some(kind) = GeneveKind::from_option(geneve.option_kind) else {
        return Err(Decision::drop(DropReason::BadGeneve));
    };
    let Some(peer) = tables.peer_index(outer_packet.key.source) else {
        return Err(Decision::drop(DropReason::UnknownPeer));
    };
    if outer_packet.total_length < outer_length(frame) as u32 {
        return Err(Decision::drop(DropReason::Truncated));
    }
    // An answer to one of this node's own probes repeats its nonce instead.
    if kind != GeneveKind::ProbeAnswer && !is_authentic(frame, tables, is_keyed, peer) {
        return Err(Decision::drop(DropReason::NoKey));
    }
    Ok(Envelope {
        kind,
        geneve,
        peer: (peer, outer_packet.key.source),
    })
}

/// Decides about a packet to this node's Geneve port.
#[inline(always)]
pub fn decide<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    outer_packet: &Packet,
) -> Decision<'a> {
    let envelope = match open_envelope(frame, tables, config, outer_packet) {
        Ok(envelope) => envelope,
        Err(decision) => return decision,
    };
    match envelope.kind {
        GeneveKind::Probe => return probe::decide(config, outer_packet),
        // For the agent, whose socket has this port.
        GeneveKind::ProbeAnswer => return Decision::PASS,
        GeneveKind::Forward | GeneveKind::ForwardDirect | GeneveKind::Reply | GeneveKind::Undeliverable => {}
    }
    let offset = ETHERNET_LENGTH + outer_length(frame);
    let packet = match parse(frame, offset) {
        Ok(packet) => packet,
        Err(Unparsed::Exceptional) => return Decision::exceptional(hook),
        Err(_) => return Decision::drop(DropReason::BadGeneve),
    };
    let decision = decide_inner(frame, tables, config, hook, &envelope, &packet);
    if packet.is_first_fragment {
        fragment::note(frame, tables, offset, &packet.key);
    }
    decision
}

/// Decides about a packet that was encapsulated.
#[inline(always)]
fn decide_inner<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    envelope: &Envelope,
    packet: &Packet,
) -> Decision<'a> {
    let Envelope { kind, geneve, peer } = *envelope;
    if ipv4::is_never_on_a_wire(packet.key.source) || ipv4::is_never_on_a_wire(packet.key.destination) {
        return Decision::drop(DropReason::BadGeneve);
    }
    match kind {
        GeneveKind::Reply => reply(frame, tables, config, hook, packet, &geneve, peer.0),
        // Packets for this node are left to tc, and with them the flow.
        GeneveKind::Forward | GeneveKind::ForwardDirect | GeneveKind::Undeliverable
            if matches!(hook, Hook::Xdp) =>
        {
            Decision::PASS
        }
        GeneveKind::Forward => forwarded(frame, tables, config, packet, &geneve, Origin::TUNNEL, peer),
        GeneveKind::ForwardDirect => forwarded(
            frame,
            tables,
            config,
            packet,
            &geneve,
            Origin::TUNNEL_DIRECT,
            peer,
        ),
        // No packet is inside.
        GeneveKind::Probe | GeneveKind::ProbeAnswer => Decision::PASS,
        GeneveKind::Undeliverable => returned(frame, tables, config, hook, packet, &geneve, peer.0),
    }
}

/// Whether a packet has one of the cluster's keys, or need not have one.
///
/// A peer sends packets without a key until it has learned that this node holds one, and from then on never
/// again. So the first packet with a key ends it, and needs no agreement about when.
#[inline(always)]
fn is_authentic<F: ReadFrame, T: Tables>(frame: &F, tables: &T, is_keyed: bool, peer: u32) -> bool {
    let Some(keys) = tables.keys().filter(|keys| !keys.is_empty()) else {
        return true;
    };
    if !is_keyed {
        return !tables.is_keyed(peer);
    }
    let Some(key) = frame.at::<[u8; KEY_LENGTH]>(ETHERNET_LENGTH + OUTER_LENGTH) else {
        return false;
    };
    let is_authentic = keys.contain(u64::from_ne_bytes(*key));
    if is_authentic && !tables.is_keyed(peer) {
        tables.note_keyed(peer);
    }
    is_authentic
}

/// A client's packet, from its entry node to a backend here.
#[inline(always)]
fn forwarded<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    geneve: &Geneve,
    origin: Origin,
    peer: (u32, Be32),
) -> Decision<'a> {
    if let Some(flow) = tables.flow(&packet.key)
        && flow.role() == Role::FORWARD
        && flow.origin() == origin
        && let Some(backend) = tables.backend_of(flow)
        && open::is_named(backend, geneve)
        && flow.peer() == peer.0
        && flow.peer_address() == peer.1
        // As at the entry node, the client uses its port again after a close. The reply entry may belong to
        // another flow by now.
        && !(packet.is_syn() && flow.is_closing())
        && !(packet.may_open_flow() && flow_state::lacks_other(tables, flow, backend, packet.key.protocol))
    {
        let flow = flow_state::client_packet(frame, tables, flow, backend, config, packet);
        return Decision::deliver(flow, backend, true);
    }
    // There is no flow, or its entry node has chosen another backend, or it has another entry node now.
    match open::at_backend(frame, tables, config, packet, geneve, origin, peer) {
        Ok((flow, backend)) => Decision::deliver(flow, backend, true),
        // The entry node can choose another backend.
        Err(reason) => Decision::send_back(peer.0, reason),
    }
}

/// A client's packet that the node of its backend could not deliver, back on its entry node. A packet that
/// may open its flow goes to another backend, a few times; any other is refused.
#[inline(always)]
fn returned<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    packet: &Packet,
    geneve: &Geneve,
    peer: u32,
) -> Decision<'a> {
    let Some(flow) = forward_entry(tables, packet) else {
        return Decision::drop(DropReason::UnknownFlow);
    };
    let backend = tables.backend_of(flow);
    // When the backend is gone, its flow still knows its node.
    if backend.is_none() && flow.peer() != peer {
        return Decision::drop(DropReason::UnknownFlow);
    }
    if let Some(backend) = backend
        && !is_sender(backend, geneve, peer)
    {
        if packet.may_open_flow() && flow.opening().moves() != 0 && !flow.is_closing() {
            // It was under way when its flow moved, and follows.
            return onward::decide(config, hook, flow, backend).of_returned();
        }
        return Decision::drop(DropReason::UnknownFlow);
    }
    // New flows pass over it.
    if backend.is_some() {
        if packet.is_syn() {
            signals::unanswered(tables, flow);
        }
        tables.trip(flow.backend(), tables.clock());
    }
    if packet.may_open_flow() && flow.opening().moves() < Opening::MOVES {
        let key = flow_state::forward_key(flow, packet.key.protocol);
        if let Some(service) = tables.frontend(&FrontendKey::dialled(&key))
            && let Ok((flow, backend)) = open::elsewhere(frame, tables, config, &key, service, flow)
        {
            return onward::decide(config, hook, flow, backend).of_returned();
        }
    }
    flow.close();
    Decision::refuse_returned(flow, DropReason::Undeliverable)
}

/// The forward entry of the flow of a client's packet that this node has encapsulated.
#[inline(always)]
fn forward_entry<T: Tables>(tables: &T, packet: &Packet) -> Option<FlowEntry> {
    let found = tables.flow(&packet.key)?;
    let forward = if found.role() == Role::ALIAS {
        tables.flow(&flow_state::forward_key(found, packet.key.protocol))?
    } else {
        found
    };
    (forward.role() == Role::FORWARD && !forward.origin().is_tunnel()).then_some(forward)
}

/// Whether a peer's packet is about this backend, which is on that peer.
#[inline(always)]
pub fn is_sender(backend: &Backend, geneve: &Geneve, peer: u32) -> bool {
    open::is_named(backend, geneve) && backend.location == BACKEND_REMOTE && backend.peer == peer
}

/// A backend's reply, on its entry node. Only the node of the flow's own backend may send it.
#[inline(always)]
fn reply<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    packet: &Packet,
    geneve: &Geneve,
    peer: u32,
) -> Decision<'a> {
    let key = packet.key.reversed();
    let Some(flow) = tables.flow(&key) else {
        return match flow_of_untracked_reply(tables, &key, geneve, peer) {
            Some(flow) => Decision::deliver_reply(flow),
            None => Decision::drop(DropReason::UnknownFlow),
        };
    };
    if flow.role() == Role::REPLY || flow.role() == Role::FOREIGN || flow.origin().is_tunnel() {
        return Decision::drop(DropReason::UnknownFlow);
    }
    if matches!(hook, Hook::Xdp) && (flow.origin() != Origin::UPLINK || flow.role() != Role::FORWARD) {
        // The client is on this node.
        return Decision::PASS;
    }
    // A draining backend is still in the table.
    let is_genuine = tables
        .backend_of(flow)
        .is_some_and(|backend| is_sender(backend, geneve, peer));
    if !is_genuine {
        return Decision::drop(DropReason::UnknownFlow);
    }
    let flow = flow_state::backend_packet(frame, tables, &key, flow, config, packet);
    if flow.role() == Role::FOREIGN {
        return Decision::drop(DropReason::UnknownFlow);
    }
    Decision::deliver_reply(flow)
}

/// The flow of a remote backend's reply that has no entries. `key` is of its client's packets.
#[inline(always)]
fn flow_of_untracked_reply<T: Tables>(
    tables: &T,
    key: &FlowKey,
    geneve: &Geneve,
    peer: u32,
) -> Option<FlowEntry> {
    if !tables.is_flooded() {
        return None;
    }
    let name = BackendKey {
        address: geneve.backend_address,
        port: key.destination_port,
        protocol: key.protocol as u16,
    };
    let index = tables.backend_index(&name)?;
    let backend = tables.backend(index)?;
    if backend.generation == 0 || !is_sender(backend, geneve, peer) {
        return None;
    }
    let client = Endpoint::new(key.source, key.source_port);
    tables.stage(&Flow {
        frontend: Endpoint::new(key.destination, key.destination_port),
        client,
        presented: client,
        backend: index,
        generation: backend.generation,
        peer,
        origin: Origin::UPLINK,
        role: Role::FORWARD,
        ..Flow::default()
    })
}

#[cfg(test)]
mod tests;
