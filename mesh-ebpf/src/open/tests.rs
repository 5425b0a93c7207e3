//! Flows that would have the same tuple on the backend's side, and the entries that distinguish them.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use super::*;
use crate::{
    abi::{FrontendKey, Hook},
    headers::{ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP},
    parse::parse,
    testing::{
        ACK, CLIENT_ROUTE, FIN, RST, Replica, SYN, TestFrame, TestTables, at, node_address, reply_to, run,
        tcp, view, view_inner,
    },
    verdict::Action,
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
/// Another address of node 1.
const FLOATING: &str = "10.0.0.100:9200";

fn node(replica: Replica) -> TestTables {
    let mut tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[replica]);
    let floating = FrontendKey {
        address: (*at(FLOATING).ip()).into(),
        port: Be16::new(9200),
        protocol: u16::from(PROTOCOL_TCP),
    };
    tables.frontends.insert(floating, 0);
    tables
}

/// The tuple as it reaches the container of a node.
fn delivered(tables: &TestTables, hook: Hook, source: &str, destination: &str, flags: u8) -> TestFrame {
    let mut frame = tcp(at(source), at(destination), flags);
    let action = run(tables, hook, &mut frame);
    assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
    frame
}

fn presented(tables: &TestTables, hook: Hook, source: &str, destination: &str) -> SocketAddrV4 {
    view(&delivered(tables, hook, source, destination, SYN)).source
}

/// Checks that the container's answer comes back from what was dialled.
fn check_back(tables: &TestTables, presented: SocketAddrV4, source: &str, destination: &str) {
    let mut reply = tcp(at("172.18.0.1:80"), presented, SYN | ACK).routed(CLIENT_ROUTE);
    let action = run(tables, Hook::TcContainer, &mut reply);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    let reply = view(&reply);
    assert_eq!((reply.source, reply.destination), (at(destination), at(source)));
}

fn entry_of(tables: &TestTables, source: &str, destination: &str) -> Flow {
    let frame = tcp(at(source), at(destination), ACK);
    let key = parse(&frame, ETHERNET_LENGTH).expect("a packet").key;
    tables.flow(&key).expect("a flow").copy()
}

#[test]
fn one_port_to_two_frontends_of_one_container_gets_two_tuples() {
    let tables = node(Replica::on(1, 1));
    let first = presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    let second = presented(&tables, Hook::TcUplink, CLIENT, FLOATING);
    assert_eq!(first, at(CLIENT));
    assert_eq!(
        second.ip(),
        at(CLIENT).ip(),
        "the client's address is never translated"
    );
    assert_ne!(first.port(), second.port());
    check_back(&tables, first, CLIENT, FRONTEND);
    check_back(&tables, second, CLIENT, FLOATING);
    // And stays so for what follows.
    assert_eq!(presented(&tables, Hook::TcUplink, CLIENT, FLOATING), second);
    let data = view(&delivered(&tables, Hook::TcUplink, CLIENT, FLOATING, ACK));
    assert_eq!(data.source, second);
}

#[test]
fn two_containers_with_one_port_are_distinguished() {
    let tables = node(Replica::on(1, 1));
    let (one, other) = ("172.18.0.8:40000", "172.18.0.9:40000");
    let first = presented(&tables, Hook::TcContainer, one, FRONTEND);
    let second = presented(&tables, Hook::TcContainer, other, FRONTEND);
    assert_eq!((*first.ip(), first.port()), (node_address(1), 40000));
    assert_eq!(*second.ip(), node_address(1));
    assert_ne!(first, second);
    check_back(&tables, first, one, FRONTEND);
    check_back(&tables, second, other, FRONTEND);
}

#[test]
fn two_containers_with_one_port_are_distinguished_by_a_remote_backend() {
    let tables = node(Replica::on(2, 1));
    let containers = ["172.18.0.8:40000", "172.18.0.9:40000"];
    let remote = TestTables::node(2).publish(PROTOCOL_TCP, 9200, &[Replica::on(2, 1)]);
    let mut sources = BTreeSet::new();
    for container in containers {
        let mut frame = tcp(at(container), at(FRONTEND), SYN);
        run(&tables, Hook::TcContainer, &mut frame);
        let inner = view_inner(&frame);
        assert_eq!(
            (*inner.source.ip(), inner.destination),
            (node_address(1), at(FRONTEND))
        );
        sources.insert(inner.source);
        let mut frame = frame.received();
        run(&remote, Hook::TcUplink, &mut frame);
        let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
        run(&remote, Hook::TcContainer, &mut reply);
        let mut reply = reply.received().routed(CLIENT_ROUTE);
        run(&tables, Hook::TcUplink, &mut reply);
        let reply = view(&reply);
        assert_eq!((reply.source, reply.destination), (at(FRONTEND), at(container)));
    }
    assert_eq!(sources.len(), 2);
}

#[test]
fn a_network_client_of_a_remote_backend_needs_one_entry_and_a_container_an_alias() {
    let tables = node(Replica::on(2, 1));
    run(&tables, Hook::TcUplink, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
    assert_eq!(tables.flow_count(), 1);
    let container = "172.18.0.8:40000";
    run(
        &tables,
        Hook::TcContainer,
        &mut tcp(at(container), at(FRONTEND), SYN),
    );
    assert_eq!(tables.flow_count(), 3);
    let alias = entry_of(&tables, "10.0.0.1:40000", FRONTEND);
    assert_eq!(alias.role, Role::ALIAS);
    assert_eq!(alias.client.address, Be32::from(*at(container).ip()));
}

#[test]
fn a_local_backends_flow_has_an_entry_for_replies() {
    let tables = node(Replica::on(1, 1));
    run(&tables, Hook::TcUplink, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
    assert_eq!(tables.flow_count(), 2);
    assert_eq!(entry_of(&tables, CLIENT, FRONTEND).role, Role::FORWARD);
    assert_eq!(entry_of(&tables, "172.18.0.1:80", CLIENT).role, Role::REPLY);
}

#[test]
fn a_flow_that_finds_no_port_is_dropped_and_counted() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcContainer, "172.18.0.10:40000", FRONTEND);
    // The one number that it draws is of a port that is taken.
    tables.fix_random(40000 - 1024);
    let mut frame = tcp(at("172.18.0.11:40000"), at(FRONTEND), SYN);
    assert_eq!(run(&tables, Hook::TcContainer, &mut frame), Action::Drop);
    assert_eq!(tables.drops(Hook::TcContainer, DropReason::NoFreePort), 1);
    assert_eq!(tables.counters(0).connections, 1);
}

#[test]
fn the_port_of_a_closed_flow_is_free() {
    for ends in [&[RST][..], &[FIN | ACK]] {
        let tables = node(Replica::on(1, 1));
        let first = presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
        for flags in ends {
            delivered(&tables, Hook::TcUplink, CLIENT, FRONTEND, *flags);
        }
        // A FIN of one side alone leaves the flow half open.
        if ends[0] & FIN != 0 {
            let mut reply = tcp(at("172.18.0.1:80"), first, FIN | ACK).routed(CLIENT_ROUTE);
            run(&tables, Hook::TcContainer, &mut reply);
        }
        assert_eq!(presented(&tables, Hook::TcUplink, CLIENT, FLOATING), at(CLIENT));
    }
}

#[test]
fn the_port_of_a_half_closed_flow_is_held() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    delivered(&tables, Hook::TcUplink, CLIENT, FRONTEND, FIN | ACK);
    assert_ne!(presented(&tables, Hook::TcUplink, CLIENT, FLOATING), at(CLIENT));
}

#[test]
fn the_port_of_a_flow_that_was_evicted_is_free() {
    let tables = node(Replica::on(1, 1));
    delivered(&tables, Hook::TcUplink, CLIENT, FRONTEND, SYN);
    let reply_key = parse(&tcp(at("172.18.0.1:80"), at(CLIENT), ACK), ETHERNET_LENGTH)
        .expect("a packet")
        .key;
    let orphan = tables.flow(&reply_key).expect("an entry").copy();
    tables.forget_flows();
    tables.put_flow(&reply_key, &orphan).expect("room");
    assert_eq!(presented(&tables, Hook::TcUplink, CLIENT, FLOATING), at(CLIENT));
    check_back(&tables, at(CLIENT), CLIENT, FLOATING);
}

#[test]
fn a_flow_opened_anew_takes_its_own_port_again() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    delivered(&tables, Hook::TcUplink, CLIENT, FRONTEND, RST);
    assert_eq!(presented(&tables, Hook::TcUplink, CLIENT, FRONTEND), at(CLIENT));
    assert_eq!(tables.counters(0).connections, 2);
    assert_eq!(tables.flow_count(), 2);
}

#[test]
fn protocols_do_not_collide() {
    let tables = node(Replica::on(1, 1)).publish(PROTOCOL_UDP, 9200, &[Replica::on(1, 1)]);
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    let mut frame = crate::testing::udp(at(CLIENT), at(FRONTEND), b"x");
    run(&tables, Hook::TcUplink, &mut frame);
    assert_eq!(view(&frame).source, at(CLIENT));
}

#[test]
fn candidates_are_all_ports_but_those_of_the_system() {
    let candidates: BTreeSet<u16> = (0..=0xffff).map(|random| candidate(random).get()).collect();
    assert!(candidates.into_iter().eq(1024..=u16::MAX));
}

#[test]
fn thirty_flows_from_one_port_all_find_another() {
    let tables = node(Replica::on(1, 1));
    let mut seen = BTreeSet::new();
    for container in 1..=30 {
        let client = format!("172.18.0.{}:40000", 100 + container);
        seen.insert(presented(&tables, Hook::TcContainer, &client, FRONTEND));
    }
    assert_eq!(seen.len(), 30, "{seen:?}");
}

#[test]
fn a_flow_keeps_what_it_was_opened_with() {
    let tables = node(Replica::on(1, 1));
    run(&tables, Hook::TcUplink, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
    let flow = entry_of(&tables, CLIENT, FRONTEND);
    let client = Endpoint::new(Ipv4Addr::new(192, 0, 2, 7).into(), Be16::new(40000));
    assert_eq!(flow.client, client);
    assert_eq!(flow.presented, client);
    assert_eq!(
        flow.frontend,
        Endpoint::new(node_address(1).into(), Be16::new(9200))
    );
    assert_eq!((flow.backend, flow.generation, flow.seen), (0, 1, 1000));
    assert_eq!(
        (flow.origin, flow.role, flow.opening),
        (Origin::UPLINK, Role::FORWARD, Opening::asked(0))
    );
}

/// Opens the client's flow to the floating address, and checks whether it keeps the client's port.
fn check_floating_port(tables: &TestTables, is_free: bool) {
    let found = presented(tables, Hook::TcUplink, CLIENT, FLOATING);
    assert_eq!(found == at(CLIENT), is_free, "presented as {found}");
    check_back(tables, found, CLIENT, FLOATING);
}

fn reply_key() -> FlowKey {
    let reply = tcp(at("172.18.0.1:80"), at(CLIENT), ACK);
    parse(&reply, ETHERNET_LENGTH).expect("a packet").key
}

fn change_entry(tables: &TestTables, key: &FlowKey, change: impl FnOnce(&mut Flow)) {
    let mut flow = tables.flow(key).expect("an entry").copy();
    change(&mut flow);
    tables.put_flow(key, &flow).expect("room");
}

fn forward_key_of_the_first() -> FlowKey {
    let frame = tcp(at(CLIENT), at(FRONTEND), ACK);
    parse(&frame, ETHERNET_LENGTH).expect("a packet").key
}

#[test]
fn a_live_flows_port_is_held() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    check_floating_port(&tables, false);
}

#[test]
fn a_port_that_its_flow_has_given_up_is_free() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    change_entry(&tables, &forward_key_of_the_first(), |flow| {
        flow.presented.port = Be16::new(1025);
    });
    check_floating_port(&tables, true);
}

#[test]
fn a_port_towards_a_backend_that_its_flow_has_left_is_free() {
    let tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    change_entry(&tables, &forward_key_of_the_first(), |flow| flow.backend = 7);
    check_floating_port(&tables, true);
}

#[test]
fn a_port_towards_a_backend_that_is_gone_is_free() {
    let mut tables = node(Replica::on(1, 1));
    presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    tables.backends[0].generation += 1;
    check_floating_port(&tables, true);
}

#[test]
fn an_entry_of_another_role_does_not_hold_a_port() {
    let tables = node(Replica::on(1, 1));
    // What would hold it by all but its role: an entry that is its own forward entry.
    let container = Endpoint::new(Ipv4Addr::new(172, 18, 0, 1).into(), Be16::new(80));
    let client = Endpoint::new((*at(CLIENT).ip()).into(), Be16::new(at(CLIENT).port()));
    let flow = Flow {
        client: container,
        frontend: client,
        presented: client,
        generation: 1,
        origin: Origin::CONTAINER,
        role: Role::FORWARD,
        ..Flow::default()
    };
    tables.put_flow(&reply_key(), &flow).expect("room");
    check_floating_port(&tables, true);
    assert_eq!(tables.flow(&reply_key()).expect("an entry").role(), Role::REPLY);
}

/// What the container of [`Replica::on`] node 1 sees instead of clients of a network.
fn hide(tables: &mut TestTables, network: &str, source: Ipv4Addr) {
    let address = Be32::from(*at(&format!("{network}:0")).ip());
    tables
        .masquerades
        .insert((Replica::on(1, 1).interface(), address.get() >> 8), source.into());
}

#[test]
fn a_client_whom_the_container_would_answer_by_its_own_network_gets_another_source() {
    let mut tables = node(Replica::on(1, 1));
    hide(&mut tables, "192.0.2.0", node_address(1));
    let first = presented(&tables, Hook::TcUplink, CLIENT, FRONTEND);
    assert_eq!((*first.ip(), first.port()), (node_address(1), 40000));
    check_back(&tables, first, CLIENT, FRONTEND);
    let data = delivered(&tables, Hook::TcUplink, CLIENT, FRONTEND, ACK);
    assert_eq!(view(&data).source, first);
    // Another one with the same port is distinguished.
    let second = presented(&tables, Hook::TcUplink, "192.0.2.8:40000", FRONTEND);
    assert_eq!(second.ip(), first.ip());
    assert_ne!(second, first);
    check_back(&tables, second, "192.0.2.8:40000", FRONTEND);
    let other = "198.51.100.7:40000";
    assert_eq!(presented(&tables, Hook::TcUplink, other, FRONTEND), at(other));
}

#[test]
fn what_counts_is_the_source_that_the_container_would_see() {
    let mut tables = node(Replica::on(1, 1));
    let gateway = Ipv4Addr::new(172, 18, 0, 254);
    // The container that connects is of this network, but is seen as its node.
    hide(&mut tables, "172.18.0.0", gateway);
    let container = "172.18.0.8:40000";
    let seen = presented(&tables, Hook::TcContainer, container, FRONTEND);
    assert_eq!(*seen.ip(), node_address(1));
    let mut tables = node(Replica::on(1, 1));
    hide(&mut tables, "10.0.0.0", gateway);
    let seen = presented(&tables, Hook::TcContainer, container, FRONTEND);
    assert_eq!(*seen.ip(), gateway);
    check_back(&tables, seen, container, FRONTEND);
}
