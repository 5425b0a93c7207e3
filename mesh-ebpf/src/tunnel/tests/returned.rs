//! Packets that a backend's node cannot deliver: sent back, and given to another backend or refused by their
//! entry node.

use super::*;
use crate::{
    abi::{Event, FlowKey},
    breaker,
    testing::{SERVICE_ADDRESS, View},
};

/// One replica on each of the other nodes.
const ELSEWHERE: [Replica; 2] = [Replica::on(2, 1), Replica::on(3, 2)];

fn entry_node(replicas: &[Replica]) -> TestTables {
    TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, replicas)
        .publish(PROTOCOL_UDP, 9200, replicas)
}

/// A node that knows the services, but none of their replicas.
fn stale(number: u8) -> TestTables {
    TestTables::node(number)
        .publish(PROTOCOL_TCP, 9200, &[])
        .publish(PROTOCOL_UDP, 9200, &[])
}

/// What a node sends for a frame, as the next node receives it.
#[track_caller]
fn sent(tables: &TestTables, frame: &TestFrame) -> TestFrame {
    let mut frame = frame.received().routed(CLIENT_ROUTE);
    let action = run(tables, Hook::TcUplink, &mut frame);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    frame.received()
}

/// The nodes that an encapsulated frame goes from and to, and its kind.
fn outer(frame: &TestFrame) -> (u8, u8, u8) {
    (
        frame.bytes[OUTER + 15],
        frame.bytes[OUTER + 19],
        frame.bytes[GENEVE + 10],
    )
}

fn key(packet: &TestFrame) -> FlowKey {
    parse(packet, ETHERNET_LENGTH).expect("a packet").key
}

/// What comes back to node 1 for a client's packet that node 2 cannot deliver.
fn bounced(entry_node: &TestTables, packet: &TestFrame) -> TestFrame {
    let there = sent(entry_node, packet);
    assert_eq!(outer(&there), (1, 2, 0x81));
    sent(&stale(2), &there)
}

#[test]
fn an_undeliverable_packet_goes_back_to_the_peer_it_came_from_unchanged() {
    let there = sent(&entry_node(&ELSEWHERE), &tcp(at(CLIENT), at(FRONTEND), SYN));
    let tables = stale(2);
    let back = sent(&tables, &there);
    assert_eq!(outer(&back), (2, 1, GeneveKind::Undeliverable as u8));
    assert_eq!(back.bytes[..6], [2, 1, 0, 0, 0, 1]);
    assert_eq!(back.bytes[GENEVE + 11..], there.bytes[GENEVE + 11..]);
    view_inner(&back);
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::UnknownBackend), 1);
    assert_eq!(tables.events(Event::SentBack), 1);
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn what_the_flow_table_has_no_room_for_goes_back_too() {
    let there = sent(&entry_node(&ELSEWHERE), &tcp(at(CLIENT), at(FRONTEND), SYN));
    let tables = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &ELSEWHERE);
    tables.full.set(true);
    assert_eq!(outer(&sent(&tables, &there)).2, 0x84);
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::FlowTableFull), 1);
}

#[test]
fn a_packet_that_opens_its_flow_goes_to_another_backend_and_its_flow_with_it() {
    for packet in [
        tcp(at(CLIENT), at(FRONTEND), SYN),
        udp(at(CLIENT), at(FRONTEND), b"a question"),
    ] {
        let tables = entry_node(&ELSEWHERE);
        let again = sent(&tables, &bounced(&tables, &packet));
        assert_eq!(outer(&again), (1, 3, 0x81));
        assert_eq!(
            view_inner(&again),
            View {
                options: view_inner(&again).options,
                ..view(&packet)
            }
        );
        let third = TestTables::node(3)
            .publish(PROTOCOL_TCP, 9200, &ELSEWHERE)
            .publish(PROTOCOL_UDP, 9200, &ELSEWHERE);
        assert_eq!(delivered_to(&third, &again), 2);
        assert_eq!(tables.events(Event::FlowMoved), 1);
        assert_eq!(tables.all_drops(), 0);
        let flow = tables.flow(&key(&packet)).expect("a flow");
        assert_eq!(outer(&sent(&tables, &packet)), (1, 3, 0x81));
        assert_eq!(tables.counters(flow.backend()).connections, 1);
        assert_eq!(tables.counters(flow.backend()).packets_in, 2);
    }
}

#[test]
fn the_other_backend_may_be_on_the_entry_node() {
    let replicas = [Replica::on(2, 1), Replica::on(1, 2)];
    let tables = entry_node(&replicas);
    let packet = tcp(at(CLIENT), at(FRONTEND), SYN);
    let mut frame = bounced(&tables, &packet);
    let action = run(&tables, Hook::TcUplink, &mut frame);
    assert_eq!(
        action,
        Action::IntoContainer {
            interface: replicas[1].interface()
        }
    );
    let found = view(&frame);
    assert_eq!(found.source, at(CLIENT));
    assert_eq!(found.destination, SocketAddrV4::new(replicas[1].address(), 80));
    assert_eq!(tables.counters(1).packets_in, 1);
}

/// A container's packets leave the node from another address than its own.
#[test]
fn a_packet_of_a_container_is_given_to_another_backend_as_well() {
    let container = at("172.18.0.9:40000");
    for replicas in [ELSEWHERE, [Replica::on(2, 1), Replica::on(1, 2)]] {
        let tables = entry_node(&replicas);
        let mut frame = tcp(container, at(FRONTEND), SYN);
        run(&tables, Hook::TcContainer, &mut frame);
        let mut back = sent(&stale(2), &frame.received());
        assert_eq!(view_inner(&back).source, at("10.0.0.1:40000"));
        run(&tables, Hook::TcUplink, &mut back);
        let inner = if replicas[1].node == 1 {
            view(&back)
        } else {
            view_inner(&back)
        };
        assert_eq!(inner.source, at("10.0.0.1:40000"));
    }
}

#[test]
fn a_packet_of_an_open_connection_is_refused_and_the_flow_closed() {
    let tables = entry_node(&ELSEWHERE);
    sent(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
    let data = reply_to(
        &View {
            source: at(FRONTEND),
            destination: at(CLIENT),
            ..view(&tcp(at(FRONTEND), at(CLIENT), SYN | ACK))
        },
        ACK,
        b"data",
    );
    let mut frame = bounced(&tables, &data).routed(CLIENT_ROUTE);
    let action = run(&tables, Hook::TcUplink, &mut frame);
    assert_eq!(action, Action::Transmit { interface: 3 });
    let answer = view(&frame);
    assert_eq!((answer.source, answer.destination), (at(FRONTEND), at(CLIENT)));
    assert_eq!(
        (answer.flags, answer.sequence),
        (RST, view(&data).acknowledgement)
    );
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::Undeliverable), 1);
    assert!(tables.flow(&key(&data)).expect("a flow").is_closed());
    assert_eq!(tables.events(Event::FlowMoved), 0);
    // The next connection from that port gets a backend anew.
    assert_eq!(
        outer(&sent(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN))),
        (1, 3, 0x81)
    );
}

#[test]
fn a_local_process_and_a_container_are_refused_where_they_are() {
    let tables = entry_node(&[Replica::on(2, 1)]);
    let service = SocketAddrV4::new(SERVICE_ADDRESS, 9200);
    for (hook, source, target, action) in [
        (
            Hook::TcMesh0,
            at("10.0.0.1:40000"),
            service,
            Action::IntoHost { interface: 9 },
        ),
        (
            Hook::TcContainer,
            at("172.18.0.9:40001"),
            at(FRONTEND),
            Action::Transmit { interface: 3 },
        ),
    ] {
        let mut frame = tcp(source, target, SYN);
        run(&tables, hook, &mut frame);
        let mut back = sent(&stale(2), &frame.received()).routed(CLIENT_ROUTE);
        assert_eq!(run(&tables, Hook::TcUplink, &mut back), action);
        let answer = view(&back);
        assert_eq!((answer.source, answer.destination), (target, source));
        assert_eq!(answer.flags, RST | ACK);
    }
}

#[test]
fn a_datagram_that_no_backend_takes_is_refused_and_the_next_one_tries_again() {
    let packet = udp(at(CLIENT), at(FRONTEND), b"a question that is long enough");
    let tables = entry_node(&[Replica::on(2, 1)]);
    let mut frame = bounced(&tables, &packet).routed(CLIENT_ROUTE);
    assert!(matches!(
        run(&tables, Hook::TcUplink, &mut frame),
        Action::Transmit { interface: 3 }
    ));
    assert_eq!(
        (frame.bytes[23], frame.bytes[34], frame.bytes[35]),
        (1, 3, 3),
        "port unreachable"
    );
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::Undeliverable), 1);
    sent(&tables, &packet);
    assert!(!tables.flow(&key(&packet)).expect("a flow").is_closing());
}

/// Whatever the nodes know, a packet comes back a few times at most, and its client is answered or it is
/// delivered.
#[test]
fn a_packet_is_given_to_other_backends_a_few_times() {
    for packet in [
        tcp(at(CLIENT), at(FRONTEND), SYN),
        tcp(at(CLIENT), at(FRONTEND), ACK),
        udp(at(CLIENT), at(FRONTEND), b"a question that is long enough"),
    ] {
        for count in 1..=6 {
            let replicas: Vec<Replica> = (1..=count)
                .map(|number| Replica::on(2 + number % 2, number))
                .collect();
            let tables = entry_node(&replicas);
            if packet.bytes.get(47) == Some(&ACK) && view(&packet).protocol == PROTOCOL_TCP {
                sent(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
            }
            let mut frame = sent(&tables, &packet);
            let mut sent_back = 0;
            loop {
                let (_, to, kind) = outer(&frame);
                let at_entry = kind == 0x84;
                let tables = if at_entry { &tables } else { &stale(to) };
                sent_back += u32::from(!at_entry);
                let mut next = frame.received().routed(CLIENT_ROUTE);
                let action = run(tables, Hook::TcUplink, &mut next);
                if action == (Action::Transmit { interface: 3 }) {
                    assert!(at_entry);
                    break;
                }
                assert!(matches!(action, Action::Transmit { interface: 2 }), "{action:?}");
                frame = next.received();
            }
            let moves = if count == 1 { 0 } else { u32::from(Opening::MOVES) };
            assert!(sent_back <= moves + 1, "sent back {sent_back} times");
            assert_eq!(tables.drops(Hook::TcUplink, DropReason::Undeliverable), 1);
        }
    }
}

/// As on an entry node without an agent, of whose replicas most have been replaced.
#[test]
fn a_flow_moves_on_until_a_backend_takes_it() {
    let replicas = [(2, 1), (2, 2), (2, 3), (3, 4)].map(|(node, number)| Replica::on(node, number));
    let stale_entry_node = entry_node(&replicas);
    stale_entry_node.clock.set(10 * breaker::TRIAL_INTERVAL);
    let current = TestTables::node(3).publish(PROTOCOL_TCP, 9200, &replicas);
    for port in 40_000..40_040 {
        stale_entry_node.forget_flows();
        for backend in 0..4 {
            stale_entry_node.note_answer(backend);
        }
        let mut frame = sent(
            &stale_entry_node,
            &tcp(SocketAddrV4::new([192, 0, 2, 7].into(), port), at(FRONTEND), SYN),
        );
        while outer(&frame).1 != 3 {
            frame = sent(&stale(outer(&frame).1), &frame);
            frame = sent(&stale_entry_node, &frame);
        }
        assert_eq!(delivered_to(&current, &frame), 4);
    }
    assert_eq!(stale_entry_node.all_drops(), 0);
}

#[test]
fn a_backend_whose_container_is_gone_sends_back() {
    let replica = Replica::on(2, 1);
    let there = sent(&entry_node(&[replica]), &tcp(at(CLIENT), at(FRONTEND), SYN));
    let tables = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[replica]);
    let mut frame = there.received().without_interface(replica.interface());
    run(&tables, Hook::TcUplink, &mut frame);
    assert_eq!(outer(&frame).2, GeneveKind::Undeliverable as u8);
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn a_packet_under_way_while_its_flow_moves_follows_it() {
    let tables = entry_node(&ELSEWHERE);
    let packet = udp(at(CLIENT), at(FRONTEND), b"a question");
    let (first, second) = (bounced(&tables, &packet), bounced(&tables, &packet));
    for frame in [first, second] {
        assert_eq!(outer(&sent(&tables, &frame)), (1, 3, 0x81));
    }
    assert_eq!(tables.events(Event::FlowMoved), 1);
}

#[test]
fn only_the_node_of_the_flows_backend_is_believed() {
    let packet = tcp(at(CLIENT), at(FRONTEND), SYN);
    let dropped = |tables: &TestTables, frame: &TestFrame, expect: DropReason| {
        let decision = decide(frame, tables, Hook::TcUplink).verdict();
        assert!(
            matches!(decision, Verdict::Drop(reason) if reason == expect),
            "{decision:?}"
        );
        assert_eq!(tables.events(Event::FlowMoved), 0);
    };
    let from = |frame: &TestFrame, address: Ipv4Addr| {
        let mut frame = with(frame.clone(), OUTER + 12, &address.octets());
        fix_ip_checksum(&mut frame.bytes, OUTER);
        frame
    };
    let tables = entry_node(&ELSEWHERE);
    let back = bounced(&tables, &packet);
    dropped(&tables, &from(&back, node_address(3)), DropReason::UnknownFlow);
    dropped(&tables, &from(&back, node_address(77)), DropReason::UnknownPeer);
    // About another backend, another task, a flow that this node does not have or that is another node's.
    for (offset, bytes) in [
        (GENEVE + 12, &[10, 200, 0, 2][..]),
        (GENEVE + 18, &[1, 1]),
        (INNER + 20, &[1, 1]),
    ] {
        dropped(
            &tables,
            &with(back.clone(), offset, bytes),
            DropReason::UnknownFlow,
        );
    }
    let backend_node = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &ELSEWHERE);
    let there = sent(&tables, &packet);
    delivered_to(&backend_node, &there);
    let mut theirs = with(back, OUTER + 16, &node_address(2).octets());
    theirs = from(&theirs, node_address(3));
    dropped(&backend_node, &theirs, DropReason::UnknownFlow);
}

#[test]
fn a_backend_that_the_entry_node_no_longer_has_is_replaced_too() {
    let mut tables = entry_node(&ELSEWHERE);
    let back = bounced(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
    tables.backends[0].generation = 0;
    assert_eq!(outer(&sent(&tables, &back)), (1, 3, 0x81));
}

#[test]
fn only_the_node_of_a_backend_that_is_gone_is_believed() {
    let mut tables = entry_node(&ELSEWHERE);
    let back = bounced(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
    tables.backends[0].generation = 0;
    let mut forged = with(back, OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut forged.bytes, OUTER);
    let decision = decide(&forged, &tables, Hook::TcUplink).verdict();
    assert!(
        matches!(decision, Verdict::Drop(DropReason::UnknownFlow)),
        "{decision:?}"
    );
    assert_eq!(tables.events(Event::FlowMoved), 0);
}

#[test]
fn direct_return_is_kept() {
    let tables = entry_node(&ELSEWHERE).direct();
    let there = sent(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
    assert_eq!(outer(&there), (1, 2, 0x82));
    assert_eq!(outer(&sent(&tables, &sent(&stale(2), &there))), (1, 3, 0x82));
}

#[test]
fn what_came_back_is_left_to_tc() {
    let tables = entry_node(&ELSEWHERE);
    let back = bounced(&tables, &tcp(at(CLIENT), at(FRONTEND), SYN));
    let decision = decide(&back, &tables, Hook::Xdp).verdict();
    assert!(matches!(decision, Verdict::Pass), "{decision:?}");
    assert_eq!(tables.events(Event::FlowMoved), 0);
}
