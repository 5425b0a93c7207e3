//! What a packet says about the state of its flow.
//!
//! A flow is half-open until client and backend talk: TCP until the client acknowledges the answer, UDP until
//! there is an answer. Half-open flows have a table of their own, in which new ones push out old ones; open
//! ones are safe from that. With direct return the entry node sees no answers, and goes by what follows from
//! the client.
//!
//! The forward entry has the state of both directions. A flow's other entry, by which its backend's packets
//! are found, lives as long as that.

use crate::{
    abi::{
        BACKEND_LOCAL, Backend, Config, Endpoint, Event, FlowKey, Observed, Opening, Progress, Role,
        is_in_sequence,
    },
    affinity, breaker,
    frame::ReadFrame,
    headers::{PROTOCOL_TCP, TCP_SYN},
    observe, onward,
    parse::Packet,
    signals,
    tables::{FlowEntry, Tables},
};

/// Records a client's packet in its flow's forward entry. Returns where that is now.
#[inline(always)]
pub fn client_packet<F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    flow: FlowEntry,
    backend: &Backend,
    config: &Config,
    packet: &Packet,
) -> FlowEntry {
    flow.touch(config.now);
    let is_direct = is_direct(config, flow, backend);
    if is_direct && packet.continues() {
        flow.note_client_next(packet.next_sequence());
    }
    if let Some(progress) = packet.progress()
        && is_in_sequence(packet.sequence, client_next(tables, flow, backend, packet))
    {
        signals::reset_by_client(tables, flow, packet);
        let was_closed = flow.is_closed();
        flow.client_is(progress);
        if !was_closed && flow.is_closed() {
            observe::ended(frame, tables, flow, ended_by(progress, Observed::ResetByClient));
        }
    }
    let opening = flow.opening();
    if opening.is_open() || !(opening.is_answered() || is_direct) {
        return flow;
    }
    if packet.continues() || packet.key.protocol != u32::from(PROTOCOL_TCP) {
        open(tables, flow, backend, &packet.key)
    } else {
        flow
    }
}

/// Records a backend's packet in the entry that has `key`, and in the flow's forward entry. Returns where the
/// first is now: [`Role::FOREIGN`] if the packet says that the backend does not know the connection.
#[inline(always)]
pub fn backend_packet<F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    key: &FlowKey,
    flow: FlowEntry,
    config: &Config,
    packet: &Packet,
) -> FlowEntry {
    let is_known = packet.progress().is_none() && flow.opening().is_answered() && flow.seen() == config.now;
    let flow = if is_known {
        flow
    } else {
        note(frame, tables, key, flow, config, packet)
    };
    if packet.continues() {
        flow.note_client_next(packet.acknowledged);
        flow.note_backend_next(packet.next_sequence());
    }
    flow
}

/// Records a packet that says something new.
#[inline(always)]
fn note<F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    key: &FlowKey,
    flow: FlowEntry,
    config: &Config,
    packet: &Packet,
) -> FlowEntry {
    flow.touch(config.now);
    let forward = if flow.role() == Role::FORWARD {
        flow
    } else {
        match tables.flow(&forward_key(flow, packet.key.protocol)) {
            Some(forward) if forward.is_of_flow_of(flow) => forward,
            // The client uses its port for another flow by now.
            _ => return flow,
        }
    };
    forward.touch(config.now);
    if forward.from_backend() == Progress::UNPROVEN {
        if !breaker::is_answer(packet) {
            forward.disown();
            flow.disown();
            return flow;
        }
        forward.backend_is(Progress::OPEN);
    }
    let is_first = !flow.opening().is_answered() && breaker::is_answer(packet);
    if is_first {
        signals::answered(tables, flow, packet);
        flow.note_answer();
        forward.note_answer();
        if packet.tcp_flags & TCP_SYN != 0 {
            // What seemed to close it before was of an earlier connection.
            forward.reopen();
        }
        if !flow.origin().is_tunnel() {
            tables.note_answer(flow.backend());
        }
    }
    if let Some(progress) = packet.progress()
        && is_in_sequence(packet.sequence, flow.backend_next())
    {
        signals::reset_by_backend(tables, forward, packet);
        let was_closed = forward.is_closed();
        forward.backend_is(progress);
        if !was_closed && forward.is_closed() {
            observe::ended(
                frame,
                tables,
                forward,
                ended_by(progress, Observed::ResetByBackend),
            );
        }
    }
    // A backend that sends anything but a SYN has had the client's acknowledgement of its own.
    if is_first
        && packet.tcp_flags & TCP_SYN == 0
        && let Some(backend) = tables.backend(flow.backend())
    {
        open(
            tables,
            forward,
            backend,
            &forward_key(forward, packet.key.protocol),
        );
        return tables.open_entry(key).unwrap_or(flow);
    }
    flow
}

/// How a connection ended, if a packet did that.
#[inline(always)]
fn ended_by(progress: Progress, reset: Observed) -> Observed {
    if progress == Progress::RESET {
        reset
    } else {
        Observed::Closed
    }
}

/// Moves a flow's entries to the table of open flows: the one for the backend's packets first, so that the
/// client's next packet tries again if that has no room. Returns where the forward entry is now.
#[inline(always)]
fn open<T: Tables>(tables: &T, forward: FlowEntry, backend: &Backend, key: &FlowKey) -> FlowEntry {
    if let Some(other_key) = other_key(forward, backend, key.protocol)
        && let Some(other) = tables.half_open_entry(&other_key)
        && other.is_of_flow_of(forward)
        && !move_entry(tables, &other_key, other)
    {
        return forward;
    }
    if move_entry(tables, key, forward) {
        affinity::note(tables, forward, backend);
        tables.open_entry(key).unwrap_or(forward)
    } else {
        forward
    }
}

#[inline(always)]
fn move_entry<T: Tables>(tables: &T, key: &FlowKey, entry: FlowEntry) -> bool {
    entry.opening_is(Opening::OPEN);
    let is_moved = tables.open_flow(key, entry).is_ok();
    if !is_moved {
        entry.opening_is(Opening::ANSWERED);
        tables.count_event(Event::FlowNotOpened);
    }
    is_moved
}

/// The sequence number of the client's next packet, about. What the backend's packets say of it is in the
/// entry that they are found by; until there is one, that has something else there.
#[inline(always)]
fn client_next<T: Tables>(tables: &T, forward: FlowEntry, backend: &Backend, packet: &Packet) -> u32 {
    if !forward.opening().is_answered() {
        return 0;
    }
    match other_key(forward, backend, packet.key.protocol) {
        Some(key) => tables.flow(&key).map_or(0, FlowEntry::client_next),
        None => forward.client_next(),
    }
}

#[inline(always)]
fn is_direct(config: &Config, flow: FlowEntry, backend: &Backend) -> bool {
    onward::is_direct(config, flow.origin(), flow.client().address, backend)
}

/// The key of a flow's forward entry, from any of its entries.
#[inline(always)]
pub fn forward_key(entry: FlowEntry, protocol: u32) -> FlowKey {
    FlowKey::between(entry.client(), entry.frontend(), protocol)
}

/// The key of a flow's other entry, if it has one: its replies' as they leave a local container, or else its
/// client's packets' as a remote backend sees them, where their source was translated.
#[inline(always)]
fn other_key(forward: FlowEntry, backend: &Backend, protocol: u32) -> Option<FlowKey> {
    let presented = forward.presented();
    if backend.location == BACKEND_LOCAL {
        let container = Endpoint::new(backend.address, backend.target_port);
        Some(FlowKey::between(container, presented, protocol))
    } else if presented != forward.client() {
        Some(FlowKey::between(presented, forward.frontend(), protocol))
    } else {
        None
    }
}

/// Whether the entry by which the backend's packets are found has been pushed out of the table of half-open
/// flows: then no answer would be known as one, however often the client asks.
#[inline(always)]
pub fn lacks_other<T: Tables>(tables: &T, forward: FlowEntry, backend: &Backend, protocol: u32) -> bool {
    !forward.opening().is_answered()
        && other_key(forward, backend, protocol).is_some_and(|key| {
            let other = tables.half_open_entry(&key);
            !other.is_some_and(|other| other.is_of_flow_of(forward))
        })
}

#[cfg(test)]
mod tests;
