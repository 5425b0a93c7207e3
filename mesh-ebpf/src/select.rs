//! Chooses a backend for a new flow.

use crate::{
    abi::{Backend, Choice, FlowKey, Service},
    breaker,
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
    if tables.is_marked(Mark::Hashed) {
        return by_hash(tables, key, (index, service));
    }
    let chosen = match service.choice {
        Choice::HASH_ENDPOINT | Choice::HASH_ADDRESS => hashed(tables, service, sender_hash(key, service))?,
        Choice::LEAST => least(tables, service, index)?,
        Choice::RANDOM => at(tables, service, tables.random() % service.ring_length)?,
        _ => at(tables, service, tables.rotate(index) % service.ring_length)?,
    };
    let chosen = if breaker::is_open(tables, chosen) && !breaker::may_try(tables, chosen) {
        passed_over(tables, service, key, chosen)
    } else {
        chosen
    };
    if service.choice == Choice::LEAST {
        tables.add_load(chosen);
    }
    active(tables, index, chosen)
}

/// Chooses a backend by a hash of the client's address and port, or of its address alone where the service
/// does that: all packets of a flow get the same one without a flow.
#[inline(always)]
pub fn by_hash<'a, T: Tables>(
    tables: &'a T,
    key: &FlowKey,
    (index, service): (u32, &Service),
) -> Option<(u32, &'a Backend)> {
    if service.ring_length == 0 {
        return None;
    }
    let chosen = hashed(tables, service, sender_hash(key, service))?;
    let chosen = if breaker::is_open(tables, chosen) {
        passed_over(tables, service, key, chosen)
    } else {
        chosen
    };
    active(tables, index, chosen)
}

/// A hash of a client's address and port, or of its address alone where the service chooses by that.
#[inline(always)]
fn sender_hash(key: &FlowKey, service: &Service) -> u32 {
    if service.choice == Choice::HASH_ADDRESS {
        return mix(key.source.get());
    }
    let port = u32::from(key.source_port.get());
    mix(key.source.get() ^ mix(port | key.protocol << 16))
}

/// A backend that answers, instead of one that does not; the same one if no other answers, or if it is not of
/// the half of them that may be passed over. As the ring shows them from a hashed slot on.
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
    if 2 * passed_over <= seen {
        answering
    } else {
        chosen
    }
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
    let mut found = refused;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let slot = first.wrapping_add(attempt) % service.ring_length;
        if let Some(other) = at(tables, &service, slot)
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
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::{
        bytes::Be16,
        headers::PROTOCOL_TCP,
        testing::{Replica, TestTables},
    };

    const REPLICAS: [Replica; 3] = [Replica::on(1, 1), Replica::on(1, 2), Replica::on(2, 3)];

    fn service(choice: Choice) -> TestTables {
        let mut tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &REPLICAS);
        tables
            .services
            .entry(0)
            .and_modify(|service| service.choice = choice);
        tables
    }

    fn key(address: u8, port: u16) -> FlowKey {
        FlowKey {
            source: Ipv4Addr::new(192, 0, 2, address).into(),
            source_port: Be16::new(port),
            protocol: u32::from(PROTOCOL_TCP),
            ..FlowKey::default()
        }
    }

    fn chosen(tables: &TestTables, key: FlowKey) -> u32 {
        let service = tables.services[&0];
        select(tables, &key, (0, &service)).expect("a backend").0
    }

    fn spread(tables: &TestTables, keys: impl Iterator<Item = FlowKey>) -> BTreeMap<u32, usize> {
        let mut spread = BTreeMap::new();
        for key in keys {
            *spread.entry(chosen(tables, key)).or_default() += 1;
        }
        spread
    }

    #[test]
    fn rotation_takes_one_after_the_other() {
        let tables = service(Choice::ROTATE);
        let turns: Vec<_> = (0..6).map(|_| chosen(&tables, key(1, 1))).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn random_choices_are_spread_evenly() {
        let tables = service(Choice::RANDOM);
        let turns: Vec<_> = (0..3000).map(|_| chosen(&tables, key(1, 1))).collect();
        // Five standard deviations of a binomial distribution: sqrt(3000 * 1/3 * 2/3) is 26.
        for backend in 0..3 {
            let count = turns.iter().filter(|turn| **turn == backend).count();
            assert!((870..=1130).contains(&count), "{backend}: {count}");
        }
        let repeated = turns.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((870..=1130).contains(&repeated), "not in turn: {repeated}");
    }

    #[test]
    fn a_hashed_endpoint_stays_and_endpoints_spread() {
        let tables = service(Choice::HASH_ENDPOINT);
        for port in 1000..1100 {
            assert_eq!(chosen(&tables, key(7, port)), chosen(&tables, key(7, port)));
        }
        let spread = spread(&tables, (1000..4000).map(|port| key(7, port)));
        assert!(
            spread.values().all(|count| (900..1100).contains(count)),
            "{spread:?}"
        );
    }

    #[test]
    fn a_hashed_address_stays_whatever_its_port_and_addresses_spread() {
        let tables = service(Choice::HASH_ADDRESS);
        let home = chosen(&tables, key(7, 1));
        assert!((1..1000).all(|port| chosen(&tables, key(7, port)) == home));
        let spread = spread(&tables, (0..=255).map(|address| key(address, 1)));
        assert!(spread.values().all(|count| *count > 60), "{spread:?}");
    }

    #[test]
    fn the_less_loaded_of_two_is_chosen() {
        let tables = service(Choice::LEAST);
        tables.set_load(0, 1000, 10);
        tables.set_load(1, 1000, 10);
        tables.set_load(2, 0, 10);
        let spread = spread(&tables, (0..60).map(|port| key(7, port)));
        // A third of the choices do not include it.
        assert!(spread[&2] >= 30, "{spread:?}");
    }

    #[test]
    fn equal_loads_are_kept_equal() {
        let tables = service(Choice::LEAST);
        for backend in 0..3 {
            tables.set_load(backend, 0, 1);
        }
        let spread = spread(&tables, (0..300).map(|port| key(7, port)));
        assert!(
            spread.values().all(|count| (97..=103).contains(count)),
            "{spread:?}"
        );
    }

    #[test]
    fn a_backend_with_a_smaller_step_gets_more() {
        let tables = service(Choice::LEAST);
        for (backend, step) in [(0, 4), (1, 4), (2, 1)] {
            tables.set_load(backend, 0, step);
        }
        let spread = spread(&tables, (0..600).map(|port| key(7, port)));
        assert!(
            spread[&2] > 2 * spread[&0] && spread[&2] > 2 * spread[&1],
            "{spread:?}"
        );
    }

    #[test]
    fn the_only_backend_is_always_chosen() {
        for choice in [
            Choice::ROTATE,
            Choice::HASH_ENDPOINT,
            Choice::HASH_ADDRESS,
            Choice::LEAST,
            Choice::RANDOM,
        ] {
            let mut tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[Replica::on(1, 1)]);
            tables
                .services
                .entry(0)
                .and_modify(|service| service.choice = choice);
            assert_eq!(chosen(&tables, key(7, 7)), 0, "{choice:?}");
        }
    }

    #[test]
    fn a_service_without_backends_yields_none() {
        let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[]);
        let service = tables.services[&0];
        assert!(select(&tables, &key(7, 7), (0, &service)).is_none());
    }
}
