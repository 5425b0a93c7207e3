//! Decides about replies of local backends, as they leave the container.

use crate::{
    abi::{Config, Origin, Role},
    encapsulation, flow_state,
    frame::Frame,
    parse::Packet,
    tables::Tables,
    verdict::Decision,
};

/// Decides about a packet that a container sends, if it is a reply of a flow.
#[inline(always)]
pub fn decide<'a, F: Frame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
) -> Option<Decision<'a>> {
    let flow = tables
        .flow(&packet.key)
        .filter(|flow| flow.role() == Role::REPLY)?;
    let current = tables
        .backend(flow.backend())
        .is_some_and(|backend| backend.generation == flow.generation());
    if !current {
        // The container that had this address is gone: another one sends this.
        return None;
    }
    if flow.origin() == Origin::TUNNEL && !encapsulation::fits(frame, packet, config.inner_mtu) {
        return Some(Decision::TOO_BIG);
    }
    flow_state::backend_packet(tables, flow, config, packet);
    Some(Decision::reply(flow))
}

#[cfg(test)]
mod tests;
