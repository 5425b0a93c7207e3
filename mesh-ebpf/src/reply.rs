//! Decides about replies of local backends, as they leave the container.

use crate::{
    abi::{Config, DropReason, Role},
    flood, flow_state,
    frame::ReadFrame,
    parse::Packet,
    tables::{FlowEntry, Tables},
    verdict::Decision,
};

/// Decides about a packet that a container sends, if it is a reply of a flow.
#[inline(always)]
pub fn decide<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
) -> Option<Decision<'a>> {
    // Most of what a container sends comes from another port: an array read spares it the look-ups.
    if !tables.is_backend_port(packet.key.protocol as u8, packet.key.source_port.get()) {
        return None;
    }
    let Some(flow) = tables.flow(&packet.key) else {
        return flood::flow_of_reply(tables, packet).map(Decision::reply);
    };
    if flow.role() != Role::REPLY {
        return None;
    }
    let current = tables.backend_of(flow).is_some();
    if !current {
        return of_backend_that_is_gone(flow, packet);
    }
    let flow = flow_state::backend_packet(frame, tables, &packet.key, flow, config, packet);
    if flow.role() == Role::FOREIGN {
        return Some(Decision::drop(DropReason::UnknownFlow));
    }
    Some(Decision::reply(flow))
}

/// A packet of a connection whose backend was taken out: its drain has taken too long. If it opens a
/// connection, the container that had this address is gone, and another one sends this.
#[inline(always)]
fn of_backend_that_is_gone<'a>(flow: FlowEntry, packet: &Packet) -> Option<Decision<'a>> {
    if packet.continues() {
        return Some(Decision::refuse(DropReason::BackendGone));
    }
    flow.disown();
    None
}

#[cfg(test)]
mod tests;
