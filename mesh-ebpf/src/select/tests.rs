//! Which backend a new flow gets.

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
