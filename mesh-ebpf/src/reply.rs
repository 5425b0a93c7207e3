//! Replies of local backends, as they leave the container. Imports `abi`, `parse`, `tables`.

use crate::{
    abi::{Config, Role},
    entry::progress,
    open::forward_key,
    parse::Packet,
    tables::Tables,
    verdict::Decision,
};

/// Decides about a packet that a container sends, if it is a reply of a flow.
#[inline(always)]
pub fn decide<'a, T: Tables>(tables: &'a T, config: &Config, packet: &Packet) -> Option<Decision<'a>> {
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
    if let Some(progress) = progress(packet)
        && let Some(forward) = tables.flow(&forward_key(flow, packet.key.protocol))
    {
        forward.backend_is(progress);
    }
    flow.touch(config.now);
    Some(Decision::Reply { flow })
}
