//! Decisions about clients' packets, at each hook.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::{BACKEND_LOCAL, Progress},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{ACK, FIN, RST, Replica, SERVICE_ADDRESS, SYN, TestFrame, TestTables, at, decide, tcp, udp},
    verdict::Verdict,
};

mod adopted;
mod flows;

const UPLINKS: [Hook; 2] = [Hook::Xdp, Hook::TcUplink];
const FRONTEND: &str = "10.0.0.1:9200";

fn locals(count: u8) -> Vec<Replica> {
    (1..=count).map(|number| Replica::on(1, number)).collect()
}

fn node_with(replicas: &[Replica]) -> TestTables {
    TestTables::node(1).publish(PROTOCOL_TCP, 9200, replicas)
}

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 7].into(), port)
}

fn from(port: u16, flags: u8) -> TestFrame {
    tcp(client(port), at(FRONTEND), flags)
}

/// The backend that a packet goes to. XDP leaves local ones to tc, once the flow is open.
fn chosen(tables: &TestTables, hook: Hook, frame: &TestFrame) -> u32 {
    match decide(frame, tables, hook).verdict() {
        Verdict::Deliver {
            flow,
            decapsulate: false,
            ..
        }
        | Verdict::Forward { flow, .. } => flow.backend(),
        Verdict::Pass if hook == Hook::Xdp => {
            let key = parse(frame, ETHERNET_LENGTH).expect("a packet").key;
            let flow = tables.flow(&key).expect("an open flow");
            assert_eq!(tables.backends[flow.backend() as usize].location, BACKEND_LOCAL);
            flow.backend()
        }
        other => panic!("neither delivered nor forwarded: {other:?}"),
    }
}

#[track_caller]
fn check_passes(tables: &TestTables, hook: Hook, frame: &TestFrame) {
    let decision = decide(frame, tables, hook).verdict();
    assert!(matches!(decision, Verdict::Pass), "at {hook:?}: {decision:?}");
}

#[track_caller]
fn check_dropped(tables: &TestTables, hook: Hook, frame: &TestFrame, expect: DropReason) {
    let decision = decide(frame, tables, hook).verdict();
    assert!(
        matches!(decision, Verdict::Drop(reason) if reason == expect),
        "at {hook:?}: {decision:?}"
    );
}

#[track_caller]
fn check_refused(tables: &TestTables, hook: Hook, frame: &TestFrame, expect: DropReason) {
    let decision = decide(frame, tables, hook).verdict();
    assert!(
        matches!(decision, Verdict::Refuse(reason) if reason == expect),
        "at {hook:?}: {decision:?}"
    );
}

/// Passes, but at mesh0, which leads nowhere else.
#[track_caller]
fn check_not_ours(tables: &TestTables, frame: &TestFrame) {
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_passes(tables, hook, frame);
    }
    check_dropped(tables, Hook::TcMesh0, frame, DropReason::NotAFrontend);
}

#[test]
fn other_ethertypes_are_not_ours() {
    for ethertype in [[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00], [0, 8]] {
        let mut frame = from(40000, SYN);
        frame.bytes[12..14].copy_from_slice(&ethertype);
        check_not_ours(&node_with(&locals(1)), &frame);
    }
    check_not_ours(&node_with(&locals(1)), &TestFrame::new(vec![0; 13]));
}

#[test]
fn a_broken_packet_is_dropped_if_it_is_for_a_frontend_and_else_not_ours() {
    let broken = |destination, (offset, byte): (usize, u8)| {
        let mut frame = tcp(client(40000), at(destination), SYN);
        frame.bytes[offset] = byte;
        frame
    };
    // The IP header's length, TCP's header length, the packet's length, IP options.
    for (change, reason) in [
        ((ETHERNET_LENGTH + 3, 30), DropReason::Truncated),
        ((ETHERNET_LENGTH + 32, 0x10), DropReason::BadLength),
        ((ETHERNET_LENGTH + 2, 0x10), DropReason::BadLength),
    ] {
        for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
            check_dropped(&node_with(&locals(1)), hook, &broken(FRONTEND, change), reason);
        }
        for other in ["10.0.0.1:9201", "10.0.0.77:9200"] {
            check_not_ours(&node_with(&locals(1)), &broken(other, change));
        }
    }
    check_not_ours(&node_with(&locals(1)), &broken(FRONTEND, (ETHERNET_LENGTH, 0x65)));
}

#[test]
fn a_port_that_is_not_published_is_not_ours() {
    let tables = node_with(&locals(1));
    check_not_ours(&tables, &tcp(client(40000), at("10.0.0.1:9201"), SYN));
    check_not_ours(&tables, &udp(client(40000), at(FRONTEND), b"not TCP"));
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn a_published_port_at_another_address_is_not_ours() {
    let tables = node_with(&locals(1));
    check_not_ours(&tables, &tcp(client(40000), at("10.0.0.77:9200"), SYN));
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn a_service_without_backends_refuses() {
    let tables = node_with(&[]);
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_refused(&tables, hook, &from(40000, SYN), DropReason::NoBackend);
    }
    assert_eq!(tables.flow_count(), 0);
}

/// As when a container has ended and there is no agent to take it out.
#[test]
fn a_container_that_is_gone_is_passed_over_at_once() {
    let replicas = [Replica::on(1, 1), Replica::on(2, 2)];
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let tables = node_with(&replicas);
        for port in 1000..1010 {
            let frame = from(port, SYN).without_interface(replicas[0].interface());
            assert_eq!(chosen(&tables, hook, &frame), 1, "{hook:?}");
        }
        assert_eq!(tables.all_drops(), 0);
    }
}

#[test]
fn a_service_whose_containers_are_all_gone_refuses() {
    let replicas = [Replica::on(1, 1), Replica::on(1, 2)];
    let gone = |frame: TestFrame| {
        replicas.iter().fold(frame, |frame, replica| {
            frame.without_interface(replica.interface())
        })
    };
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_refused(
            &node_with(&replicas),
            hook,
            &gone(from(1000, SYN)),
            DropReason::Undeliverable,
        );
    }
}

#[test]
fn a_syn_sent_again_leaves_a_container_that_is_gone() {
    let replicas = [Replica::on(1, 1), Replica::on(2, 2)];
    let tables = node_with(&replicas);
    assert_eq!(chosen(&tables, Hook::Xdp, &from(1000, SYN)), 0);
    let again = from(1000, SYN).without_interface(replicas[0].interface());
    tables.clock.set(1_000_000_000);
    assert_eq!(chosen(&tables, Hook::Xdp, &again), 1);
}

#[test]
fn a_ring_slot_that_is_being_rewritten_refuses() {
    let mut tables = node_with(&locals(1));
    tables.backends[0].service = 7;
    check_refused(&tables, Hook::TcUplink, &from(40000, SYN), DropReason::NoBackend);
    tables.backends[0].service = 0;
    tables.backends[0].generation = 0;
    check_refused(&tables, Hook::TcUplink, &from(40000, SYN), DropReason::NoBackend);
    tables.ring.clear();
    check_refused(&tables, Hook::TcUplink, &from(40000, SYN), DropReason::NoBackend);
    tables.services.clear();
    check_refused(&tables, Hook::TcUplink, &from(40000, SYN), DropReason::NoBackend);
}

#[test]
fn the_service_address_is_for_mesh0_alone() {
    let tables = node_with(&locals(1));
    let local = tcp(
        at("10.0.0.1:40000"),
        SocketAddrV4::new(SERVICE_ADDRESS, 9200),
        SYN,
    );
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_passes(&tables, hook, &local);
    }
    check_dropped(
        &tables,
        Hook::TcMesh0,
        &from(40000, SYN),
        DropReason::NotAFrontend,
    );
    assert_eq!(tables.flow_count(), 0);
    assert_eq!(chosen(&tables, Hook::TcMesh0, &local), 0);
}

#[test]
fn options_are_dropped_for_frontends_only() {
    let tables = node_with(&locals(1));
    let optioned = |mut frame: TestFrame| {
        frame.bytes.splice(34..34, [1; 4]);
        frame.bytes[ETHERNET_LENGTH] = 0x46;
        frame
    };
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_dropped(&tables, hook, &optioned(from(40000, SYN)), DropReason::IpOptions);
    }
    for other in ["10.0.0.1:9201", "10.0.0.77:9200"] {
        check_not_ours(&tables, &optioned(tcp(client(40000), at(other), SYN)));
    }
}

#[test]
fn what_no_sender_can_have_sent_opens_nothing_and_gets_no_answer() {
    for replicas in [locals(1), vec![]] {
        for source in [
            "0.0.0.1",
            "127.0.0.1",
            "224.0.0.1",
            "239.1.2.3",
            "255.255.255.255",
            "10.0.0.1",
        ] {
            let tables = node_with(&replicas).publish(PROTOCOL_UDP, 9200, &replicas);
            let source = at(&format!("{source}:40000"));
            for frame in [
                tcp(source, at(FRONTEND), SYN),
                udp(source, at(FRONTEND), b"a query of some length"),
            ] {
                for hook in UPLINKS {
                    check_dropped(&tables, hook, &frame, DropReason::Martian);
                }
            }
            assert_eq!(tables.flow_count(), 0);
        }
    }
}

#[test]
fn what_is_for_another_machine_opens_nothing_and_passes() {
    let mut tables = node_with(&locals(1)).publish(PROTOCOL_UDP, 9200, &locals(1));
    let connection = from(40000, SYN);
    let datagram = udp(client(40000), at(FRONTEND), b"query");
    for mut frame in [connection.clone(), datagram] {
        frame.bytes[5] ^= 1;
        for hook in UPLINKS {
            check_passes(&tables, hook, &frame);
        }
        // XDP leaves it to tc, which counts it.
        assert_eq!((tables.flow_count(), tables.events(Event::OtherMachine)), (0, 1));
        tables.forget_events();
    }
    tables.host_macs.clear();
    check_passes(&tables, Hook::TcUplink, &connection);
    // Which addresses are the node's is not known.
    tables.config_mut().knows_macs = 0;
    assert_eq!(chosen(&tables, Hook::TcUplink, &connection), 0);
}

#[test]
fn a_packet_for_a_group_of_machines_opens_nothing() {
    let tables = node_with(&locals(1));
    let mut frame = from(40000, SYN);
    frame.bytes[..6].fill(0xff);
    for hook in UPLINKS {
        check_dropped(&tables, hook, &frame, DropReason::Martian);
    }
}

#[test]
fn an_answer_to_a_containers_own_datagram_is_not_a_clients() {
    let tables = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &locals(1));
    let server = at("192.0.2.53:53");
    let answer = udp(server, at(FRONTEND), b"answer");
    check_passes(
        &tables,
        Hook::TcContainer,
        &udp(at("172.18.0.9:9200"), server, b"query"),
    );
    for hook in UPLINKS {
        check_passes(&tables, hook, &answer);
    }
    assert_eq!(tables.flow_count(), 0);
    // Another port of the server has not been asked.
    assert_eq!(
        chosen(
            &tables,
            Hook::TcUplink,
            &udp(at("192.0.2.53:54"), at(FRONTEND), b"query")
        ),
        0
    );
}
