//! When flows are open, and what closes them.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::{Flow, Hook, Progress},
    headers::{ETHERNET_LENGTH, PROTOCOL_UDP},
    parse::parse,
    testing::{
        ACK, CLIENT_ROUTE, FIN, RST, Replica, SYN, Segment, TestFrame, TestTables, at, reply_to, run,
        segment, tcp, udp, view, view_inner,
    },
    verdict::Action,
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const CONTAINER: &str = "172.18.0.1:80";
const LOCAL: Replica = Replica::on(1, 1);
const REMOTE: Replica = Replica::on(2, 1);

fn node(number: u8, replica: Replica) -> TestTables {
    TestTables::node(number)
        .publish(PROTOCOL_TCP, 9200, &[replica])
        .publish(PROTOCOL_UDP, 9200, &[replica])
}

fn from_client(tables: &TestTables, segment: Segment<'_>) -> TestFrame {
    let mut frame = tcp(at(CLIENT), at(FRONTEND), segment);
    run(tables, Hook::TcUplink, &mut frame);
    frame
}

fn from_container(tables: &TestTables, segment: Segment<'_>) {
    let mut frame = tcp(at(CONTAINER), at(CLIENT), segment).routed(CLIENT_ROUTE);
    let action = run(tables, Hook::TcContainer, &mut frame);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
}

fn entry(tables: &TestTables, from: &str, to: &str, protocol: u8) -> Flow {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (at(from), at(to));
    let frame = if protocol == PROTOCOL_TCP {
        tcp(from, to, ACK)
    } else {
        udp(from, to, b"x")
    };
    let key = parse(&frame, ETHERNET_LENGTH).expect("a packet").key;
    tables.flow(&key).expect("an entry").copy()
}

fn forward(tables: &TestTables) -> Flow {
    entry(tables, CLIENT, FRONTEND, PROTOCOL_TCP)
}

/// A connection to a local replica that is open: the next numbers are 1001 and 5001.
fn open_locally() -> TestTables {
    let tables = node(1, LOCAL);
    from_client(&tables, segment(SYN, 1000, 0));
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    from_client(&tables, segment(ACK, 1001, 5001));
    from_container(&tables, segment(ACK, 5001, 1001));
    tables
}

#[test]
fn a_connection_is_open_once_the_client_acknowledges_the_answer() {
    let tables = node(1, LOCAL);
    from_client(&tables, segment(SYN, 1000, 0));
    from_client(&tables, segment(ACK, 1001, 5001));
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 0), "asked");
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    assert_eq!(tables.open_count(), 0, "answered");
    from_client(&tables, segment(SYN, 1000, 0));
    assert_eq!(tables.open_count(), 0, "asked again");
    from_client(&tables, segment(ACK, 1001, 5001));
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 2), "open");
    assert_eq!(tables.events(Event::FlowOpened), 2);
    assert!(forward(&tables).opening.is_open());
    tables.forget_half_open();
    from_container(&tables, segment(ACK, 5001, 1001));
}

#[test]
fn a_client_that_asks_again_is_answered_though_the_entry_for_answers_was_pushed_out() {
    let tables = node(1, LOCAL);
    from_client(&tables, segment(SYN, 1000, 0));
    tables.forget_other_entries();
    assert_eq!(tables.flow_count(), 1);
    tables.clock.set(1_000_000_000);
    from_client(&tables, segment(SYN, 1000, 0));
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    from_client(&tables, segment(ACK, 1001, 5001));
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 2));

    // The same at a backend's node, and for datagrams.
    let (entry_node, backend_node) = (node(1, REMOTE), node(2, REMOTE));
    let ask = || {
        let mut frame = udp(at(CLIENT), at(FRONTEND), b"x");
        run(&entry_node, Hook::TcUplink, &mut frame);
        run(&backend_node, Hook::TcUplink, &mut frame);
        frame
    };
    ask();
    backend_node.forget_other_entries();
    let seen = view(&ask());
    let mut reply = reply_to(&seen, 0, b"x").routed(CLIENT_ROUTE);
    run(&backend_node, Hook::TcContainer, &mut reply);
    assert_eq!(view_inner(&reply).source, at(FRONTEND));
}

#[test]
fn a_connection_to_another_node_is_open_on_both() {
    let (entry_node, backend_node) = (node(1, REMOTE), node(2, REMOTE));
    let send = |segment: Segment<'static>| {
        let mut frame = from_client(&entry_node, segment);
        run(&backend_node, Hook::TcUplink, &mut frame);
        frame
    };
    let seen = view(&send(segment(SYN, 1000, 0)));
    let mut reply = reply_to(&seen, SYN | ACK, b"").routed(CLIENT_ROUTE);
    run(&backend_node, Hook::TcContainer, &mut reply);
    assert_eq!(view_inner(&reply).source, at(FRONTEND));
    run(&entry_node, Hook::TcUplink, &mut reply);
    assert_eq!((entry_node.open_count(), backend_node.open_count()), (0, 0));
    send(segment(ACK, 1001, 1));
    assert_eq!((entry_node.open_count(), backend_node.open_count()), (1, 2));
}

#[test]
fn with_direct_return_a_connection_is_open_when_the_client_goes_on() {
    let tables = node(1, REMOTE).direct();
    from_client(&tables, segment(SYN, 1000, 0));
    assert_eq!(tables.open_count(), 0);
    from_client(&tables, segment(ACK, 1001, 5001));
    assert_eq!(tables.open_count(), 1);
}

#[test]
fn a_datagram_flow_is_open_once_it_is_answered() {
    let tables = node(1, LOCAL);
    for _ in 0..3 {
        run(&tables, Hook::TcUplink, &mut udp(at(CLIENT), at(FRONTEND), b"x"));
    }
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 0));
    let mut reply = udp(at(CONTAINER), at(CLIENT), b"x").routed(CLIENT_ROUTE);
    run(&tables, Hook::TcContainer, &mut reply);
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 2));
}

#[test]
fn a_flow_that_finds_no_room_among_the_open_ones_goes_on_and_tries_again() {
    let tables = node(1, LOCAL);
    tables.open_full.set(true);
    from_client(&tables, segment(SYN, 1000, 0));
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    from_client(&tables, segment(ACK, 1001, 5001));
    from_container(&tables, segment(ACK, 5001, 1001));
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 0));
    assert_eq!(tables.events(Event::FlowNotOpened), 1);
    assert!(!forward(&tables).opening.is_open());
    tables.open_full.set(false);
    from_client(&tables, segment(ACK, 1001, 5001));
    assert_eq!((tables.flow_count(), tables.open_count()), (2, 2));
}

#[test]
fn a_replicas_packets_keep_the_whole_flow_seen() {
    let mut tables = node(1, LOCAL);
    run(
        &tables,
        Hook::TcUplink,
        &mut udp(at(CLIENT), at(FRONTEND), b"subscribe"),
    );
    for now in [1030, 1060, 1090] {
        tables.config_mut().now = now;
        let mut data = udp(at(CONTAINER), at(CLIENT), b"data").routed(CLIENT_ROUTE);
        run(&tables, Hook::TcContainer, &mut data);
        assert_eq!(entry(&tables, CLIENT, FRONTEND, PROTOCOL_UDP).seen, now);
    }
}

#[test]
fn a_reset_out_of_sequence_closes_nothing() {
    for (from_the_client, sequence, closes) in [
        (true, 1001, true),
        (true, 1001 + (1 << 31), false),
        (true, 1001_u32.wrapping_sub(2 << 20), false),
        (false, 5001, true),
        (false, 5001 + (1 << 31), false),
        (false, 5001 + (2 << 20), false),
    ] {
        for flags in [RST, FIN | ACK] {
            let tables = open_locally();
            let last = segment(flags, sequence, 0);
            if from_the_client {
                from_client(&tables, last);
            } else {
                from_container(&tables, last);
            }
            let flow = forward(&tables);
            let closed = Progress::is_closing(flow.from_client, flow.from_backend);
            assert_eq!(closed, closes, "{flags} {sequence}");
        }
    }
}

#[test]
fn a_long_transfer_is_followed_both_ways() {
    let tables = open_locally();
    // What a large window holds at once is acknowledged in between.
    for step in 1..=5_000_u32 {
        from_container(&tables, segment(ACK, 5001 + step * 100_000, 1001 + step * 60_000));
    }
    from_client(&tables, segment(RST, 1001 + 5_000 * 60_000, 0));
    assert_eq!(forward(&tables).from_client, Progress::RESET);
    from_container(&tables, segment(RST, 5001 + 5_000 * 100_000, 0));
    assert_eq!(forward(&tables).from_backend, Progress::RESET);
}

#[test]
fn with_direct_return_a_reset_must_follow_what_the_client_has_sent() {
    let tables = node(1, REMOTE).direct();
    from_client(&tables, segment(SYN, 1000, 0));
    from_client(&tables, segment(ACK, 1001, 5001));
    from_client(&tables, segment(RST, 1001 + (1 << 31), 0));
    assert_eq!(forward(&tables).from_client, Progress::OPEN);
    from_client(&tables, segment(RST, 1001, 0));
    assert_eq!(forward(&tables).from_client, Progress::RESET);
}

#[test]
fn an_old_replica_does_not_close_the_ports_next_connection() {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[LOCAL, Replica::on(1, 2)]);
    from_client(&tables, segment(SYN, 1000, 0));
    from_client(&tables, segment(RST, 1001, 0));
    from_client(&tables, segment(SYN, 9000, 0));
    assert_eq!(forward(&tables).backend, 1);
    // Late packets of the first one.
    from_container(&tables, segment(RST | ACK, 0, 1001));
    from_container(&tables, segment(FIN | ACK, 5001, 1001));
    let flow = forward(&tables);
    assert_eq!(
        (flow.from_client, flow.from_backend),
        (Progress::OPEN, Progress::OPEN)
    );
}

#[test]
fn an_answer_undoes_what_seemed_to_close_its_connection_before() {
    let tables = node(1, LOCAL);
    from_client(&tables, segment(SYN, 1000, 0));
    from_container(&tables, segment(RST | ACK, 0, 77));
    assert_eq!(forward(&tables).from_backend, Progress::RESET);
    from_container(&tables, segment(SYN | ACK, 5000, 1001));
    assert_eq!(forward(&tables).from_backend, Progress::OPEN);
}
