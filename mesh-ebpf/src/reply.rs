//! Replies of local backends, as they leave the container. Imports the modules it decides with.

use crate::{
    abi::{Config, Origin, Role},
    entry::{exceeds, progress},
    frame::Frame,
    open::forward_key,
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
        // The container that had this address is gone: what its successor sends is its own.
        return None;
    }
    if flow.origin() == Origin::TUNNEL && exceeds(frame, packet, config.inner_mtu) {
        return Some(Decision::TOO_BIG);
    }
    if let Some(progress) = progress(packet)
        && let Some(forward) = tables.flow(&forward_key(flow, packet.key.protocol))
    {
        forward.backend_is(progress);
    }
    flow.touch(config.now);
    Some(Decision::reply(flow))
}

#[cfg(test)]
mod tests;
