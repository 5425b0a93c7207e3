//! Which of a container's packets are replies.

use super::*;
use crate::{
    abi::{Hook, Progress},
    headers::{ETHERNET_LENGTH, PROTOCOL_TCP},
    parse::parse,
    testing::{ACK, FIN, RST, Replica, SYN, TestFrame, TestTables, at, decide, run, tcp, udp, view},
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
fn a_container_whose_backend_was_taken_out_is_refused() {
    let mut tables = open();
    tables.backends[0] = Default::default();
    let published = [Replica::on(1, 9)];
    tables = tables.publish(PROTOCOL_TCP, 9300, &published);
    for flags in [ACK, FIN | ACK] {
        let mut frame = tcp(at(CONTAINER), at(CLIENT), flags);
        let decision = decide(&frame, &tables, Hook::TcContainer).verdict();
        assert!(
            matches!(decision, Verdict::Refuse(DropReason::BackendGone)),
            "{decision:?}"
        );
        run(&tables, Hook::TcContainer, &mut frame);
        let answer = view(&frame);
        assert_eq!((answer.source, answer.destination), (at(CLIENT), at(CONTAINER)));
        assert_ne!(answer.flags & RST, 0);
    }
    // It has reset the connection by itself.
    check(&tables, &tcp(at(CONTAINER), at(CLIENT), RST), false);
}

#[test]
fn what_a_successor_of_the_container_sends_is_its_own() {
    for flags in [SYN, SYN | ACK] {
        let mut tables = open();
        tables.backends[0].generation += 1;
        check(&tables, &tcp(at(CONTAINER), at(CLIENT), flags), false);
        check(&tables, &tcp(at(CONTAINER), at(CLIENT), ACK), false);
    }
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
