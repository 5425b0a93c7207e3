use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::{abi::is_mapped_client, tables::Tables as _, testing::TestTables};

fn address(text: &str) -> Ipv6Address {
    text.parse::<Ipv6Addr>().unwrap().into()
}

#[test]
fn a_client_has_one_address_of_the_block_on_every_node() {
    let (one, other) = (TestTables::node(1), TestTables::node(2));
    let known = address("2001:db8::5");
    let mapped = client(&one, &known, 2).unwrap();
    assert!(is_mapped_client(mapped), "{mapped:?}");
    assert_eq!(client(&one, &known, 2), Ok(mapped));
    assert_eq!(client(&other, &known, 7), Ok(mapped));
    assert_eq!(preferred(&known), mapped);
    assert_eq!(one.mapped_client(mapped).unwrap().address, known);
}

#[test]
fn neighbours_have_addresses_far_apart() {
    let mapped: std::collections::BTreeSet<Be32> = (0..10_000_u32)
        .map(|host| preferred(&address(&format!("2001:db8:7:9::{host:x}"))))
        .collect();
    // Of 10,000 among 67 million, 0.7 pairs meet.
    assert!(mapped.len() > 9_990, "{}", mapped.len());
}

#[test]
fn two_clients_of_a_node_never_share_an_address() {
    let tables = TestTables::node(1);
    let (first, second) = (address("2001:db8::5"), address("2001:db8::6"));
    let taken = preferred(&first);
    let holder = MappedClient {
        address: second,
        ..MappedClient::default()
    };
    tables.map_client(&holder, taken);
    let mapped = client(&tables, &first, 2).unwrap();
    assert_ne!(mapped, taken);
    assert_eq!(client(&tables, &first, 2), Ok(mapped), "it keeps what it has got");
    assert_eq!(tables.mapped_client(taken).unwrap().address, second);
    tables.forget_client(Ipv4Addr::from(taken));
    assert_eq!(
        client(&tables, &first, 2),
        Ok(mapped),
        "also once the other is free"
    );
}

#[test]
fn a_client_that_was_pushed_out_of_a_table_gets_its_address_again() {
    let tables = TestTables::node(1);
    let known = address("2001:db8::5");
    let mapped = client(&tables, &known, 2).unwrap();
    tables.forget_client(Ipv4Addr::from(mapped));
    assert_eq!(client(&tables, &known, 2), Ok(mapped));
    assert_eq!(tables.mapped_client(mapped).unwrap().address, known);
}

#[test]
fn the_interface_that_a_client_comes_in_by_is_followed() {
    let tables = TestTables::node(1);
    let known = address("2001:db8::5");
    let mapped = client(&tables, &known, 2).unwrap();
    client(&tables, &known, 3).unwrap();
    assert_eq!(tables.mapped_client(mapped).unwrap().interface, 3);
}

#[test]
fn too_many_new_clients_are_not_taken_and_cost_the_known_ones_nothing() {
    let tables = TestTables::node(1);
    let known = address("2001:db8::5");
    let mapped = client(&tables, &known, 2).unwrap();
    tables.take_clients(1);
    assert!(client(&tables, &address("2001:db8::7"), 2).is_ok());
    assert_eq!(
        client(&tables, &address("2001:db8::8"), 2),
        Err(DropReason::NoClientAddress)
    );
    assert_eq!(client(&tables, &known, 2), Ok(mapped));
}
