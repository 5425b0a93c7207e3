//! Opens a flow: makes the entries that pin it to the backend chosen.

use crate::{
    abi::{
        BACKEND_LOCAL, Backend, BackendKey, Config, DropReason, Endpoint, Event, Flow, FlowKey, Opening,
        Origin, Progress, Role, asked_moment, untracked_slot,
    },
    breaker,
    bytes::{Be16, Be32},
    flood,
    flood_tables::Mark,
    flow_state::forward_key,
    frame::ReadFrame,
    headers::Geneve,
    observe,
    parse::Packet,
    select,
    tables::{FlowEntry, InsertError, Tables},
};

/// Source ports to try where two flows would have the same tuple. With a quarter of all ports taken, all of
/// the random ones are taken once in 16,384 times.
const PORT_ATTEMPTS: u32 = 8;

/// Opens a flow on its entry node. If its first packet here is one in mid-connection, the backend has yet to
/// show that it knows the connection: if it does not, its RST says so, and the kernel gets what follows, as
/// the connection may be older than the mesh. (With direct return, this node does not see that RST.)
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn at_entry<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    service: u32,
    origin: Origin,
    chosen: (u32, &'a Backend),
) -> Result<(FlowEntry, &'a Backend), DropReason> {
    let key = &packet.key;
    let (index, backend) = if !tables.is_marked(Mark::Tracked) || is_there(frame, tables, chosen) {
        chosen
    } else {
        select::another(tables, key, service, chosen.0, false)
            .filter(|other| is_there(frame, tables, *other))
            .ok_or(DropReason::Undeliverable)?
    };
    let mut flow = new_flow(config, key, index, backend, origin);
    let now = tables.clock();
    // Where XDP leaves the packet to tc, that must not choose again.
    flow.opening = Opening::asked(Opening::time(now));
    if tables.is_marked(Mark::First) && breaker::must_answer(config, key, origin, backend) {
        flow.client_next = asked_moment(now);
    }
    if origin == Origin::CONTAINER {
        // Only this node can reach a container's own address, and a container cannot reach itself by it:
        // as for everything that containers send out of the node, the source becomes the node's address.
        flow.presented.address = config.node_address;
    }
    if !tables.is_marked(Mark::First) && config.direct_return == 0 {
        flow.from_backend = Progress::UNPROVEN;
    }
    let entry = insert(tables, key, &mut flow, backend)?;
    if tables.is_marked(Mark::Tracked) {
        observe::opened(frame, tables, (index, backend));
        if flow.client_next != 0 {
            tables.count_asked(index);
        } else if !tables.is_marked(Mark::First) {
            tables.count_event(Event::FlowAdopted);
        }
    }
    Ok((entry, backend))
}

/// Prepares a packet of the network's for its backend without a flow.
#[inline(always)]
pub fn untracked<T: Tables>(
    tables: &T,
    config: &Config,
    key: &FlowKey,
    (index, backend): (u32, &Backend),
) -> Option<FlowEntry> {
    let mut flow = new_flow(config, key, index, backend, Origin::UPLINK);
    if backend.location == BACKEND_LOCAL {
        if let Some(source) = tables.masquerade(backend.interface, flow.presented.address) {
            flow.presented.address = source;
        }
        keep_untracked(tables, &mut flow, backend, key.protocol);
    }
    flow.role = Role::FORWARD;
    tables.count_event(Event::FlowUntracked);
    tables.stage(&flow)
}

/// Keeps what translates the replies of a flow that has no entries.
#[inline(always)]
fn keep_untracked<T: Tables>(tables: &T, flow: &mut Flow, backend: &Backend, protocol: u32) {
    flow.role = Role::REPLY;
    let container = Endpoint::new(backend.address, backend.target_port);
    let reply = FlowKey::between(container, flow.presented, protocol);
    tables.keep_untracked(untracked_slot(&reply), flow);
}

/// Moves a flow on its entry node to another backend, because the node of its own could not deliver its
/// packet. `key` is of that packet as the client sent it. A flow moves [`Opening::MOVES`] times at most.
///
/// # Errors
/// The reason to refuse the packet.
#[inline(always)]
pub fn elsewhere<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    key: &FlowKey,
    service: u32,
    from: FlowEntry,
) -> Result<(FlowEntry, &'a Backend), DropReason> {
    tables.mark(Mark::Tracked, true);
    // The first time also to one that does not answer: it may again.
    let must_answer = from.opening().moves() != 0;
    let (index, backend) = select::another(tables, key, service, from.backend(), must_answer)
        .filter(|other| is_there(frame, tables, *other))
        .ok_or(DropReason::Undeliverable)?;
    let origin = from.origin();
    let now = tables.clock();
    let mut flow = Flow {
        opening: from.opening().moved(Opening::time(now)),
        ..new_flow(config, key, index, backend, origin)
    };
    if breaker::must_answer(config, key, origin, backend) {
        flow.client_next = asked_moment(now);
    }
    // What has been encapsulated has this source already.
    flow.presented = from.presented();
    let entry = insert(tables, key, &mut flow, backend)?;
    observe::opened(frame, tables, (index, backend));
    tables.count_event(Event::FlowMoved);
    if flow.client_next != 0 {
        tables.count_asked(index);
    }
    Ok((entry, backend))
}

/// Whether a backend can be delivered to, as far as this node can tell. A container's veth goes with it, and
/// an agent takes the backend out at once; but there may be none. Then other flows pass over it.
#[inline(always)]
fn is_there<F: ReadFrame, T: Tables>(frame: &F, tables: &T, (index, backend): (u32, &Backend)) -> bool {
    let there = has_veth(frame, backend);
    if !there {
        tables.trip(index, tables.clock());
    }
    there
}

/// Whether a backend is elsewhere, or its container's veth is there.
#[inline(always)]
pub fn has_veth<F: ReadFrame>(frame: &F, backend: &Backend) -> bool {
    backend.location != BACKEND_LOCAL || frame.has_interface(backend.interface)
}

/// Opens a flow on the node of the backend that the entry node chose.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn at_backend<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &'a T,
    config: &Config,
    packet: &Packet,
    geneve: &Geneve,
    origin: Origin,
    peer: (u32, Be32),
) -> Result<(FlowEntry, &'a Backend), DropReason> {
    let key = &packet.key;
    let name = BackendKey {
        address: geneve.backend_address,
        port: key.destination_port,
        protocol: key.protocol as u16,
    };
    let index = tables.backend_index(&name).ok_or(DropReason::UnknownBackend)?;
    let backend = tables.backend(index).ok_or(DropReason::UnknownBackend)?;
    if !is_named(backend, geneve) || backend.location != BACKEND_LOCAL || backend.generation == 0 {
        return Err(DropReason::UnknownBackend);
    }
    flood::admit_forwarded(tables, backend.service, packet)?;
    if tables.is_marked(Mark::Tracked) && !frame.has_interface(backend.interface) {
        return Err(DropReason::UnknownBackend);
    }
    let mut flow = Flow {
        peer: peer.0,
        peer_address: peer.1,
        ..new_flow(config, key, index, backend, origin)
    };
    let entry = insert(tables, key, &mut flow, backend)?;
    Ok((entry, backend))
}

/// A flow of a packet's sender to a backend, nothing translated on the sender's side. Its peer is the
/// backend's node.
#[inline(always)]
fn new_flow(config: &Config, key: &FlowKey, index: u32, backend: &Backend, origin: Origin) -> Flow {
    let client = Endpoint::new(key.source, key.source_port);
    Flow {
        frontend: Endpoint::new(key.destination, key.destination_port),
        client,
        presented: client,
        backend: index,
        generation: backend.generation,
        peer: backend.peer,
        seen: config.now,
        origin,
        role: Role::FORWARD,
        ..Flow::default()
    }
}

/// Whether a Geneve packet names this backend, rather than an earlier one at the same address.
#[inline(always)]
pub fn is_named(backend: &Backend, geneve: &Geneve) -> bool {
    backend.key.address == { geneve.backend_address }
        && backend.target_port == { geneve.backend_port }
        && backend.tag == { geneve.backend_tag }
}

/// Inserts the flow's entries, the one for replies first, so that a reply always finds it. A flow that is
/// not [`Mark::Tracked`] gets none: only its replies' translation is kept for the moment.
#[inline(always)]
fn insert<T: Tables>(
    tables: &T,
    key: &FlowKey,
    flow: &mut Flow,
    backend: &Backend,
) -> Result<FlowEntry, DropReason> {
    if backend.location == BACKEND_LOCAL {
        // The container would answer an address of one of its own networks there, and not by way of the host.
        if let Some(source) = tables.masquerade(backend.interface, flow.presented.address) {
            flow.presented.address = source;
        }
        let container = Endpoint::new(backend.address, backend.target_port);
        if tables.is_marked(Mark::Tracked) {
            claim(tables, flow, Role::REPLY, container, key.protocol)?;
        } else {
            keep_untracked(tables, flow, backend, key.protocol);
        }
    } else if flow.presented != flow.client {
        claim(tables, flow, Role::ALIAS, flow.frontend, key.protocol)?;
    }
    flow.role = Role::FORWARD;
    if tables.is_marked(Mark::Tracked) {
        match tables.add_flow(key, flow) {
            Err(InsertError::Exists) => tables.put_flow(key, flow),
            added => added,
        }
        .map_err(|_| DropReason::FlowTableFull)?;
    } else {
        tables.count_event(Event::FlowUntracked);
    }
    // Not looked up again: a look-up right after an insertion makes the kernel keep entries that no packet
    // follows, at the cost of those that one does.
    tables.stage(flow).ok_or(DropReason::FlowTableFull)
}

/// Claims the tuple that identifies this flow on the backend's side: with the client's own port if no
/// other flow has that tuple, else with another port.
#[inline(always)]
fn claim<T: Tables>(
    tables: &T,
    flow: &mut Flow,
    role: Role,
    far_side: Endpoint,
    protocol: u32,
) -> Result<(), DropReason> {
    flow.role = role;
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        let backend_side = FlowKey::between(far_side, flow.presented, protocol);
        let key = if role == Role::REPLY {
            backend_side
        } else {
            backend_side.reversed()
        };
        match tables.add_flow(&key, flow) {
            Ok(()) => return Ok(()),
            Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
            Err(InsertError::Exists) => {
                let held = match tables.flow(&key) {
                    Some(other) => other.role() == role && is_held(tables, other, flow, protocol),
                    None => false,
                };
                if !held {
                    return tables.put_flow(&key, flow).map_err(|_| DropReason::FlowTableFull);
                }
            }
        }
        attempt += 1;
        flow.presented.port = candidate(tables.random());
    }
    Err(DropReason::NoFreePort)
}

/// Whether an entry belongs to another flow that is still open.
#[inline(always)]
fn is_held<T: Tables>(tables: &T, other: FlowEntry, flow: &Flow, protocol: u32) -> bool {
    if other.client() == flow.client && other.frontend() == flow.frontend {
        return false;
    }
    // The forward entry has the state of both directions, and the flow's current backend.
    let Some(forward) = tables.flow(&forward_key(other, protocol)) else {
        return false;
    };
    !forward.is_closed()
        && forward.presented() == flow.presented
        && forward.backend() == other.backend()
        && tables.backend_of(other).is_some()
}

/// Another port to try, of 1024 and up. Random (RFC 6056), so that flows of the same port do not try the same
/// ones, and no one can guess it.
#[inline(always)]
fn candidate(random: u32) -> Be16 {
    Be16::new(1024 + ((random & 0xffff) % 64_512) as u16)
}

#[cfg(test)]
mod tests;
