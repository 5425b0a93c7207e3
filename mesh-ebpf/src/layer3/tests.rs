use super::*;
use crate::{
    abi::{DropReason, Hook},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, RST, Replica, SYN, TestFrame, TestTables, at, run, run_layer3, tcp, udp, view, view_inner,
    },
    verdict::Action,
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";

fn node(replica: Replica) -> TestTables {
    TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, &[replica])
        .publish(PROTOCOL_UDP, 9200, &[replica])
}

fn without_ethernet(frame: &TestFrame) -> TestFrame {
    let mut packet = frame.clone();
    packet.bytes.drain(..ETHERNET_LENGTH);
    packet
}

/// A packet without an Ethernet header becomes what the same packet becomes that has one.
#[track_caller]
fn check_like_ethernet(replica: Replica, frame: &TestFrame) -> (Action, TestFrame) {
    let mut with = frame.clone();
    let expected = run(&node(replica), Hook::TcUplink, &mut with);
    let mut packet = without_ethernet(frame);
    let tables = node(replica);
    let action = run_layer3(&tables, Hook::TcUplink, &mut packet);
    assert_eq!(action, expected);
    match action {
        Action::Drop => {}
        Action::Pass => assert_eq!(packet.bytes, frame.bytes[ETHERNET_LENGTH..]),
        _ => assert_eq!(packet.bytes, with.bytes),
    }
    (action, packet)
}

#[test]
fn a_packet_for_a_replica_gets_the_ethernet_header_of_its_way() {
    for frame in [
        tcp(at(CLIENT), at(FRONTEND), SYN),
        udp(at(CLIENT), at(FRONTEND), b"query"),
    ] {
        let (action, packet) = check_like_ethernet(Replica::on(1, 1), &frame);
        assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
        assert_eq!(view(&packet).destination, at("172.18.0.1:80"));

        let (action, packet) = check_like_ethernet(Replica::on(2, 1), &frame);
        assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
        assert_eq!(view_inner(&packet).destination, at(FRONTEND));
    }
}

#[test]
fn a_packet_that_is_refused_is_answered() {
    let tables = TestTables::node(1).publish(PROTOCOL_TCP, 9200, &[]);
    let mut packet = without_ethernet(&tcp(at(CLIENT), at(FRONTEND), SYN));
    let action = run_layer3(&tables, Hook::TcUplink, &mut packet);
    assert_eq!(action, Action::Answer);
    assert_eq!(packet.bytes[..12], [0; 12]);
    let answer = view(&packet);
    assert_eq!((answer.source, answer.destination), (at(FRONTEND), at(CLIENT)));
    assert_eq!(answer.flags, RST | ACK);
}

#[test]
fn a_packet_that_is_not_the_meshs_passes_as_it_came() {
    let frames = [
        tcp(at(CLIENT), at("10.0.0.1:22"), SYN),
        tcp(at(CLIENT), at(FRONTEND), ACK),
        udp(at(CLIENT), at("10.0.0.9:9200"), b"elsewhere"),
    ];
    for frame in frames {
        let mut packet = without_ethernet(&frame);
        // It could not be given a header.
        packet.elastic = false;
        let tables = node(Replica::on(2, 1));
        assert_eq!(run_layer3(&tables, Hook::TcUplink, &mut packet), Action::Pass);
        assert_eq!(packet.bytes, frame.bytes[ETHERNET_LENGTH..]);
        assert_eq!(tables.all_drops(), 0);
    }
}

#[test]
fn a_packet_that_gets_no_header_is_dropped_and_counted() {
    let mut packet = without_ethernet(&tcp(at(CLIENT), at(FRONTEND), SYN));
    packet.elastic = false;
    let tables = node(Replica::on(2, 1));
    assert_eq!(run_layer3(&tables, Hook::TcUplink, &mut packet), Action::Drop);
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::RewriteFailed), 1);
}

#[test]
fn packets_that_end_early_are_judged_as_behind_ethernet() {
    let whole = tcp(at(CLIENT), at(FRONTEND), SYN);
    for length in ETHERNET_LENGTH..whole.bytes.len() {
        let mut frame = whole.clone();
        frame.bytes.truncate(length);
        let (action, _) = check_like_ethernet(Replica::on(2, 1), &frame);
        // Without ports, it is not known whose they are.
        let expected = if length < ETHERNET_LENGTH + 24 {
            Action::Pass
        } else {
            Action::Drop
        };
        assert_eq!(action, expected, "{length} bytes");
    }
}

#[test]
fn xdp_leaves_what_goes_out_by_a_layer_3_device_to_tc() {
    let mut tables = node(Replica::on(2, 1));
    for next_hop in &mut tables.next_hops {
        (next_hop.source_mac, next_hop.destination_mac) = ([0; 6], [0; 6]);
    }
    let frame = tcp(at(CLIENT), at(FRONTEND), SYN);
    let mut by_xdp = frame.clone();
    assert_eq!(run(&tables, Hook::Xdp, &mut by_xdp), Action::Pass);
    assert_eq!(by_xdp.bytes, frame.bytes);
    let mut by_tc = frame.clone();
    let interface = tables.next_hops[2].interface;
    assert_eq!(
        run(&tables, Hook::TcUplink, &mut by_tc),
        Action::Transmit { interface }
    );
    assert_eq!(view_inner(&by_tc).destination, at(FRONTEND));
}
