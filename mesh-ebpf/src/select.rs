//! Chooses a backend for a new flow.

use crate::{
    abi::{Backend, Choice, FlowKey, Service},
    affinity, breaker,
    flood_tables::Mark,
    hash::mix,
    tables::Tables,
};

/// Slots to look at for another backend. A ring mixes its backends, so this many slots in a row seldom hold
/// one and the same.
const ATTEMPTS: u32 = 8;

/// Chooses a slot of the service's ring, and with it the backend, for a flow whose first packet has
/// the tuple `key`. `None` when the service has no active backend.
///
/// [`Mark::Hashed`]: the packet may get no flow, and the next one must have the same backend.
#[inline(always)]
pub fn select<'a, T: Tables>(
    tables: &'a T,
    key: &FlowKey,
    (index, service): (u32, &Service),
) -> Option<(u32, &'a Backend)> {
    if service.ring_length == 0 {
        return None;
    }
    let choice = service.choice.within_ring();
    let chosen = match choice {
        _ if tables.is_marked(Mark::Hashed) => by_sender(tables, service, key, index)?,
        Choice::HASH_ADDRESS | Choice::HASH_ENDPOINT => by_sender(tables, service, key, index)?,
        Choice::LEAST => least(tables, service, index)?,
        Choice::RANDOM => at(tables, service, tables.random() % service.ring_length)?,
        _ => at(tables, service, tables.rotate(index) % service.ring_length)?,
    };
    let chosen = if breaker::is_open(tables, chosen)
        && (tables.is_marked(Mark::Hashed) || !breaker::may_try(tables, chosen))
    {
        passed_over(tables, service, key, chosen)
    } else {
        chosen
    };
    if choice == Choice::LEAST && !tables.is_marked(Mark::Hashed) {
        tables.add_load(chosen);
    }
    active(tables, index, chosen)
}

/// Chooses a backend by a hash of the client's address and port, or by its affinity where the service has
/// that: all packets of a flow get the same one without a flow.
#[inline(always)]
pub fn by_hash<'a, T: Tables>(
    tables: &'a T,
    key: &FlowKey,
    (index, service): (u32, &Service),
) -> Option<(u32, &'a Backend)> {
    if service.ring_length == 0 {
        return None;
    }
    let chosen = by_sender(tables, service, key, index)?;
    let chosen = if breaker::is_open(tables, chosen) {
        passed_over(tables, service, key, chosen)
    } else {
        chosen
    };
    active(tables, index, chosen)
}

/// The backend that a client has affinity with where the service has that, or else the one that its hash
/// selects.
#[inline(always)]
fn by_sender<T: Tables>(tables: &T, service: &Service, key: &FlowKey, index: u32) -> Option<u32> {
    if service.choice.within_ring() == Choice::HASH_ADDRESS
        && let Some(chosen) = affinity::backend(tables, index, key.source)
    {
        return Some(chosen);
    }
    hashed(tables, service, sender_hash(key, service))
}

/// A hash of a client's address and port, or of its address alone where the service chooses by that.
#[inline(always)]
fn sender_hash(key: &FlowKey, service: &Service) -> u32 {
    if service.choice.within_ring() == Choice::HASH_ADDRESS {
        return mix(key.source.get());
    }
    let port = u32::from(key.source_port.get());
    mix(key.source.get() ^ mix(port | key.protocol << 16))
}

/// A backend that answers, instead of one that does not; the same one if no other answers, or if it is not of
/// the half of them that may be passed over. As the ring shows them from a hashed slot on. Where the ring has
/// none, and others follow it, one of those.
#[inline(always)]
fn passed_over<T: Tables>(tables: &T, service: &Service, key: &FlowKey, chosen: u32) -> u32 {
    let first = spread(key);
    let (mut seen, mut passed_over, mut answering) = (0, 1, chosen);
    while seen < ATTEMPTS && seen < service.ring_length {
        let slot = first.wrapping_add(seen) % service.ring_length;
        seen += 1;
        if let Some(other) = at(tables, service, slot) {
            if !breaker::is_open(tables, other) {
                answering = other;
            } else if other < chosen {
                passed_over += 1;
            }
        }
    }
    if 2 * passed_over > seen {
        answering = chosen;
    }
    if answering == chosen && service.choice.prefers() {
        return behind_ring(tables, service, first, (chosen, chosen), true);
    }
    answering
}

/// A backend of the entries that follow the ring's own: one that answers or, unless it `must_answer`, any but
/// `refused`. Otherwise the one that was found before.
#[inline(always)]
fn behind_ring<T: Tables>(
    tables: &T,
    service: &Service,
    first: u32,
    (refused, found): (u32, u32),
    must_answer: bool,
) -> u32 {
    let end = service.ring_offset + service.ring_length;
    match tables.ring(end) {
        Some(0) | None => found,
        Some(length) => other_of(tables, (end + 1, length), first, (refused, found), must_answer),
    }
}

/// The same of the entries in a part of the ring table, of which there is one at least: where it begins, and
/// how many they are.
#[inline(always)]
fn other_of<T: Tables>(
    tables: &T,
    (offset, length): (u32, u32),
    first: u32,
    (refused, mut found): (u32, u32),
    must_answer: bool,
) -> u32 {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let slot = first.wrapping_add(attempt) % length;
        if let Some(other) = tables.ring(offset + slot)
            && other != refused
        {
            if !breaker::is_open(tables, other) {
                found = other;
                break;
            }
            if !must_answer {
                found = other;
            }
        }
        attempt += 1;
    }
    found
}

/// A hash of a client's tuple, by which flows that leave a backend spread over the others.
#[inline(always)]
fn spread(key: &FlowKey) -> u32 {
    mix(key.source.get() ^ mix(u32::from(key.source_port.get())))
}

/// Chooses another backend than `refused`, which cannot be delivered to: one that answers or, unless it
/// `must_answer`, any other.
#[inline(always)]
pub fn another<'a, T: Tables>(
    tables: &'a T,
    key: &FlowKey,
    index: u32,
    refused: u32,
    must_answer: bool,
) -> Option<(u32, &'a Backend)> {
    let service = tables.service(index)?;
    if service.ring_length == 0 {
        return None;
    }
    let first = spread(key);
    let ring = (service.ring_offset, service.ring_length);
    let mut found = other_of(tables, ring, first, (refused, refused), must_answer);
    if service.choice.prefers() && (found == refused || breaker::is_open(tables, found)) {
        found = behind_ring(tables, &service, first, (refused, found), must_answer);
    }
    if found == refused {
        return None;
    }
    active(tables, index, found)
}

/// The backend at an index, unless it is gone: the ring may have been rewritten since the service was read.
#[inline(always)]
fn active<T: Tables>(tables: &T, service: u32, index: u32) -> Option<(u32, &Backend)> {
    let backend = tables.backend(index)?;
    (backend.generation != 0 && backend.service == service).then_some((index, backend))
}

/// The backend in a slot of a service's ring.
#[inline(always)]
fn at<T: Tables>(tables: &T, service: &Service, slot: u32) -> Option<u32> {
    tables.ring(service.ring_offset + slot)
}

/// The backend in the slot that a hash selects: the same on every node, as all nodes build equal rings.
#[inline(always)]
fn hashed<T: Tables>(tables: &T, service: &Service, hash: u32) -> Option<u32> {
    at(tables, service, hash % service.ring_length)
}

/// The less loaded of two backends: the next in rotation and another one (the power of two choices,
/// Mitzenmacher 2001). That avoids a walk over all of them and works with loads that are a second old.
#[inline(always)]
fn least<T: Tables>(tables: &T, service: &Service, index: u32) -> Option<u32> {
    let turn = tables.rotate(index);
    let slot = turn % service.ring_length;
    let mut chosen = at(tables, service, slot)?;
    if service.ring_length > 1 {
        let step = 1 + mix(turn) % (service.ring_length - 1);
        let other = at(tables, service, (slot + step) % service.ring_length)?;
        if tables.load(other) < tables.load(chosen) {
            chosen = other;
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests;
