//! Packets between nodes, on arrival: are they a peer's, and for whom? Imports the modules it decides
//! with.

use crate::{
    abi::{Config, DropReason, Hook, Origin, Role},
    entry::{is_syn, progress, seen},
    frame::Frame,
    headers::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, GENEVE_CLASS, GENEVE_FLAGS, GENEVE_OPTION_LENGTH,
        GENEVE_VERSION_AND_LENGTH, GeneveBase, GeneveKind, L4_OFFSET, OUTER_LENGTH, Outer, UDP_LENGTH,
    },
    open,
    parse::{Packet, parse},
    tables::Tables,
    verdict::Decision,
};

/// Decides about a packet to this node's Geneve port.
#[inline(always)]
pub fn decide<'a, F: Frame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    hook: Hook,
    outer_packet: &Packet,
) -> Decision<'a> {
    match frame.at::<GeneveBase>(L4_OFFSET + UDP_LENGTH) {
        // Somebody else's Geneve on the same port.
        Some(base) if { base.vni } != config.vni => return Decision::PASS,
        Some(_) => {}
        None => return Decision::drop(DropReason::Truncated),
    }
    let Some(outer) = frame.at::<Outer>(ETHERNET_LENGTH) else {
        return Decision::drop(DropReason::Truncated);
    };
    let geneve = outer.geneve;
    if geneve.version_and_length != GENEVE_VERSION_AND_LENGTH
        || geneve.flags != GENEVE_FLAGS
        || { geneve.protocol } != ETHERTYPE_IPV4
        || { geneve.option_class } != GENEVE_CLASS
        || geneve.option_length != GENEVE_OPTION_LENGTH
    {
        return Decision::drop(DropReason::BadGeneve);
    }
    let Some(kind) = GeneveKind::from_option(geneve.option_kind) else {
        return Decision::drop(DropReason::BadGeneve);
    };
    let Some(peer) = tables.peer_index(outer_packet.key.source) else {
        return Decision::drop(DropReason::UnknownPeer);
    };
    if usize::from(outer_packet.total_length) < OUTER_LENGTH {
        return Decision::drop(DropReason::Truncated);
    }
    let Ok(packet) = parse(frame, ETHERNET_LENGTH + OUTER_LENGTH) else {
        return Decision::drop(DropReason::BadGeneve);
    };
    let peer = (peer, outer_packet.key.source);
    match kind {
        GeneveKind::Reply => deliver_reply(tables, config, &packet),
        // What stays on this node is tc's: leave the flow to it as well.
        GeneveKind::Forward | GeneveKind::ForwardDirect if matches!(hook, Hook::Xdp) => Decision::PASS,
        GeneveKind::Forward => delivered(tables, config, &packet, &geneve, Origin::TUNNEL, peer),
        GeneveKind::ForwardDirect => delivered(tables, config, &packet, &geneve, Origin::TUNNEL_DIRECT, peer),
    }
}

/// A client's packet, from its entry node to a backend here.
#[inline(always)]
fn delivered<'a, T: Tables>(
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    geneve: &crate::headers::Geneve,
    origin: Origin,
    peer: (u32, crate::bytes::Be32),
) -> Decision<'a> {
    if let Some(flow) = tables.flow(&packet.key)
        && flow.role() == Role::FORWARD
        && flow.origin() == origin
        && let Some(backend) = tables.backend(flow.backend())
        && backend.generation == flow.generation()
        && open::is_named(backend, geneve)
        && flow.peer() == peer.0
        && flow.peer_address() == peer.1
        // As at the entry node, a SYN on a flow that is being closed is the port's next user: another flow may have
        // taken the way back since.
        && !(is_syn(packet) && flow.is_closing())
    {
        seen(flow, config, packet);
        return Decision::deliver(flow, backend, true);
    }
    // No flow, or its entry node has chosen anew, or another node has become its entry: do as it says.
    match open::at_backend(tables, config, packet, geneve, origin, peer) {
        Ok((flow, backend)) => Decision::deliver(flow, backend, true),
        Err(reason) => Decision::drop(reason),
    }
}

/// A backend's reply, back at its entry node.
#[inline(always)]
fn deliver_reply<'a, T: Tables>(tables: &'a T, config: &Config, packet: &Packet) -> Decision<'a> {
    let Some(flow) = tables.flow(&packet.key.reversed()) else {
        return Decision::drop(DropReason::UnknownFlow);
    };
    if flow.role() == Role::REPLY || flow.origin().is_tunnel() {
        return Decision::drop(DropReason::UnknownFlow);
    }
    if let Some(progress) = progress(packet) {
        flow.backend_is(progress);
        if flow.role() == Role::ALIAS
            && let Some(forward) = tables.flow(&open::forward_key(flow, packet.key.protocol))
        {
            forward.backend_is(progress);
        }
    }
    flow.touch(config.now);
    Decision::deliver_reply(flow)
}

#[cfg(test)]
mod tests;
