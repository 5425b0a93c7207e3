//! Packets with the cluster's key, and without it.

use super::*;
use crate::{
    abi::{Event, Keys},
    headers::{KEY_LENGTH, KEYED_OUTER_LENGTH},
};

const KEY: u64 = 0x1122_3344_5566_7788;
const OLD_KEY: u64 = 0x8877_6655_4433_2211;
const KEY_AT: usize = GENEVE + 20;
const BOTH: Keys = Keys {
    values: [KEY, OLD_KEY],
    ids: [2, 1],
};
/// One replica on each of the other nodes.
const ELSEWHERE: [Replica; 2] = [Replica::on(2, 1), Replica::on(3, 2)];

/// A node that holds keys, and sends one to the peers given.
fn keyed(number: u8, replicas: &[Replica], peers: &[usize]) -> TestTables {
    let mut tables = TestTables::node(number)
        .publish(PROTOCOL_TCP, 9200, replicas)
        .publish(PROTOCOL_UDP, 9200, replicas);
    tables.keys = BOTH;
    for peer in peers {
        tables.next_hops[*peer].key = 1;
    }
    tables
}

/// What a node sends for a frame, as the next node receives it.
#[track_caller]
fn sent(tables: &TestTables, hook: Hook, frame: &TestFrame) -> TestFrame {
    let mut frame = frame.received().routed(CLIENT_ROUTE);
    let action = run(tables, hook, &mut frame);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    frame.received()
}

/// What opens a connection, as the first node sends it to the second: with the key.
#[track_caller]
fn opening() -> TestFrame {
    let entry_node = keyed(1, &REPLICAS, &[2]);
    sent(&entry_node, Hook::Xdp, &tcp(at(CLIENT), at(FRONTEND), SYN))
}

/// What a node has sent to the second one, and what came back from there because it has no replica.
#[track_caller]
fn sent_back(entry_node: &TestTables, packet: &TestFrame) -> [TestFrame; 2] {
    let there = sent(entry_node, Hook::TcUplink, packet);
    let back = sent(&keyed(2, &[], &[1]), Hook::TcUplink, &there);
    [there, back]
}

fn with_key(frame: &TestFrame, key: u64) -> TestFrame {
    with(frame.clone(), KEY_AT, &key.to_ne_bytes())
}

#[test]
fn a_connection_between_nodes_that_hold_the_key_carries_it_both_ways() {
    for hook in [Hook::Xdp, Hook::TcUplink] {
        for packet in [
            tcp(at(CLIENT), at(FRONTEND), SYN),
            udp(at(CLIENT), at(FRONTEND), b"a question"),
        ] {
            let (entry_node, backend_node) = (keyed(1, &REPLICAS, &[2]), keyed(2, &REPLICAS, &[1]));
            let there = sent(&entry_node, hook, &packet);
            assert_eq!(there.bytes[KEY_AT..KEY_AT + KEY_LENGTH], KEY.to_ne_bytes());
            assert_eq!(
                (there.bytes[GENEVE], there.bytes[GENEVE + 11]),
                (5, 4),
                "the lengths of RFC 8926"
            );
            assert_eq!(view_inner(&there).source, view(&packet).source);
            let mut delivered = there.received();
            run(&backend_node, Hook::TcUplink, &mut delivered);
            let received = view(&delivered);
            assert_eq!(received.source, at(CLIENT));
            assert_eq!(received.payload, view(&packet).payload);
            assert!(backend_node.is_keyed(1) && !backend_node.is_keyed(3));

            let reply = reply_to(&received, SYN | ACK, b"an answer");
            let back = sent(&backend_node, Hook::TcContainer, &reply);
            assert_eq!(back.bytes[KEY_AT..KEY_AT + KEY_LENGTH], KEY.to_ne_bytes());
            let answer = view(&sent(&entry_node, hook, &back));
            assert_eq!((answer.source, answer.destination), (at(FRONTEND), at(CLIENT)));
            assert_eq!(answer.payload, b"an answer");
            let inner = back.bytes.len() - ETHERNET_LENGTH - KEYED_OUTER_LENGTH;
            let counted = entry_node.counters(u32::from(view(&packet).protocol == PROTOCOL_UDP) * 2);
            assert_eq!(counted.bytes_out, inner as u64);
            assert_eq!(entry_node.all_drops() + backend_node.all_drops(), 0);
        }
    }
}

#[test]
fn a_wrong_key_is_dropped_from_every_peer() {
    let there = opening();
    for key in [0, KEY ^ 1, KEY ^ (1 << 63), KEY.swap_bytes() ^ 1] {
        let tables = keyed(2, &REPLICAS, &[]);
        check_dropped(&tables, &with_key(&there, key), DropReason::NoKey);
        assert!(!tables.is_keyed(1));
        assert_eq!(tables.flow_count(), 0);
    }
    assert_eq!(
        delivered_to(&keyed(2, &REPLICAS, &[]), &with_key(&there, OLD_KEY)),
        1,
        "the key before is valid as well"
    );
}

#[test]
fn a_packet_without_a_key_is_dropped_once_its_peer_has_sent_one() {
    let tables = keyed(2, &REPLICAS, &[1]);
    let without = encapsulated(&node(1), SYN);
    assert_eq!(delivered_to(&tables, &without), 1, "of an earlier release");
    delivered_to(&tables, &opening());
    check_dropped(&tables, &without, DropReason::NoKey);
    // Replies too, and what a peer says that it cannot deliver.
    for kind in [GeneveKind::Reply, GeneveKind::Undeliverable, GeneveKind::Probe] {
        let frame = with(without.clone(), GENEVE + 10, &[kind as u8]);
        check_dropped(&tables, &frame, DropReason::NoKey);
    }
    // Another peer may be of an earlier release.
    let mut other = with(without, OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut other.bytes, OUTER);
    delivered_to(&tables, &other);
}

#[test]
fn a_node_without_keys_accepts_any_and_none() {
    let tables = node(2);
    let there = opening();
    assert_eq!(delivered_to(&tables, &with_key(&there, 99)), 1);
    assert!(!tables.is_keyed(1), "it cannot tell");
    assert_eq!(delivered_to(&tables, &encapsulated(&node(1), SYN)), 1);
}

#[test]
fn a_frame_with_a_key_cut_anywhere_is_dropped() {
    let whole = opening();
    let tables = keyed(2, &REPLICAS, &[1]);
    for length in OUTER + 28..whole.bytes.len() {
        let mut frame = whole.clone();
        frame.bytes.truncate(length);
        let mut frame = with(frame, OUTER + 2, &((length - OUTER) as u16).to_be_bytes());
        fix_ip_checksum(&mut frame.bytes, OUTER);
        for hook in [Hook::Xdp, Hook::TcUplink] {
            let decision = decide(&frame, &tables, hook).verdict();
            assert!(
                matches!(decision, Verdict::Drop(_)),
                "cut at {length}: {decision:?}"
            );
        }
    }
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn the_two_lengths_must_agree() {
    let there = opening();
    for (version, option) in [(5, 2), (3, 4), (4, 3), (7, 6)] {
        let frame = with(with(there.clone(), GENEVE, &[version]), GENEVE + 11, &[option]);
        check_dropped(&keyed(2, &REPLICAS, &[]), &frame, DropReason::BadGeneve);
    }
}

#[test]
fn what_comes_back_carries_the_key_and_goes_to_another_node_with_it() {
    for packet in [
        tcp(at(CLIENT), at(FRONTEND), SYN),
        udp(at(CLIENT), at(FRONTEND), b"a question"),
    ] {
        let entry_node = keyed(1, &ELSEWHERE, &[2, 3]);
        let [there, back] = sent_back(&entry_node, &packet);
        assert_eq!(back.bytes[GENEVE + 10], GeneveKind::Undeliverable as u8);
        assert_eq!(back.bytes[KEY_AT..], there.bytes[KEY_AT..]);
        let again = sent(&entry_node, Hook::TcUplink, &back);
        assert_eq!(again.bytes[OUTER + 19], 3);
        assert_eq!(delivered_to(&keyed(3, &ELSEWHERE, &[1]), &again), 2);
        assert_eq!(entry_node.events(Event::FlowMoved), 1);
    }
}

#[test]
fn a_client_is_refused_when_no_other_node_takes_a_packet_with_a_key() {
    let entry_node = keyed(1, &[Replica::on(2, 1)], &[2]);
    let [_, back] = sent_back(&entry_node, &tcp(at(CLIENT), at(FRONTEND), SYN));
    let answer = view(&sent(&entry_node, Hook::TcUplink, &back));
    assert_eq!((answer.source, answer.destination), (at(FRONTEND), at(CLIENT)));
    assert_eq!(answer.flags, RST | ACK);
}

#[test]
fn what_comes_back_does_not_change_its_form_for_a_node_of_an_earlier_release() {
    let entry_node = keyed(1, &ELSEWHERE, &[2]);
    let packet = tcp(at(CLIENT), at(FRONTEND), SYN);
    let [_, mut back] = sent_back(&entry_node, &packet);
    assert_eq!(run(&entry_node, Hook::TcUplink, &mut back), Action::Drop);
    assert_eq!(entry_node.drops(Hook::TcUplink, DropReason::RewriteFailed), 1);
    // The flow has moved, so the client's next try gets there.
    let again = sent(&entry_node, Hook::TcUplink, &packet);
    assert_eq!((again.bytes[OUTER + 19], again.bytes[GENEVE]), (3, 3));
}
