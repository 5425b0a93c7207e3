//! Decisions about packets that arrive through the tunnel.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;
use crate::{
    abi::{BACKEND_LOCAL, BackendKey, Progress},
    bytes::Be16,
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, CLIENT_ROUTE, FIN, GENEVE_PORT, RST, Replica, SYN, TestFrame, TestTables, at, decide,
        fix_ip_checksum, node_address, reply_to, run, tcp, udp, view, view_inner,
    },
    verdict::{Action, Verdict},
};

mod keys;
mod malformed;
mod replies;
mod returned;

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const OUTER: usize = ETHERNET_LENGTH;
const GENEVE: usize = OUTER + 28;
const INNER: usize = OUTER + OUTER_LENGTH;

/// Both replicas of the service run on node 2.
const REPLICAS: [Replica; 2] = [Replica::on(2, 1), Replica::on(2, 2)];

fn node(number: u8) -> TestTables {
    TestTables::node(number).publish(PROTOCOL_TCP, 9200, &REPLICAS)
}

/// What node 1 sends to node 2 for a client's packet.
fn encapsulated(entry_node: &TestTables, flags: u8) -> TestFrame {
    let mut frame = tcp(at(CLIENT), at(FRONTEND), flags);
    let action = run(entry_node, Hook::Xdp, &mut frame);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    frame.received()
}

#[track_caller]
fn check_dropped(tables: &TestTables, frame: &TestFrame, expect: DropReason) {
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let decision = decide(frame, tables, hook).verdict();
        assert!(
            matches!(decision, Verdict::Drop(reason) if reason == expect),
            "at {hook:?}: {decision:?}"
        );
    }
}

#[track_caller]
fn check_passes(tables: &TestTables, frame: &TestFrame) {
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let decision = decide(frame, tables, hook).verdict();
        assert!(matches!(decision, Verdict::Pass), "at {hook:?}: {decision:?}");
    }
}

/// The replica that node 2 delivers to, by its number.
#[track_caller]
fn delivered_to(tables: &TestTables, frame: &TestFrame) -> u32 {
    match decide(frame, tables, Hook::TcUplink).verdict() {
        Verdict::Deliver {
            backend,
            flow,
            decapsulate: true,
        } => {
            assert_eq!(flow.generation(), backend.generation);
            backend.interface - 100
        }
        other => panic!("not delivered: {other:?}"),
    }
}

fn with(mut frame: TestFrame, offset: usize, bytes: &[u8]) -> TestFrame {
    frame.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_clients_packet_is_delivered_to_the_backend_it_names() {
    let entry_node = node(1);
    let frame = encapsulated(&entry_node, SYN);
    assert_eq!(delivered_to(&node(2), &frame), 1);
}

#[test]
fn a_short_packet_of_another_network_passes() {
    let node_two = SocketAddrV4::new(node_address(2), GENEVE_PORT);
    let theirs = udp(at("10.0.0.1:50000"), node_two, &[0, 0, 0x65, 0x58, 0, 0, 1, 0]);
    let tables = node(2);
    let cut = udp(at("10.0.0.1:50000"), node_two, &[0; 7]);
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let decision = decide(&theirs, &tables, hook).verdict();
        assert!(matches!(decision, Verdict::Pass), "{decision:?}");
        let decision = decide(&cut, &tables, hook).verdict();
        assert!(
            matches!(decision, Verdict::Drop(DropReason::Truncated)),
            "{decision:?}"
        );
    }
}

#[test]
fn packets_for_this_node_are_left_to_tc() {
    let tables = node(2);
    let decision = decide(&encapsulated(&node(1), SYN), &tables, Hook::Xdp).verdict();
    assert!(matches!(decision, Verdict::Pass), "{decision:?}");
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn others_networks_pass() {
    let frame = encapsulated(&node(1), SYN);
    check_passes(&node(2), &with(frame.clone(), GENEVE + 4, &[0, 0, 1]));
    // Whatever else they are.
    let frame = with(frame, GENEVE + 4, &[0, 0, 1]);
    check_passes(&node(2), &with(frame, GENEVE, &[0xc0, 0xff]));
}

#[test]
fn geneve_to_another_address_or_port_is_not_ours() {
    let mut frame = with(encapsulated(&node(1), SYN), OUTER + 16, &[10, 0, 0, 77]);
    fix_ip_checksum(&mut frame.bytes, OUTER);
    check_passes(&node(2), &frame);
    check_passes(
        &node(2),
        &with(encapsulated(&node(1), SYN), OUTER + 22, &6082_u16.to_be_bytes()),
    );
}

#[test]
fn a_backend_that_is_not_here_is_unknown() {
    let frame = encapsulated(&node(1), SYN);
    let unknown = |tables: &TestTables, frame: &TestFrame| {
        let decision = decide(frame, tables, Hook::TcUplink).verdict();
        assert!(
            matches!(
                decision,
                Verdict::SendBack {
                    peer: 1,
                    reason: DropReason::UnknownBackend
                }
            ),
            "{decision:?}"
        );
        assert_eq!(tables.flow_count(), 0);
    };
    // Another address, port, tag; another published port; a slot that is empty, or another node's.
    unknown(&node(2), &with(frame.clone(), GENEVE + 12, &[10, 200, 0, 77]));
    unknown(&node(2), &with(frame.clone(), GENEVE + 16, &[0, 81]));
    unknown(&node(2), &with(frame.clone(), GENEVE + 18, &[0, 0]));
    unknown(
        &node(2),
        &with(frame.clone(), INNER + 22, &9201_u16.to_be_bytes()),
    );
    let mut tables = node(2);
    tables.backends[0].generation = 0;
    unknown(&tables, &frame);
    let mut tables = node(2);
    tables.backends.clear();
    unknown(&tables, &frame);
    let elsewhere = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[Replica::on(3, 1)]);
    unknown(&elsewhere, &frame);
}

#[test]
fn a_backend_gone_in_the_middle_of_a_flow_is_unknown() {
    let (entry_node, mut tables) = (node(1), node(2));
    assert_eq!(delivered_to(&tables, &encapsulated(&entry_node, SYN)), 1);
    // Its address has been given to another task.
    tables.backends[0].generation += 1;
    tables.backends[0].tag = Be16::new(0x1111);
    let decision = decide(&encapsulated(&entry_node, ACK), &tables, Hook::TcUplink).verdict();
    assert!(
        matches!(
            decision,
            Verdict::SendBack {
                peer: 1,
                reason: DropReason::UnknownBackend
            }
        ),
        "{decision:?}"
    );
}

#[test]
fn a_flow_that_was_forgotten_is_opened_again_by_any_packet() {
    let (entry_node, tables) = (node(1), node(2));
    delivered_to(&tables, &encapsulated(&entry_node, SYN));
    tables.forget_flows();
    assert_eq!(delivered_to(&tables, &encapsulated(&entry_node, ACK)), 1);
    assert_eq!(tables.flow_count(), 2);
}

#[test]
fn an_entry_node_that_chooses_another_backend_is_followed() {
    let (entry_node, tables) = (node(1), node(2));
    assert_eq!(delivered_to(&tables, &encapsulated(&entry_node, SYN)), 1);
    encapsulated(&entry_node, RST);
    let frame = encapsulated(&entry_node, SYN);
    assert_eq!(frame.bytes[GENEVE + 15], 2, "the entry node chose the next");
    assert_eq!(delivered_to(&tables, &frame), 2);
    assert_eq!(delivered_to(&tables, &encapsulated(&entry_node, ACK)), 2);
}

#[test]
fn another_entry_node_is_followed() {
    let tables = node(2);
    let frame = encapsulated(&node(1), SYN);
    delivered_to(&tables, &frame);
    let mut other = with(frame, OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut other.bytes, OUTER);
    match decide(&other, &tables, Hook::TcUplink).verdict() {
        Verdict::Deliver { flow, .. } => {
            assert_eq!((flow.peer(), flow.peer_address()), (3, node_address(3).into()));
        }
        decision => panic!("{decision:?}"),
    }
}

#[test]
fn a_port_used_again_gets_the_way_back_again() {
    let tables = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[Replica::on(2, 1)]);
    let entry_node = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[Replica::on(2, 1)]);
    for flags in [SYN, RST] {
        run(&tables, Hook::TcUplink, &mut encapsulated(&entry_node, flags));
    }
    // The same port of the client dials the backend's own node, and takes the way back with it.
    for flags in [SYN, RST] {
        run(
            &tables,
            Hook::TcUplink,
            &mut tcp(at(CLIENT), at("10.0.0.2:9200"), flags),
        );
    }
    let mut frame = encapsulated(&entry_node, SYN);
    run(&tables, Hook::TcUplink, &mut frame);
    let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
    run(&tables, Hook::TcContainer, &mut reply);
    assert_eq!(
        &reply.bytes[OUTER + 16..OUTER + 20],
        &node_address(1).octets(),
        "to the entry node"
    );
}

#[test]
fn the_way_back_is_as_the_entry_node_says() {
    let tables = node(2);
    let direct = node(1).direct();
    for (entry_node, origin) in [(&node(1), Origin::TUNNEL), (&direct, Origin::TUNNEL_DIRECT)] {
        match decide(&encapsulated(entry_node, SYN), &tables, Hook::TcUplink).verdict() {
            Verdict::Deliver { flow, .. } => assert_eq!(flow.origin(), origin),
            decision => panic!("{decision:?}"),
        }
    }
}

#[test]
fn backends_are_named_by_address_published_port_and_protocol() {
    let tables = TestTables::node(2)
        .publish(PROTOCOL_UDP, 9200, &REPLICAS)
        .publish(PROTOCOL_TCP, 9200, &REPLICAS);
    let key = BackendKey {
        address: Ipv4Addr::new(10, 200, 0, 1).into(),
        port: Be16::new(9200),
        protocol: u16::from(PROTOCOL_TCP),
    };
    match decide(&encapsulated(&node(1), SYN), &tables, Hook::TcUplink).verdict() {
        Verdict::Deliver { flow, .. } => {
            assert_eq!(Some(flow.backend()), tables.backend_index(&key));
        }
        decision => panic!("{decision:?}"),
    }
}

#[test]
fn a_backend_that_has_changed_under_its_name_is_delivered_to_as_it_is() {
    let (entry_node, mut tables) = (node(1), node(2));
    delivered_to(&tables, &encapsulated(&entry_node, SYN));
    tables.backends[0].generation += 1;
    // `delivered_to` compares the generations.
    assert_eq!(delivered_to(&tables, &encapsulated(&entry_node, ACK)), 1);
}

#[test]
fn a_flow_follows_its_entry_nodes_index_and_address() {
    let (entry_node, mut tables) = (node(1), node(2));
    let frame = encapsulated(&entry_node, SYN);
    delivered_to(&tables, &frame);
    let check = |tables: &TestTables, frame: &TestFrame, peer: u32, address: Ipv4Addr| {
        delivered_to(tables, frame);
        let key = parse(frame, INNER).expect("a packet").key;
        let flow = tables.flow(&key).expect("a flow");
        assert_eq!((flow.peer(), flow.peer_address()), (peer, address.into()));
    };
    check(&tables, &frame, 1, node_address(1));
    // The same address at another index.
    tables.peers.insert(node_address(1).into(), 3);
    check(&tables, &frame, 3, node_address(1));
    // Another address at the same index.
    let mut moved = with(frame, OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut moved.bytes, OUTER);
    check(&tables, &moved, 3, node_address(3));
}
