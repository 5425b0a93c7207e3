//! Which packets continue a flow, which open one, and which do neither.

use super::*;

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
fn a_syn_on_the_port_of_a_connection_that_is_over_gets_the_next_backend() {
    for end in [RST, RST | ACK] {
        let tables = node_with(&locals(5));
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, end)), 0);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 1);
        assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, ACK)), 1);
    }
    let tables = node_with(&locals(5));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    answer(&tables, FIN | ACK);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, FIN | ACK)), 0);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 1);
}

/// The first backend's packet to the client.
fn answer(tables: &TestTables, flags: u8) {
    let reply = tcp(at("172.18.0.1:80"), client(40000), flags);
    let decision = decide(&reply, tables, Hook::TcContainer).verdict();
    assert!(matches!(decision, Verdict::Reply { .. }), "{decision:?}");
}

#[test]
fn a_syn_does_not_move_a_transfer_of_which_one_side_is_done() {
    let tables = node_with(&locals(5));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, FIN | ACK)), 0);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, ACK)), 0);
    let tables = node_with(&locals(5));
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
    answer(&tables, FIN | ACK);
    assert_eq!(chosen(&tables, Hook::TcUplink, &from(40000, SYN)), 0);
}

#[test]
fn what_opens_nothing_and_has_no_flow_is_the_kernels() {
    let tables = node_with(&locals(1));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK, 0] {
        for hook in [Hook::Xdp, Hook::TcUplink, Hook::TcContainer] {
            check_passes(&tables, hook, &from(40000, flags));
        }
        assert_eq!(tables.events(Event::FlowUnknown), 2, "the tc hooks count it");
        tables.forget_events();
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
