//! What a packet says about the state of its flow.

use crate::{
    abi::{Config, FlowKey, Role},
    breaker,
    parse::Packet,
    tables::{FlowEntry, Tables},
};

/// Records a client's packet in its flow's forward entry.
#[inline(always)]
pub fn client_packet(flow: FlowEntry, config: &Config, packet: &Packet) {
    flow.touch(config.now);
    if let Some(progress) = packet.progress() {
        flow.client_is(progress);
    }
}

/// Records a backend's packet in the entry that it was found by, and in the flow's forward entry, which
/// knows the state of both directions.
#[inline(always)]
pub fn backend_packet<T: Tables>(tables: &T, flow: FlowEntry, config: &Config, packet: &Packet) {
    if let Some(progress) = packet.progress() {
        if flow.role() != Role::REPLY {
            flow.backend_is(progress);
        }
        if flow.role() != Role::FORWARD
            && let Some(forward) = tables.flow(&forward_key(flow, packet.key.protocol))
        {
            forward.backend_is(progress);
        }
    }
    if !flow.opening().is_answered() && !flow.origin().is_tunnel() && breaker::is_answer(packet) {
        first_answer(tables, flow, packet.key.protocol);
    }
    flow.touch(config.now);
}

/// Records the first answer of a flow's backend.
#[inline(always)]
fn first_answer<T: Tables>(tables: &T, flow: FlowEntry, protocol: u32) {
    flow.note_answer();
    tables.note_answer(flow.backend());
    if flow.role() != Role::FORWARD
        && let Some(forward) = tables.flow(&forward_key(flow, protocol))
    {
        forward.note_answer();
    }
}

/// The key of a flow's forward entry, from any of its entries.
#[inline(always)]
pub fn forward_key(entry: FlowEntry, protocol: u32) -> FlowKey {
    FlowKey::between(entry.client(), entry.frontend(), protocol)
}
