//! Clients of a service with affinity, over scaling, draining, time-outs and floods.

use std::{collections::BTreeMap, net::SocketAddrV4};

use proptest::prelude::*;

use crate::{
    abi::{Choice, Hook, Openings},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, MESH0, RST, Replica, SERVICE_ADDRESS, SYN, TestFrame, TestTables, at, reply_to, run, tcp, udp,
        view,
    },
};

const FRONTEND: &str = "10.0.0.1:9200";
const SECOND: u64 = 1_000_000_000;
const LIFETIME: u32 = 60;

/// Four replicas on the entry node, of which `count` are in the ring.
fn node(choice: Choice, count: u32) -> TestTables {
    let replicas: Vec<Replica> = (1..=4).map(|number| Replica::on(1, number)).collect();
    let mut tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, &replicas)
        .publish(PROTOCOL_UDP, 9200, &replicas);
    let affinity = if choice == Choice::HASH_ADDRESS {
        LIFETIME
    } else {
        0
    };
    for service in tables.services.values_mut() {
        service.choice = choice;
    }
    scale(&mut tables, count);
    tables.clock.set(1000 * SECOND);
    tables.limited(Openings {
        affinity,
        ..Openings::default()
    })
}

/// How many replicas are in the ring.
fn scale(tables: &mut TestTables, count: u32) {
    for service in tables.services.values_mut() {
        service.ring_length = count;
    }
}

fn wait(tables: &TestTables, seconds: u64) {
    tables.clock.set(tables.clock.get() + seconds * SECOND);
}

fn client(address: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, address].into(), port)
}

/// Sends a packet from the network; returns what the container sees, and its number.
fn sent(tables: &TestTables, mut frame: TestFrame) -> (TestFrame, u8) {
    run(tables, Hook::TcUplink, &mut frame);
    let number = view(&frame).destination.ip().octets()[3];
    (frame, number)
}

/// Opens a connection; the number of the replica that it goes to.
fn open(tables: &TestTables, client: SocketAddrV4) -> u8 {
    let (received, number) = sent(tables, tcp(client, at(FRONTEND), SYN));
    run(
        tables,
        Hook::TcContainer,
        &mut reply_to(&view(&received), SYN | ACK, b""),
    );
    let (_, then) = sent(tables, tcp(client, at(FRONTEND), ACK));
    assert_eq!(number, then);
    number
}

/// The replica that a hash of a client's address names.
fn hashed(address: u8, count: u32) -> u8 {
    open(&node(Choice::HASH_ADDRESS, count), client(address, 1))
}

/// A client that the hash sends elsewhere when three replicas become four.
fn moving_client() -> u8 {
    (1..250)
        .find(|address| hashed(*address, 3) != hashed(*address, 4))
        .expect("there is one")
}

#[test]
fn scaling_moves_no_client_whose_connection_has_opened() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let homes: Vec<u8> = (0..100)
        .map(|address| open(&tables, client(address, 1)))
        .collect();
    scale(&mut tables, 4);
    for (address, home) in (0..100).zip(&homes) {
        assert_eq!(open(&tables, client(address, 2)), *home, "client {address}");
    }
    let new: Vec<u8> = (100..200)
        .map(|address| open(&tables, client(address, 1)))
        .collect();
    assert!(new.contains(&4), "new clients use the new replica");
}

#[test]
fn affinity_ends_its_time_after_the_last_connection_has_opened() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let address = moving_client();
    let home = open(&tables, client(address, 1));
    scale(&mut tables, 4);
    for port in 2..5 {
        wait(&tables, u64::from(LIFETIME));
        assert_eq!(open(&tables, client(address, port)), home);
    }
    wait(&tables, u64::from(LIFETIME) + 1);
    assert_eq!(open(&tables, client(address, 5)), hashed(address, 4));
}

#[test]
fn a_client_whose_backend_drains_gets_another_and_stays_there() {
    let mut tables = node(Choice::HASH_ADDRESS, 4);
    let address = (1..250)
        .find(|address| hashed(*address, 4) == 4)
        .expect("there is one");
    assert_eq!(open(&tables, client(address, 1)), 4);
    scale(&mut tables, 3);
    let second = open(&tables, client(address, 2));
    assert_eq!(second, hashed(address, 3));
    scale(&mut tables, 4);
    assert_eq!(open(&tables, client(address, 3)), second);
}

#[test]
fn a_client_whose_backend_is_gone_is_no_longer_known() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let address = moving_client();
    let home = open(&tables, client(address, 1));
    scale(&mut tables, 4);
    tables.backends[usize::from(home) - 1].generation = 7;
    assert_eq!(open(&tables, client(address, 2)), hashed(address, 4));
}

#[test]
fn a_client_whose_backend_does_not_answer_stays_at_the_one_that_did() {
    let tables = node(Choice::HASH_ADDRESS, 4);
    let home = open(&tables, client(7, 1));
    tables.clock.set(tables.clock.get() + SECOND / 2);
    crate::tables::Tables::trip(&tables, u32::from(home) - 1, tables.clock.get());
    let second = open(&tables, client(7, 2));
    assert_ne!(second, home);
    crate::tables::Tables::note_answer(&tables, u32::from(home) - 1);
    assert_eq!(open(&tables, client(7, 3)), second);
}

#[test]
fn connections_that_do_not_open_are_not_noted() {
    let tables = node(Choice::HASH_ADDRESS, 3);
    for address in 0..200 {
        let (received, _) = sent(&tables, tcp(client(address, 1), at(FRONTEND), SYN));
        let answer = if address % 2 == 0 { SYN | ACK } else { RST | ACK };
        run(
            &tables,
            Hook::TcContainer,
            &mut reply_to(&view(&received), answer, b""),
        );
    }
    assert_eq!(tables.affinity_count(), 0);
    open(&tables, client(7, 2));
    assert_eq!(tables.affinity_count(), 1);
}

#[test]
fn a_flood_fills_no_entries_and_moves_no_client() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let address = moving_client();
    let home = open(&tables, client(address, 1));
    scale(&mut tables, 4);
    let tables = tables.limited(Openings {
        affinity: LIFETIME,
        flood_limit: 1,
        ..Openings::default()
    });
    for port in 1..1000 {
        let source = SocketAddrV4::new((0x0a63_0000 + u32::from(port)).into(), port);
        run(&tables, Hook::TcUplink, &mut tcp(source, at(FRONTEND), SYN));
    }
    assert_eq!(tables.affinity_count(), 1);
    let (received, number) = sent(&tables, tcp(client(address, 2), at(FRONTEND), SYN));
    run(
        &tables,
        Hook::TcContainer,
        &mut reply_to(&view(&received), SYN | ACK, b""),
    );
    let (_, then) = sent(&tables, tcp(client(address, 2), at(FRONTEND), ACK));
    assert_eq!((number, then), (home, home));
}

#[test]
fn each_service_keeps_its_own_clients() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let address = moving_client();
    let home = open(&tables, client(address, 1));
    scale(&mut tables, 4);
    let (_, by_udp) = sent(&tables, udp(client(address, 1), at(FRONTEND), b"x"));
    assert_eq!(by_udp, hashed(address, 4), "nothing is known of its datagrams");
    assert_eq!(open(&tables, client(address, 2)), home);
}

#[test]
fn an_answered_datagram_is_noted() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let address = moving_client();
    let (received, home) = sent(&tables, udp(client(address, 1), at(FRONTEND), b"x"));
    run(
        &tables,
        Hook::TcContainer,
        &mut reply_to(&view(&received), 0, b"y"),
    );
    scale(&mut tables, 4);
    let (_, then) = sent(&tables, udp(client(address, 2), at(FRONTEND), b"x"));
    assert_eq!(then, home);
}

#[test]
fn processes_of_the_node_stay_as_one_client() {
    let mut tables = node(Choice::HASH_ADDRESS, 3);
    let local = |port| tcp(client(9, port), SocketAddrV4::new(SERVICE_ADDRESS, 9200), SYN);
    let open = |tables: &TestTables, port| {
        let mut frame = local(port);
        run(tables, Hook::TcMesh0, &mut frame);
        let number = view(&frame).destination.ip().octets()[3];
        run(
            tables,
            Hook::TcContainer,
            &mut reply_to(&view(&frame), SYN | ACK, b""),
        );
        let mut frame = tcp(client(9, port), SocketAddrV4::new(SERVICE_ADDRESS, 9200), ACK);
        run(tables, Hook::TcMesh0, &mut frame);
        number
    };
    assert_ne!(MESH0, 0);
    let home = open(&tables, 1);
    scale(&mut tables, 4);
    assert!((2..20).all(|port| open(&tables, port) == home));
    assert_eq!(tables.affinity_count(), 1);
}

#[test]
fn services_without_affinity_are_not_looked_up() {
    for choice in [
        Choice::ROTATE,
        Choice::RANDOM,
        Choice::HASH_ENDPOINT,
        Choice::LEAST,
    ] {
        let tables = node(choice, 4);
        for address in 0..20 {
            open(&tables, client(address, 1));
        }
        assert_eq!((tables.affinity_look_ups(), tables.affinity_count()), (0, 0));
    }
}

/// What happens to a service and its clients.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open(u8),
    Scale(u32),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u8..20).prop_map(Step::Open),
        1 => (1_u32..=4).prop_map(Step::Scale),
        1 => (1_u64..90).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_client_moves_only_when_its_time_is_over_or_its_backend_is_gone(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut tables = node(Choice::HASH_ADDRESS, 3);
        let (mut count, mut now, mut port) = (3, 0, 0);
        // The backend of each client's last connection, and when that was.
        let mut last = BTreeMap::<u8, (u8, u64)>::new();
        for step in steps {
            match step {
                Step::Scale(to) => {
                    count = to;
                    scale(&mut tables, to);
                }
                Step::Wait(seconds) => {
                    now += seconds;
                    wait(&tables, seconds);
                }
                Step::Open(address) => {
                    port += 1;
                    let number = open(&tables, client(address, port));
                    let known = last.get(&address).filter(|(backend, since)| {
                        u32::from(*backend) <= count && now - since <= u64::from(LIFETIME)
                    });
                    let expected = known.map_or_else(|| hashed(address, count), |(backend, _)| *backend);
                    prop_assert_eq!(number, expected);
                    last.insert(address, (number, now));
                }
            }
        }
    }
}
