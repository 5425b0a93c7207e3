//! How many new flows a service takes, and which of them get entries in the flow tables.
//!
//! Past a service's flood limit, packets of unknown flows are forwarded without any: each goes to the backend
//! that a hash of its sender names, so that all of a flow go to the same one, and whatever follows makes the
//! flow once there is room for it. First packets and those in mid-connection have limits of their own: a
//! flood of SYNs takes nothing from the clients that go on. Nothing is remembered about senders, so no
//! forged address can shut another client out.

use crate::{
    abi::{DropReason, Endpoint, FLOOD_MEMORY, FlowKey, Origin, Role, untracked_slot},
    flood_tables::{Mark, OpeningsEntry},
    headers::TCP_RST,
    parse::Packet,
    tables::{FlowEntry, Tables},
};

/// Whether a service was flooded a short while ago, so that flows may have no entries.
#[inline(always)]
pub fn is_recent(openings: OpeningsEntry, span: u64) -> bool {
    let flooded = openings.flooded();
    flooded != 0 && span.wrapping_sub(flooded) <= FLOOD_MEMORY
}

/// Counts a packet of an unknown flow at the flow's entry node. Marks whether the flow gets
/// entries: it needs none if its backend was chosen by a hash.
///
/// # Errors
/// The limit that it is past.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    openings: OpeningsEntry,
    span: u64,
    service: u32,
    packet: &Packet,
    origin: Origin,
) -> Result<(), DropReason> {
    if tables.is_marked(Mark::First) {
        let limit = u64::from(openings.max_new_per_source());
        if limit != 0 && tables.count_source(service, packet.key.source, span) > limit {
            tables.add_one(openings.past_max_new_per_source_counter());
            return Err(DropReason::MaxNewConnectionsPerSource);
        }
    }
    let count = count(tables, openings, span, openings.opened_counter());
    if tables.is_marked(Mark::First) {
        let limit = u64::from(openings.max_new());
        if limit != 0 && count > limit {
            tables.add_one(openings.past_max_new_counter());
            return Err(DropReason::MaxNewConnections);
        }
    }
    // Containers cannot forge addresses.
    if origin != Origin::UPLINK {
        tables.mark(Mark::Tracked, true);
        return Ok(());
    }
    let has_room = has_room(tables, openings, span, count);
    if !has_room && tables.is_marked(Mark::First) {
        tables.note_past_limit(&packet.key, span);
    }
    let is_tracked = has_room && !is_reset(packet) || !tables.is_marked(Mark::Hashed);
    tables.mark(Mark::Tracked, is_tracked);
    Ok(())
}

/// The same for a SYN to a service that is past its flood limit anyway.
///
/// # Errors
/// As above.
#[inline(always)]
pub fn admit_past_limit<T: Tables>(tables: &T, service: u32, key: &FlowKey) -> Result<(), DropReason> {
    let openings = tables.openings(service).ok_or(DropReason::NoBackend)?;
    let limit = u64::from(openings.max_new_per_source());
    if limit != 0 && tables.count_source(service, key.source, tables.span()) > limit {
        tables.add_one(openings.past_max_new_per_source_counter());
        return Err(DropReason::MaxNewConnectionsPerSource);
    }
    let limit = u64::from(openings.max_new());
    if limit != 0 && tables.add_one(openings.opened_counter()) >= limit {
        tables.add_one(openings.past_max_new_counter());
        return Err(DropReason::MaxNewConnections);
    }
    Ok(())
}

/// The same on the node of the flow's backend, for what a peer has forwarded.
///
/// # Errors
/// There is no such service.
#[inline(always)]
pub fn admit_forwarded<T: Tables>(tables: &T, service: u32, packet: &Packet) -> Result<(), DropReason> {
    let openings = tables.openings(service).ok_or(DropReason::UnknownBackend)?;
    let span = tables.span();
    tables.mark(Mark::First, packet.may_open_flow());
    let count = count(tables, openings, span, openings.forwarded_counter());
    tables.mark(Mark::Tracked, has_room(tables, openings, span, count));
    Ok(())
}

/// A reset of a flow without entries ends it; it makes none.
#[inline(always)]
fn is_reset(packet: &Packet) -> bool {
    packet.tcp_flags & TCP_RST != 0
}

/// Counts a packet, and returns how many there have been in this span.
#[inline(always)]
fn count<T: Tables>(
    tables: &T,
    openings: OpeningsEntry,
    span: u64,
    first_counter: core::ptr::NonNull<u64>,
) -> u64 {
    // What other processors count in the same instant may be lost.
    if openings.span() != span {
        openings.begin(span);
    }
    let counter = if tables.is_marked(Mark::First) {
        first_counter
    } else {
        openings.continued_counter()
    };
    tables.add_one(counter) + 1
}

#[inline(always)]
fn has_room<T: Tables>(tables: &T, openings: OpeningsEntry, span: u64, count: u64) -> bool {
    let limit = u64::from(openings.flood_limit());
    if limit == 0 || count <= limit {
        return true;
    }
    if openings.flooded() != span {
        openings.set_flooded(span);
        tables.note_flood(span);
    }
    false
}

/// The flow of a local backend's reply that has no entries, if its client's packet has just passed.
#[inline(always)]
pub fn flow_of_reply<T: Tables>(tables: &T, packet: &Packet) -> Option<FlowEntry> {
    if !tables.is_flooded() {
        return None;
    }
    let flow = tables.untracked(untracked_slot(&packet.key))?;
    let backend = tables.backend_of(flow)?;
    let container = Endpoint::new(backend.address, backend.target_port);
    let key = FlowKey::between(container, flow.presented(), u32::from(backend.key.protocol));
    (flow.role() == Role::REPLY && key == packet.key).then_some(flow)
}

#[cfg(test)]
mod tests;
