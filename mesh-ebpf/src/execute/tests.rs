//! What is done with packets of one node: delivery, answers, failures. Conversations between nodes are
//! in `conversations`, arbitrary frames in `arbitrary`.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::{BackendCounters, MAX_ANSWERS},
    headers::{PROTOCOL_UDP, TCP_FIN},
    testing::{
        ACK, CLIENT_ROUTE, INNER_MTU, MESH0, RST, Replica, SERVICE_ADDRESS, SYN, Segment, TestFrame,
        TestTables, at, fix_ip_checksum, node_address, reply_to, run, tcp, udp, view, view_error, view_inner,
    },
};

mod arbitrary;
mod conversations;
mod header;
mod sizes;
mod talk;

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const LOCAL: Replica = Replica::on(1, 1);
const REMOTE: Replica = Replica::on(2, 1);
/// By the next hops of the test tables.
const TO_PEER: Action = Action::Transmit { interface: 2 };
/// By [`CLIENT_ROUTE`].
const TO_CLIENT: Action = Action::Transmit { interface: 3 };

/// A node that publishes port 9200 for both protocols: backend 0 is TCP's, 1 is UDP's.
fn node(number: u8, replica: Replica) -> TestTables {
    TestTables::node(number)
        .publish(PROTOCOL_TCP, 9200, &[replica])
        .publish(PROTOCOL_UDP, 9200, &[replica])
}

fn syn() -> TestFrame {
    tcp(at(CLIENT), at(FRONTEND), SYN)
}

#[track_caller]
fn check_dropped(tables: &TestTables, hook: Hook, frame: &mut TestFrame, reason: DropReason) {
    assert_eq!(run(tables, hook, frame), Action::Drop);
    assert_eq!(tables.drops(hook, reason), 1);
    assert_eq!(tables.all_drops(), 1);
}

/// What passes must be unchanged.
#[track_caller]
fn check_passed_whole(tables: &TestTables, hook: Hook, frame: &TestFrame) {
    let mut after = frame.clone();
    assert_eq!(run(tables, hook, &mut after), Action::Pass);
    assert_eq!(after.bytes, frame.bytes);
    assert_eq!(tables.all_drops(), 0);
}

#[test]
fn a_packet_for_a_container_is_addressed_to_it() {
    for hook in [Hook::TcUplink, Hook::TcMesh0] {
        let tables = node(1, LOCAL);
        let frontend = match hook {
            Hook::TcMesh0 => SocketAddrV4::new(SERVICE_ADDRESS, 9200),
            _ => at(FRONTEND),
        };
        let mut frame = tcp(at(CLIENT), frontend, SYN);
        let interface = LOCAL.interface();
        let expected = match hook {
            Hook::TcMesh0 => Action::Transmit { interface },
            _ => Action::IntoContainer { interface },
        };
        assert_eq!(run(&tables, hook, &mut frame), expected);
        assert_eq!(frame.bytes[..6], [2, 8, 0, 0, 0, 1]);
        assert_eq!(frame.bytes[6..14], [2, 8, 0, 0, 0, 254, 8, 0]);
    }
}

#[test]
fn packets_for_this_node_pass_xdp_unchanged() {
    check_passed_whole(&node(1, LOCAL), Hook::Xdp, &syn());
}

#[test]
fn a_reply_is_sent_by_the_way_to_the_client() {
    let tables = node(1, LOCAL);
    let mut frame = syn();
    run(&tables, Hook::TcUplink, &mut frame);
    let reply = reply_to(&view(&frame), SYN | ACK, b"");
    let mut sent = reply.clone().routed(CLIENT_ROUTE);
    assert_eq!(run(&tables, Hook::TcContainer, &mut sent), TO_CLIENT);
    let asked = (node_address(1).into(), (*at(CLIENT).ip()).into(), 40);
    assert_eq!(sent.asked.get(), Some(asked));
    assert_eq!(sent.bytes[..6], [2, 3, 0, 0, 0, 2]);
    assert_eq!(sent.bytes[6..14], [2, 3, 0, 0, 0, 1, 8, 0]);
    let mut unresolved = reply.clone().routed(Route::Unresolved { interface: 4 });
    let action = run(&tables, Hook::TcContainer, &mut unresolved);
    assert_eq!(action, Action::Route { interface: 4 });
    assert_eq!(view(&unresolved), view(&sent));
    check_dropped(
        &tables,
        Hook::TcContainer,
        &mut reply.clone(),
        DropReason::NoRoute,
    );
}

#[test]
fn a_reply_to_a_local_process_enters_by_mesh0() {
    let tables = node(1, LOCAL);
    let mut frame = tcp(
        at("10.0.0.1:40000"),
        SocketAddrV4::new(SERVICE_ADDRESS, 9200),
        SYN,
    );
    run(&tables, Hook::TcMesh0, &mut frame);
    let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
    let action = run(&tables, Hook::TcContainer, &mut reply);
    assert_eq!(action, Action::IntoHost { interface: MESH0 });
    assert_eq!(reply.bytes[..14], [2, 7, 0, 0, 0, 1, 2, 7, 0, 0, 0, 1, 8, 0]);
    assert_eq!(reply.asked.get(), None, "no route leads to oneself");
}

#[test]
fn a_way_to_a_peer_that_is_not_known_yet_is_the_kernels() {
    let mut tables = node(1, REMOTE);
    tables.next_hops[2].interface = 0;
    check_passed_whole(&tables, Hook::Xdp, &syn());
    assert_eq!(tables.counters(0).packets_in, 0, "counted where it is sent");
    for way in [CLIENT_ROUTE, Route::Unresolved { interface: 3 }] {
        let mut frame = syn().routed(way);
        let action = run(&tables, Hook::TcUplink, &mut frame);
        assert_eq!(action, Action::Route { interface: 3 });
        let asked = (node_address(1).into(), node_address(2).into(), 0);
        assert_eq!(frame.asked.get(), Some(asked));
        assert_eq!(view_inner(&frame), view(&syn()));
    }
    check_dropped(&tables, Hook::TcUplink, &mut syn(), DropReason::NoRoute);
}

#[test]
fn a_peer_that_has_left_is_sent_nothing() {
    for gone in [false, true] {
        let mut tables = node(1, REMOTE);
        if gone {
            tables.next_hops.clear();
        } else {
            tables.next_hops[2] = NextHop::default();
        }
        let mut frame = syn().routed(CLIENT_ROUTE);
        check_dropped(&tables, Hook::TcUplink, &mut frame, DropReason::NoRoute);
        assert_eq!(tables.counters(0).packets_in, 0);
    }
}

#[test]
fn what_cannot_be_resized_is_dropped() {
    let mut frame = syn();
    frame.elastic = false;
    check_dropped(&node(1, REMOTE), Hook::Xdp, &mut frame, DropReason::RewriteFailed);
}

#[test]
fn a_refusal_is_counted_once_and_answered() {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[]);
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        let mut frame = syn();
        assert_eq!(run(&tables, hook, &mut frame), Action::Answer);
        assert_eq!(view(&frame).flags, RST | ACK);
        assert_eq!(tables.drops(hook, DropReason::NoBackend), 1);
    }
    assert_eq!(tables.all_drops(), 3);
}

#[test]
fn a_reset_of_an_unknown_flow_is_dropped_without_an_answer() {
    let tables = node(1, LOCAL);
    let mut frame = tcp(at("10.0.0.1:1"), SocketAddrV4::new(SERVICE_ADDRESS, 9200), RST);
    check_dropped(&tables, Hook::TcMesh0, &mut frame, DropReason::UnknownFlow);
}

#[test]
fn an_aggregated_packet_counts_as_its_segments() {
    let tables = node(1, LOCAL);
    run(&tables, Hook::TcUplink, &mut syn());
    let segment = Segment {
        flags: ACK,
        payload: &[1; 4000],
        ..Segment::default()
    };
    let mut frame = tcp(at(CLIENT), at(FRONTEND), segment);
    (frame.segments, frame.segment_size) = (3, 1400);
    run(&tables, Hook::TcUplink, &mut frame);
    let expected = BackendCounters {
        connections: 1,
        packets_in: 4,
        bytes_in: 4080,
        ..BackendCounters::default()
    };
    assert_eq!(tables.counters(0), expected);
}

#[test]
fn without_settings_everything_passes() {
    let mut tables = node(1, LOCAL);
    tables.config = None;
    for hook in Hook::ALL {
        check_passed_whole(&tables, hook, &syn());
    }
}

#[test]
fn the_size_of_segments_is_lowered_for_remote_backends_only() {
    for (replica, expected) in [(LOCAL, 1460_u16), (REMOTE, INNER_MTU - 40)] {
        let segment = Segment {
            flags: SYN,
            options: &[2, 4, 0x05, 0xb4],
            ..Segment::default()
        };
        let mut frame = tcp(at(CLIENT), at(FRONTEND), segment);
        run(&node(1, replica), Hook::TcUplink, &mut frame);
        let seen = match replica.node {
            1 => view(&frame),
            _ => view_inner(&frame),
        };
        assert_eq!(seen.options[2..], expected.to_be_bytes());
    }
}

#[test]
fn a_segment_that_is_no_syn_keeps_its_options() {
    let tables = node(1, REMOTE);
    run(&tables, Hook::TcUplink, &mut syn());
    for flags in [ACK, ACK | TCP_FIN] {
        let segment = Segment {
            flags,
            options: &[2, 4, 0x05, 0xb4],
            ..Segment::default()
        };
        let mut frame = tcp(at(CLIENT), at(FRONTEND), segment);
        run(&tables, Hook::TcUplink, &mut frame);
        assert_eq!(view_inner(&frame).options, [2, 4, 0x05, 0xb4]);
    }
}

#[test]
fn answers_are_bounded_in_number_and_size() {
    let refusing = || {
        TestTables::node(1)
            .publish(PROTOCOL_TCP, 9200, &[])
            .publish(PROTOCOL_UDP, 9200, &[])
    };
    let small = udp(at(CLIENT), at(FRONTEND), b"x");
    for (hook, frame, expected) in [
        (Hook::TcUplink, syn(), Action::Answer),
        (
            Hook::TcUplink,
            udp(at(CLIENT), at(FRONTEND), &[0; 28]),
            Action::Answer,
        ),
        (
            Hook::TcUplink,
            udp(at(CLIENT), at(FRONTEND), &[0; 27]),
            Action::Drop,
        ),
        (Hook::Xdp, small.clone(), Action::Drop),
        // Who sends this is known.
        (Hook::TcContainer, small, Action::Answer),
    ] {
        let tables = refusing();
        let mut answered = frame.clone();
        assert_eq!(run(&tables, hook, &mut answered), expected);
        assert_eq!(tables.drops(hook, DropReason::NoBackend), 1);
        if expected == Action::Answer && hook != Hook::TcContainer {
            assert!(answered.bytes.len() <= frame.bytes.len().max(ETHERNET_LENGTH + 40));
        }
        tables.answers.set(MAX_ANSWERS as u32);
        assert_eq!(
            run(&tables, hook, &mut frame.clone()),
            Action::Drop,
            "one too many"
        );
    }
}
