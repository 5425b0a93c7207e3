//! What becomes of a client's packet, at each hook.

use std::net::SocketAddrV4;

use super::*;
use crate::{
    abi::Role,
    testing::{
        ACK, FIN, INNER_MTU, RST, Replica, SERVICE_ADDRESS, SYN, Segment, TestFrame, TestTables, at, tcp, udp,
    },
    verdict::Verdict,
};

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

/// The backend a packet is handed over to.
fn chosen(tables: &TestTables, hook: Hook, frame: &TestFrame) -> u32 {
    match decide(frame, tables, hook).verdict() {
        Verdict::Deliver {
            flow,
            decapsulate: false,
            ..
        }
        | Verdict::Forward { flow, .. } => flow.backend(),
        other => panic!("not handed over: {other:?}"),
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

/// Not ours at the hooks that others use too; mesh0 leads nowhere else.
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
fn without_settings_nothing_is_ours() {
    let mut tables = node_with(&locals(1));
    tables.config = None;
    check_not_ours(&tables, &from(40000, SYN));
}

#[test]
fn nonsense_is_dropped_at_every_hook() {
    for hook in Hook::ALL {
        let mut frame = from(40000, SYN);
        frame.bytes[ETHERNET_LENGTH] = 0x65;
        check_dropped(&node_with(&locals(1)), hook, &frame, DropReason::BadVersion);
    }
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
fn ten_flows_over_five_backends_are_two_each() {
    let tables = node_with(&locals(5));
    for port in 40000..40010 {
        chosen(&tables, Hook::TcUplink, &from(port, SYN));
    }
    for backend in 0..5 {
        assert_eq!(tables.counters(backend).connections, 2, "backend {backend}");
    }
}

#[test]
fn services_rotate_apart_from_each_other() {
    let tables = node_with(&locals(2)).publish(PROTOCOL_UDP, 9200, &locals(2));
    let first = chosen(&tables, Hook::TcUplink, &from(40000, SYN));
    let datagram = udp(client(40000), at(FRONTEND), b"x");
    assert_eq!(chosen(&tables, Hook::TcUplink, &datagram), 2);
    let second = chosen(&tables, Hook::TcUplink, &from(40001, SYN));
    assert_eq!((first, second), (0, 1));
}

#[test]
fn a_flow_stays_with_its_backend() {
    let mut tables = node_with(&locals(5));
    let backend = chosen(&tables, Hook::TcUplink, &from(40000, SYN));
    for port in 40001..40004 {
        chosen(&tables, Hook::TcUplink, &from(port, SYN));
    }
    // Its service is scaled, then withdrawn: what is open stays open.
    tables
        .services
        .entry(0)
        .and_modify(|service| service.ring_length = 2);
    for flags in [ACK, ACK | FIN, ACK] {
        assert_eq!(chosen(&tables, Hook::Xdp, &from(40000, flags)), backend);
    }
    tables.frontends.clear();
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, ACK)), backend);
    assert_eq!(tables.counters(backend).connections, 1);
}

#[test]
fn a_datagram_flow_stays_with_its_backend() {
    let tables = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &locals(5));
    let datagram = udp(client(40000), at(FRONTEND), b"x");
    for _ in 0..4 {
        assert_eq!(chosen(&tables, Hook::TcUplink, &datagram), 0);
    }
}

#[test]
fn a_syn_that_also_closes_opens_nothing() {
    let tables = node_with(&locals(1));
    for flags in [SYN | FIN, SYN | RST] {
        check_passes(&tables, Hook::TcUplink, &from(1, flags));
    }
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn a_syn_sent_again_stays() {
    let tables = node_with(&locals(5));
    let first = chosen(&tables, Hook::Xdp, &from(40000, SYN));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), first);
    assert_eq!(tables.counters(first).connections, 1);
}

#[test]
fn a_syn_on_a_port_being_closed_gets_the_next_backend() {
    for end in [FIN | ACK, RST, RST | ACK] {
        let tables = node_with(&locals(5));
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, end)), 0);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 1);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, ACK)), 1);
    }
}

#[test]
fn a_syn_after_the_backend_has_finished_gets_the_next_backend() {
    let tables = node_with(&locals(5));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    let reply = tcp(at("172.18.0.1:80"), client(40000), FIN | ACK);
    let decision = decide(&reply, &tables, Hook::TcContainer).verdict();
    assert!(matches!(decision, Verdict::Reply { .. }), "{decision:?}");
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 1);
}

#[test]
fn what_opens_nothing_and_has_no_flow_is_the_kernels() {
    let tables = node_with(&locals(1));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK, 0] {
        for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
            check_passes(&tables, hook, &from(40000, flags));
        }
        let frame = tcp(
            at("10.0.0.1:40000"),
            SocketAddrV4::new(SERVICE_ADDRESS, 9200),
            flags,
        );
        check_refused(&tables, Hook::TcMesh0, &frame, DropReason::UnknownFlow);
    }
    assert_eq!(tables.flow_count(), 0);
}

#[test]
fn a_flow_whose_backend_is_gone_is_refused_until_it_opens_anew() {
    let mut tables = node_with(&locals(2));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    tables.backends[0].generation += 1;
    for hook in UPLINKS {
        check_refused(&tables, hook, &from(40000, ACK), DropReason::BackendGone);
        check_refused(&tables, hook, &from(40000, RST), DropReason::BackendGone);
    }
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 1);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, ACK)), 1);
}

#[test]
fn a_datagram_whose_backend_is_gone_goes_to_the_next() {
    let mut tables = TestTables::node(1).publish(PROTOCOL_UDP, 9200, &locals(2));
    let datagram = udp(client(40000), at(FRONTEND), b"x");
    assert_eq!(chosen(&tables, Hook::TcUplink, &datagram), 0);
    tables.backends[0].generation += 1;
    assert_eq!(chosen(&tables, Hook::TcUplink, &datagram), 1);
}

#[test]
fn a_service_without_backends_refuses() {
    let tables = node_with(&[]);
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_refused(&tables, hook, &from(40000, SYN), DropReason::NoBackend);
    }
    assert_eq!(tables.flow_count(), 0);
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
fn fragments_and_options_are_dropped_for_frontends_only() {
    let tables = node_with(&locals(1));
    let fragment = |mut frame: TestFrame| {
        frame.bytes[ETHERNET_LENGTH + 6] = 0x20;
        frame
    };
    let optioned = |mut frame: TestFrame| {
        frame.bytes.splice(34..34, [1; 4]);
        frame.bytes[ETHERNET_LENGTH] = 0x46;
        frame
    };
    for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
        check_dropped(&tables, hook, &fragment(from(40000, SYN)), DropReason::Fragment);
        check_dropped(&tables, hook, &optioned(from(40000, SYN)), DropReason::IpOptions);
    }
    for other in ["10.0.0.1:9201", "10.0.0.77:9200"] {
        check_not_ours(&tables, &fragment(tcp(client(40000), at(other), SYN)));
        check_not_ours(&tables, &optioned(tcp(client(40000), at(other), SYN)));
        check_not_ours(&tables, &fragment(udp(client(40000), at(FRONTEND), b"x")));
    }
}

fn data(length: usize) -> TestFrame {
    let segment = Segment {
        flags: SYN,
        payload: &vec![0; length - 40],
        ..Segment::default()
    };
    tcp(client(40000), at(FRONTEND), segment)
}

#[test]
fn a_packet_larger_than_the_tunnel_is_too_big_for_a_remote_backend_only() {
    let mtu = usize::from(INNER_MTU);
    let tables = node_with(&[Replica::on(2, 1)]);
    chosen(&tables, Hook::Xdp, &data(mtu));
    let decision = decide(&data(mtu + 1), &tables, Hook::Xdp).verdict();
    assert!(matches!(decision, Verdict::TooBig), "{decision:?}");
    chosen(&node_with(&locals(1)), Hook::TcUplink, &data(mtu + 1));
}

#[test]
fn an_aggregated_packet_is_too_big_when_its_segments_are() {
    let tables = node_with(&[Replica::on(2, 1)]);
    let mut frame = data(4000);
    frame.segments = 3;
    // With the headers and 12 bytes of options: exactly what fits.
    frame.segment_size = u32::from(INNER_MTU) - 52;
    chosen(&tables, Hook::TcUplink, &frame);
    frame.segment_size += 1;
    let decision = decide(&frame, &tables, Hook::TcUplink).verdict();
    assert!(matches!(decision, Verdict::TooBig), "{decision:?}");
}

#[test]
fn a_full_flow_table_drops_and_counts_no_connection() {
    let tables = node_with(&locals(1));
    tables.full.set(true);
    check_dropped(
        &tables,
        Hook::TcUplink,
        &from(40000, SYN),
        DropReason::FlowTableFull,
    );
    assert_eq!(tables.counters(0).connections, 0);
}

#[test]
fn a_packet_notes_when_its_flow_was_seen_and_how_far_it_has_come() {
    let mut tables = node_with(&locals(1));
    chosen(&tables, Hook::TcUplink, &from(40000, SYN));
    let key = parse(&from(40000, SYN), ETHERNET_LENGTH).expect("a packet").key;
    let flow = tables.flow(&key).expect("a flow").copy();
    assert_eq!(
        (flow.seen, flow.origin, flow.role),
        (1000, Origin::UPLINK, Role::FORWARD)
    );
    assert_eq!(
        (flow.from_client, flow.from_backend),
        (Progress::OPEN, Progress::OPEN)
    );
    tables.config_mut().now = 1060;
    chosen(&tables, Hook::TcUplink, &from(40000, ACK | FIN));
    let flow = tables.flow(&key).expect("a flow").copy();
    assert_eq!((flow.seen, flow.from_client), (1060, Progress::FINISHED));
    chosen(&tables, Hook::TcUplink, &from(40000, RST));
    assert_eq!(tables.flow(&key).expect("a flow").from_client(), Progress::RESET);
}

#[test]
fn a_flow_that_a_peer_has_opened_is_no_clients() {
    let tables = node_with(&locals(2));
    let key = parse(&from(40000, SYN), ETHERNET_LENGTH).expect("a packet").key;
    for (origin, role) in [
        (Origin::TUNNEL, Role::FORWARD),
        (Origin::TUNNEL_DIRECT, Role::FORWARD),
        (Origin::UPLINK, Role::ALIAS),
        (Origin::UPLINK, Role::REPLY),
    ] {
        let flow = crate::abi::Flow {
            generation: 1,
            origin,
            role,
            ..Default::default()
        };
        tables.put_flow(&key, &flow).expect("room");
        check_passes(&tables, Hook::TcUplink, &from(40000, ACK));
        chosen(&tables, Hook::TcUplink, &from(40000, SYN));
        let flow = tables.flow(&key).expect("a flow");
        assert_eq!((flow.origin(), flow.role()), (Origin::UPLINK, Role::FORWARD));
    }
}
