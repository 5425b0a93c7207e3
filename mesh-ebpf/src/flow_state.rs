//! What a packet says about the state of its flow.

use crate::{
    abi::{Config, FlowKey, Role},
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
    flow.touch(config.now);
}

/// The key of a flow's forward entry, from any of its entries.
#[inline(always)]
pub fn forward_key(entry: FlowEntry, protocol: u32) -> FlowKey {
    FlowKey::between(entry.client(), entry.frontend(), protocol)
}
