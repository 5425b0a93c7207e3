//! Which of a container's packets are replies.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::{Hook, Progress},
    frame::Frame,
    headers::{ETHERNET_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP},
    parse::parse,
    testing::{
        ACK, FIN, INNER_MTU, RST, Replica, SYN, TestFrame, TestTables, at, decide, run, tcp, udp, view_inner,
    },
    verdict::Verdict,
};

const CLIENT: &str = "192.0.2.7:40000";
const CONTAINER: &str = "172.18.0.1:80";

/// Node 1 with an open flow from the client to the container.
fn open() -> TestTables {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[Replica::on(1, 1)]);
    run(
        &tables,
        Hook::TcUplink,
        &mut tcp(at(CLIENT), at("10.0.0.1:9200"), SYN),
    );
    tables
}

fn check(tables: &TestTables, frame: &TestFrame, is_reply: bool) {
    let decision = decide(frame, tables, Hook::TcContainer).verdict();
    let found = matches!(decision, Verdict::Reply { .. });
    assert!(
        found == is_reply && (found || matches!(decision, Verdict::Pass)),
        "{decision:?}"
    );
}

#[test]
fn a_packet_of_a_flow_is_a_reply() {
    check(&open(), &tcp(at(CONTAINER), at(CLIENT), SYN | ACK), true);
    check(&open(), &tcp(at(CONTAINER), at(CLIENT), RST), true);
}

#[test]
fn a_containers_own_traffic_passes() {
    for (source, destination) in [
        (CONTAINER, "192.0.2.7:40001"),
        (CONTAINER, "192.0.2.8:40000"),
        ("172.18.0.1:81", CLIENT),
        ("172.18.0.2:80", CLIENT),
    ] {
        check(&open(), &tcp(at(source), at(destination), ACK), false);
    }
    check(&open(), &udp(at(CONTAINER), at(CLIENT), b"x"), false);
}

#[test]
fn a_reply_is_one_at_its_containers_veth_only() {
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let frame = tcp(at(CONTAINER), at(CLIENT), ACK);
        assert!(matches!(decide(&frame, &open(), hook).verdict(), Verdict::Pass));
    }
}

#[test]
fn what_a_successor_of_the_container_sends_is_its_own() {
    let mut tables = open();
    tables.backends[0].generation += 1;
    check(&tables, &tcp(at(CONTAINER), at(CLIENT), ACK), false);
}

#[test]
fn a_reply_notes_the_backends_progress_at_the_flows_forward_entry() {
    for (flags, progress) in [
        (ACK, Progress::OPEN),
        (FIN | ACK, Progress::FINISHED),
        (RST, Progress::RESET),
    ] {
        let tables = open();
        check(&tables, &tcp(at(CONTAINER), at(CLIENT), flags), true);
        let forward = tcp(at(CLIENT), at("10.0.0.1:9200"), ACK);
        let key = parse(&forward, ETHERNET_LENGTH).expect("a packet").key;
        let flow = tables.flow(&key).expect("a flow");
        assert_eq!(
            (flow.from_backend(), flow.from_client()),
            (progress, Progress::OPEN)
        );
    }
}

#[test]
fn a_reply_is_seen() {
    let mut tables = open();
    tables.config_mut().now = 2000;
    let frame = tcp(at(CONTAINER), at(CLIENT), ACK);
    check(&tables, &frame, true);
    let key = parse(&frame, ETHERNET_LENGTH).expect("a packet").key;
    assert_eq!(tables.flow(&key).expect("a flow").seen(), 2000);
}

/// Node 2, with a flow of UDP that node 1 has sent there.
fn behind_the_tunnel(direct: bool) -> TestTables {
    let replicas = [Replica::on(2, 1)];
    let mut entry_node = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &replicas);
    if direct {
        entry_node = entry_node.direct();
    }
    let mut frame = udp(at(CLIENT), at("10.0.0.1:9200"), b"hello");
    run(&entry_node, Hook::TcUplink, &mut frame);
    assert_eq!(view_inner(&frame).source, at(CLIENT));
    let tables = TestTables::node(2).publish(PROTOCOL_UDP, 9200, &replicas);
    run(&tables, Hook::TcUplink, &mut frame.received());
    tables
}

fn datagram(l3_length: usize) -> TestFrame {
    let destination: SocketAddrV4 = at(CLIENT);
    udp(at(CONTAINER), destination, &vec![0; l3_length - 28])
}

#[test]
fn a_reply_larger_than_the_tunnel_is_too_big() {
    let mtu = usize::from(INNER_MTU);
    let tables = behind_the_tunnel(false);
    check(&tables, &datagram(mtu), true);
    let decision = decide(&datagram(mtu + 1), &tables, Hook::TcContainer).verdict();
    assert!(matches!(decision, Verdict::TooBig), "{decision:?}");
    // Its segments are what is sent.
    let mut aggregated = datagram(4000);
    (aggregated.segments, aggregated.segment_size) = (3, 1400);
    assert_eq!(aggregated.length(), 4014);
    check(&tables, &aggregated, true);
}

#[test]
fn a_reply_that_needs_no_tunnel_may_be_larger() {
    check(&behind_the_tunnel(true), &datagram(1500), true);
    let tables = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &[Replica::on(1, 1)]);
    let mut first = udp(at(CLIENT), at("10.0.0.1:9200"), b"hello");
    run(&tables, Hook::TcUplink, &mut first);
    check(&tables, &datagram(1500), true);
}
