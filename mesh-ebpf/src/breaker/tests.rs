//! New flows pass over a backend that does not answer.

use std::{collections::BTreeMap, net::SocketAddrV4};

use super::*;
use crate::{
    abi::{Choice, Event, Hook},
    headers::PROTOCOL_UDP,
    testing::{ACK, RST, Replica, SYN, TestFrame, TestTables, at, reply_to, run, tcp, udp, view},
};

const FRONTEND: &str = "10.0.0.1:9200";
const SECOND: u64 = 1_000_000_000;

fn node(replicas: u8) -> TestTables {
    let replicas: Vec<Replica> = (1..=replicas).map(|number| Replica::on(1, number)).collect();
    let tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, &replicas)
        .publish(PROTOCOL_UDP, 9200, &replicas);
    tables.clock.set(10 * SECOND);
    tables
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 7].into(), port)
}

/// Sends a client's packet; returns what the container sees, and its number.
fn sent(tables: &TestTables, packet: &TestFrame) -> (TestFrame, u8) {
    let mut frame = packet.clone();
    run(tables, Hook::TcUplink, &mut frame);
    let number = view(&frame).destination.ip().octets()[3];
    (frame, number)
}

/// Opens a connection, which all but the backends named answer; returns the one that was asked.
fn open(tables: &TestTables, port: u16, hanging: &[u8]) -> u8 {
    let (frame, number) = sent(tables, &tcp(client(port), at(FRONTEND), SYN));
    if !hanging.contains(&number) {
        run(
            tables,
            Hook::TcContainer,
            &mut reply_to(&view(&frame), SYN | ACK, b""),
        );
    }
    number
}

/// Opens connections, a millisecond each; returns how many each backend was asked for.
fn load(tables: &TestTables, count: u16, hanging: &[u8]) -> BTreeMap<u8, u32> {
    let mut asked = BTreeMap::new();
    for _ in 0..count {
        let now = tables.clock.get() + SECOND / 1000;
        tables.clock.set(now);
        *asked
            .entry(open(tables, (now / 1_000_000) as u16, hanging))
            .or_default() += 1;
    }
    asked
}

/// As [`load`], after the backends named have been asked often enough to be known.
fn known(tables: &TestTables, count: u16, hanging: &[u8]) -> BTreeMap<u8, u32> {
    load(tables, 20, hanging);
    tables.clock.set(tables.clock.get() + PATIENCE);
    for (index, _) in hanging.iter().enumerate() {
        // The flows that try at once are over.
        load(tables, 20 * (index as u16 + 1), hanging);
    }
    load(tables, count, hanging)
}

#[test]
fn a_backend_that_does_not_answer_three_opens_is_passed_over() {
    let tables = node(2);
    for port in 0..6 {
        open(&tables, 1000 + port, &[2]);
        tables.clock.set(tables.clock.get() + PATIENCE);
        let asked = u64::from(port).div_ceil(2).min(BREAKER_LIMIT);
        assert!(tables.breaker(1).unanswered >= asked);
    }
    // One tries at once, as none has for a second.
    assert_eq!(load(&tables, 100, &[2]), BTreeMap::from([(1, 99), (2, 1)]));
}

#[test]
fn an_answer_brings_it_back() {
    let tables = node(2);
    assert_eq!(known(&tables, 50, &[2]), BTreeMap::from([(1, 50)]));
    tables.clock.set(tables.clock.get() + TRIAL_INTERVAL);
    assert_eq!(load(&tables, 50, &[]), BTreeMap::from([(1, 25), (2, 25)]));
}

#[test]
fn one_flow_a_second_tries_it() {
    let tables = node(2);
    known(&tables, 1, &[2]);
    let asked = load(&tables, 5000, &[2]);
    assert!((4..=6).contains(&asked[&2]), "{asked:?}");
}

#[test]
fn a_reset_is_no_answer() {
    let tables = node(2);
    for port in 0..40 {
        let (frame, number) = sent(&tables, &tcp(client(1000 + port), at(FRONTEND), SYN));
        let flags = if number == 2 { RST | ACK } else { SYN | ACK };
        run(
            &tables,
            Hook::TcContainer,
            &mut reply_to(&view(&frame), flags, b""),
        );
        tables.clock.set(tables.clock.get() + PATIENCE / 10);
    }
    assert!(is_open(&tables, 1) && !is_open(&tables, 0));
}

#[test]
fn a_burst_is_no_reason_to_pass_over() {
    let tables = node(3);
    let asked = (0..300).map(|port| open(&tables, 1000 + port, &[1, 2, 3]));
    let mut spread = BTreeMap::new();
    asked.for_each(|number| *spread.entry(number).or_insert(0) += 1);
    assert_eq!(spread, BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
}

#[test]
fn at_most_half_are_passed_over_and_none_when_all_fail() {
    for (replicas, hanging, expect) in [
        (1, &[1][..], &[1][..]),
        (2, &[1, 2], &[2]),
        (3, &[1, 2], &[2, 3]),
        (4, &[1, 2], &[3, 4]),
        (4, &[1, 2, 3], &[3, 4]),
    ] {
        let tables = node(replicas);
        let asked = known(&tables, 60, hanging);
        for number in expect {
            assert!(asked.get(number).is_some_and(|count| *count > 5), "{asked:?}");
        }
        let passed_over = asked.iter().filter(|(_, count)| **count > 5).count();
        if hanging.len() < usize::from(replicas) {
            assert_eq!(passed_over, expect.len(), "{hanging:?} of {replicas}: {asked:?}");
        }
    }
}

#[test]
fn every_algorithm_passes_over() {
    for choice in [
        Choice::ROTATE,
        Choice::HASH_ENDPOINT,
        Choice::HASH_ADDRESS,
        Choice::LEAST,
        Choice::RANDOM,
    ] {
        let mut tables = node(4);
        tables
            .services
            .entry(0)
            .and_modify(|service| service.choice = choice);
        tables.trip(2, tables.clock.get());
        let asked = load(&tables, 200, &[3]);
        assert_eq!(asked.get(&3), None, "{choice:?}");
    }
}

#[test]
fn a_syn_sent_again_goes_to_a_backend_that_answers() {
    let tables = node(2);
    tables.trip(0, 0);
    let syn = tcp(client(4000), at(FRONTEND), SYN);
    tables.clock.set(2 * SECOND);
    assert_eq!(open(&tables, 4000, &[1]), 1, "it tries");
    tables.clock.set(tables.clock.get() + PATIENCE);
    assert_eq!(sent(&tables, &syn).1, 1, "by XDP and then by tc");
    // The agent's clock may stand still.
    tables.clock.set(tables.clock.get() + SECOND);
    assert_eq!(sent(&tables, &syn).1, 2);
    // And stays there.
    assert_eq!(sent(&tables, &tcp(client(4000), at(FRONTEND), ACK)).1, 2);
}

#[test]
fn datagrams_need_no_answer() {
    let tables = node(2);
    for port in 0..100 {
        sent(&tables, &udp(client(1000 + port), at(FRONTEND), b"a log line"));
        tables.clock.set(tables.clock.get() + PATIENCE);
    }
    assert!((0..4).all(|backend| tables.breaker(backend).unanswered == 0));
}

#[test]
fn answers_that_do_not_pass_this_node_are_not_missed() {
    for (tables, counted) in [(TestTables::node(1), true), (TestTables::node(1).direct(), false)] {
        let tables = tables.publish(PROTOCOL_TCP, 9200, &[Replica::on(2, 1)]);
        run(&tables, Hook::Xdp, &mut tcp(client(1000), at(FRONTEND), SYN));
        assert_eq!(tables.breaker(0).unanswered == 1, counted);
    }
}

/// The backend's node counts nothing, and the entry node stops counting with the answer.
#[test]
fn the_entry_node_counts_and_an_answer_from_a_peer_counts() {
    let replica = [Replica::on(2, 1)];
    let entry_node = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &replica);
    let backend_node = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &replica);
    let mut frame = tcp(client(1000), at(FRONTEND), SYN);
    run(&entry_node, Hook::Xdp, &mut frame);
    let mut frame = frame.received();
    run(&backend_node, Hook::TcUplink, &mut frame);
    assert_eq!(backend_node.breaker(0).unanswered, 0);
    assert_eq!(entry_node.breaker(0).unanswered, 1);
    let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
    run(&backend_node, Hook::TcContainer, &mut reply);
    run(
        &entry_node,
        Hook::Xdp,
        &mut reply.received().routed(crate::testing::CLIENT_ROUTE),
    );
    assert_eq!(entry_node.breaker(0).unanswered, 0);
}

#[test]
fn an_open_connection_costs_no_look_up_of_the_breaker() {
    let tables = node(2);
    open(&tables, 4000, &[]);
    let before = tables.breaker_look_ups.get();
    let (frame, _) = sent(&tables, &tcp(client(4000), at(FRONTEND), ACK));
    run(
        &tables,
        Hook::TcContainer,
        &mut reply_to(&view(&frame), ACK, b"data"),
    );
    assert_eq!(tables.breaker_look_ups.get(), before);
}

#[test]
fn a_backend_whose_node_sends_back_is_passed_over() {
    let replicas = [Replica::on(2, 1), Replica::on(3, 2)];
    let tables = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &replicas);
    tables.clock.set(10 * SECOND);
    let stale = TestTables::node(2);
    let mut frame = udp(client(1000), at(FRONTEND), b"a question");
    run(&tables, Hook::TcUplink, &mut frame);
    let mut frame = frame.received();
    run(&stale, Hook::TcUplink, &mut frame);
    run(&tables, Hook::TcUplink, &mut frame.received());
    assert_eq!(tables.events(Event::FlowMoved), 1);
    for port in 0..10 {
        let mut frame = udp(client(2000 + port), at(FRONTEND), b"a question");
        run(&tables, Hook::TcUplink, &mut frame);
        assert_eq!(frame.bytes[33], 3, "to node 3");
    }
}

/// Splits the ring: the first replicas are the node's own, the others follow.
fn preferring(mut tables: TestTables, own: u32) -> TestTables {
    let backends = 0..tables.services[&0].ring_length;
    let offset = tables.ring.len() as u32;
    tables.ring.extend(0..own);
    tables.ring.push(backends.end - own);
    tables.ring.extend(own..backends.end);
    if let Some(service) = tables.services.get_mut(&0) {
        service.choice = service.choice.preferring();
        (service.ring_offset, service.ring_length) = (offset, own);
    }
    tables
}

#[test]
fn preferred_backends_are_chosen_while_they_answer() {
    for choice in [
        Choice::ROTATE,
        Choice::RANDOM,
        Choice::HASH_ENDPOINT,
        Choice::LEAST,
    ] {
        let mut tables = node(4);
        if let Some(service) = tables.services.get_mut(&0) {
            service.choice = choice;
        }
        let tables = preferring(tables, 2);
        let asked = load(&tables, 100, &[]);
        assert_eq!(asked.keys().copied().collect::<Vec<_>>(), [1, 2], "{choice:?}");
    }
}

#[test]
fn one_preferred_backend_stands_in_for_another_before_others_do() {
    let tables = preferring(node(4), 2);
    assert_eq!(known(&tables, 50, &[2]), BTreeMap::from([(1, 50)]));
}

#[test]
fn others_are_chosen_while_no_preferred_backend_answers() {
    let tables = preferring(node(4), 2);
    let asked = known(&tables, 60, &[1, 2]);
    assert!(asked[&3] > 15 && asked[&4] > 15, "{asked:?}");
    let tried = asked.get(&1).unwrap_or(&0) + asked.get(&2).unwrap_or(&0);
    assert!(tried <= 2, "two may try: {asked:?}");
    tables.clock.set(tables.clock.get() + TRIAL_INTERVAL);
    load(&tables, 10, &[]);
    let asked = load(&tables, 50, &[]);
    assert_eq!(asked.keys().copied().collect::<Vec<_>>(), [1, 2], "they are back");
}

#[test]
fn where_no_backend_answers_the_preferred_ones_are_tried() {
    let tables = preferring(node(2), 1);
    known(&tables, 200, &[1, 2]);
    let asked = load(&tables, 50, &[1, 2]);
    assert!(asked[&1] > 45, "{asked:?}");
}

#[test]
fn what_cannot_be_delivered_to_the_only_preferred_backend_goes_to_another() {
    for must_answer in [false, true] {
        let tables = preferring(node(3), 1);
        let key = crate::abi::FlowKey::default();
        let found = crate::select::another(&tables, &key, 0, 0, must_answer).map(|(index, _)| index);
        assert!(found == Some(1) || found == Some(2), "{found:?}");
    }
    let tables = preferring(node(2), 2);
    let key = crate::abi::FlowKey::default();
    let found = crate::select::another(&tables, &key, 0, 0, true).map(|(index, _)| index);
    assert_eq!(found, Some(1), "no others follow");
}

#[test]
fn a_service_that_prefers_its_nodes_backends_is_not_the_same_on_every_node() {
    assert!(Choice::HASH_ADDRESS.is_by_hash());
    assert!(!Choice::HASH_ADDRESS.preferring().is_by_hash());
    assert_eq!(
        Choice::HASH_ADDRESS.preferring().within_ring(),
        Choice::HASH_ADDRESS
    );
}
