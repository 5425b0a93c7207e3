//! New flows past their service's limits.

use std::net::SocketAddrV4;

use crate::{
    abi::{Choice, DropReason, Event, FLOOD_MEMORY, Hook, Openings},
    headers::{PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, CLIENT_ROUTE, FIN, PSH, RST, Replica, SYN, TestFrame, TestTables, at, reply_to, run, tcp, udp,
        view,
    },
    verdict::Action,
};

const FRONTEND: &str = "10.0.0.1:9200";
/// Another address of node 1.
const FLOATING: &str = "10.0.0.100:9200";
const SECOND: u64 = 1 << 30;
/// One new flow a span has entries.
const FLOOD: Openings = Openings {
    flood_limit: 1,
    ..UNLIMITED
};
const UNLIMITED: Openings = Openings {
    max_new: 0,
    max_new_per_source: 0,
    flood_limit: 0,
    affinity: 0,
    span: 0,
    opened: 0,
    forwarded: 0,
    continued: 0,
    flooded: 0,
    past_max_new: 0,
    past_max_new_per_source: 0,
};

fn client(number: u16) -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 7].into(), 1000 + number)
}

fn node(replicas: &[Replica], limits: Openings) -> TestTables {
    let mut tables = TestTables::node(1)
        .publish(PROTOCOL_TCP, 9200, replicas)
        .publish(PROTOCOL_UDP, 9200, replicas)
        .limited(limits);
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let key = crate::abi::FrontendKey {
            address: (*at(FLOATING).ip()).into(),
            port: crate::bytes::Be16::new(9200),
            protocol: u16::from(protocol),
        };
        let service = u32::from(protocol == PROTOCOL_UDP);
        tables.frontends.insert(key, service);
    }
    tables.clock.set(1000 * SECOND);
    tables
}

fn two_local(limits: Openings) -> TestTables {
    node(&[Replica::on(1, 1), Replica::on(1, 2)], limits)
}

/// What the limits of both services have dropped: all clients', and one client's.
fn past_limits(tables: &TestTables) -> [(u64, u64); 2] {
    [0, 1].map(|service| {
        let openings = tables.openings_of(service);
        (openings.past_max_new, openings.past_max_new_per_source)
    })
}

/// Fills the limit of this span, and of the packets in mid-connection.
fn flood(tables: &TestTables) {
    for number in 0..4 {
        let source = SocketAddrV4::new([198, 51, 100, 7].into(), 2000 + number);
        run(tables, Hook::TcUplink, &mut tcp(source, at(FRONTEND), SYN));
        run(tables, Hook::TcUplink, &mut udp(source, at(FRONTEND), b"x"));
    }
}

/// Sends a client's packet into the container; what arrives there.
fn delivered(tables: &TestTables, mut frame: TestFrame) -> TestFrame {
    let action = run(tables, Hook::TcUplink, &mut frame);
    assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
    frame
}

/// Sends what the container answers; what arrives at the client.
fn answered(tables: &TestTables, received: &TestFrame, flags: u8) -> TestFrame {
    let mut answer = reply_to(&view(received), flags, b"").routed(CLIENT_ROUTE);
    let action = run(tables, Hook::TcContainer, &mut answer);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    answer
}

#[test]
fn past_the_flood_limit_flows_get_no_entries_and_are_answered() {
    let tables = two_local(FLOOD);
    flood(&tables);
    let before = tables.flow_count();
    for number in 0..50 {
        for frontend in [FRONTEND, FLOATING] {
            let received = delivered(&tables, tcp(client(number), at(frontend), SYN));
            assert_eq!(view(&received).source, client(number));
            let answer = view(&answered(&tables, &received, SYN | ACK));
            assert_eq!(
                (answer.source, answer.destination),
                (at(frontend), client(number))
            );
        }
    }
    assert_eq!(tables.flow_count(), before);
    assert!(tables.events(Event::FlowUntracked) >= 100);
    assert_eq!(tables.all_drops(), 0);
}

#[test]
fn a_connection_begun_in_a_flood_is_opened_by_what_follows() {
    for choice in [
        Choice::ROTATE,
        Choice::LEAST,
        Choice::RANDOM,
        Choice::HASH_ADDRESS,
        Choice::HASH_ENDPOINT,
    ] {
        let mut tables = two_local(FLOOD);
        tables.services.get_mut(&0).expect("the service").choice = choice;
        flood(&tables);
        for number in 0..50 {
            let received = delivered(&tables, tcp(client(number), at(FRONTEND), SYN));
            answered(&tables, &received, SYN | ACK);
            let replica = view(&received).destination;
            // The flood goes on, and its replies take the slot; the limits are of each span.
            tables.clock.set(tables.clock.get() + SECOND);
            let before = tables.open_count();
            let acknowledged = delivered(&tables, tcp(client(number), at(FRONTEND), ACK));
            assert_eq!(view(&acknowledged).destination, replica);
            assert_eq!(tables.open_count(), before, "anyone can send an acknowledgement");
            flood(&tables);
            let request = delivered(&tables, tcp(client(number), at(FRONTEND), ACK | PSH));
            answered(&tables, &request, ACK);
            assert_eq!(tables.open_count(), before + 2, "both entries are open");
            // What the service does with a flood does not concern it any more.
            tables.forget_half_open();
            flood(&tables);
            let request = delivered(&tables, tcp(client(number), at(FRONTEND), ACK | PSH));
            assert_eq!(view(&request).destination, replica);
            answered(&tables, &request, ACK | PSH);
        }
    }
}

#[test]
fn a_reset_of_an_unknown_connection_reaches_the_backend_and_makes_no_flow() {
    let tables = two_local(FLOOD);
    flood(&tables);
    let syn = delivered(&tables, tcp(client(1), at(FRONTEND), SYN));
    tables.clock.set(tables.clock.get() + SECOND);
    let before = tables.flow_count();
    let reset = delivered(&tables, tcp(client(1), at(FRONTEND), RST));
    assert_eq!(view(&reset).destination, view(&syn).destination);
    assert_eq!(tables.flow_count(), before);
}

#[test]
fn a_backend_that_refuses_an_acknowledgement_opens_nothing() {
    let tables = two_local(FLOOD);
    flood(&tables);
    tables.clock.set(tables.clock.get() + SECOND);
    let received = delivered(&tables, tcp(client(1), at(FRONTEND), ACK));
    let mut reset = reply_to(&view(&received), RST, b"").routed(CLIENT_ROUTE);
    let action = run(&tables, Hook::TcContainer, &mut reset);
    assert!(matches!(action, Action::Drop), "{action:?}");
    // The kernel may know the connection.
    let action = run(&tables, Hook::TcUplink, &mut tcp(client(1), at(FRONTEND), ACK));
    assert!(matches!(action, Action::Pass), "{action:?}");
    assert_eq!(tables.open_count(), 0);
}

#[test]
fn datagrams_of_a_flooded_service_stay_with_their_backend_and_are_answered() {
    let tables = two_local(FLOOD);
    flood(&tables);
    for number in 0..50 {
        let mut replica = None;
        // Also once its flow has entries.
        for _ in 0..4 {
            let received = delivered(&tables, udp(client(number), at(FLOATING), b"x"));
            let answer = view(&answered(&tables, &received, 0));
            assert_eq!(
                (answer.source, answer.destination),
                (at(FLOATING), client(number))
            );
            assert_eq!(
                *replica.get_or_insert(view(&received).destination),
                view(&received).destination
            );
            tables.clock.set(tables.clock.get() + SECOND / 2);
        }
    }
}

#[test]
fn a_remote_backend_is_asked_and_answers_without_entries_at_either_node() {
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let replicas = [Replica::on(2, 1), Replica::on(2, 2)];
        let entry_node = node(&replicas, FLOOD);
        let other = TestTables::node(2)
            .publish(PROTOCOL_TCP, 9200, &replicas)
            .limited(FLOOD);
        other.clock.set(1000 * SECOND);
        for number in 0..20 {
            let mut syn = tcp(client(number), at(FRONTEND), SYN);
            let action = run(&entry_node, hook, &mut syn);
            assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
            let received = delivered(&other, syn.received());
            let mut answer = reply_to(&view(&received), SYN | ACK, b"");
            run(&other, Hook::TcContainer, &mut answer);
            let mut answer = answer.received().routed(CLIENT_ROUTE);
            let action = run(&entry_node, hook, &mut answer);
            assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
            let answer = view(&answer);
            assert_eq!(
                (answer.source, answer.destination),
                (at(FRONTEND), client(number))
            );
        }
        assert!(entry_node.flow_count() <= 2, "{}", entry_node.flow_count());
        assert!(other.flow_count() <= 2, "{}", other.flow_count());
        // In another span, what follows makes the flow, at both.
        for tables in [&entry_node, &other] {
            tables.clock.set(1001 * SECOND);
        }
        let mut ack = tcp(client(7), at(FRONTEND), ACK);
        run(&entry_node, hook, &mut ack);
        let received = delivered(&other, ack.received());
        let mut answer = reply_to(&view(&received), ACK | PSH, b"hello");
        run(&other, Hook::TcContainer, &mut answer);
        run(&entry_node, hook, &mut answer.received().routed(CLIENT_ROUTE));
        assert_eq!((entry_node.open_count(), other.open_count()), (1, 2));
    }
}

#[test]
fn a_packet_for_a_local_backend_is_counted_once() {
    let tables = two_local(Openings {
        max_new: 3,
        ..UNLIMITED
    });
    for number in 0..3 {
        let mut syn = tcp(client(number), at(FRONTEND), SYN);
        assert!(matches!(run(&tables, Hook::Xdp, &mut syn), Action::Pass));
        delivered(&tables, syn);
    }
    let flooded = two_local(FLOOD);
    flood(&flooded);
    flooded.clock.set(flooded.clock.get() + SECOND);
    let mut syn = tcp(client(1), at(FRONTEND), SYN);
    assert!(matches!(run(&flooded, Hook::Xdp, &mut syn), Action::Pass));
    let before = flooded.flow_count();
    delivered(&flooded, syn);
    assert_eq!(flooded.flow_count(), before + 2, "the first one of its span");
}

#[test]
fn a_flood_is_over_after_a_while() {
    let tables = two_local(FLOOD);
    flood(&tables);
    let ack = || tcp(client(1), at(FRONTEND), ACK);
    tables.clock.set((1000 + FLOOD_MEMORY) * SECOND);
    delivered(&tables, ack());
    tables.forget_flows();
    tables.clock.set((1001 + FLOOD_MEMORY) * SECOND);
    assert!(matches!(run(&tables, Hook::TcUplink, &mut ack()), Action::Pass));
    assert_eq!(tables.events(Event::FlowUnknown), 1);
}

#[test]
fn what_no_flooded_service_knows_is_left_to_the_kernel() {
    let tables = two_local(FLOOD).publish(PROTOCOL_TCP, 9300, &[Replica::on(1, 3)]);
    flood(&tables);
    let mut other = tcp(client(1), at("10.0.0.1:9300"), ACK);
    assert!(matches!(run(&tables, Hook::TcUplink, &mut other), Action::Pass));
    let mut own = tcp(at("172.18.0.1:80"), client(1), SYN | ACK);
    assert!(matches!(run(&tables, Hook::TcContainer, &mut own), Action::Pass));
}

#[test]
fn connections_past_the_limit_are_dropped_and_others_go_on() {
    let tables = two_local(Openings {
        max_new: 3,
        ..UNLIMITED
    });
    let open = |number| {
        let mut frame = tcp(client(number), at(FRONTEND), SYN);
        matches!(
            run(&tables, Hook::TcUplink, &mut frame),
            Action::IntoContainer { .. }
        )
    };
    assert_eq!((0..10).filter(|number| open(*number)).count(), 3);
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::MaxNewConnections), 7);
    assert_eq!(past_limits(&tables), [(7, 0), (0, 0)]);
    // UDP is another published port.
    delivered(&tables, udp(client(1), at(FRONTEND), b"x"));
    for flags in [ACK, FIN | ACK, SYN] {
        delivered(&tables, tcp(client(0), at(FRONTEND), flags));
    }
    tables.clock.set(1001 * SECOND);
    assert!(open(9));
}

#[test]
fn one_client_past_its_limit_takes_nothing_from_the_others() {
    let tables = two_local(Openings {
        max_new: 4,
        max_new_per_source: 2,
        ..UNLIMITED
    });
    let open = |address: u8, port| {
        let source = SocketAddrV4::new([192, 0, 2, address].into(), port);
        let mut frame = tcp(source, at(FRONTEND), SYN);
        matches!(
            run(&tables, Hook::TcUplink, &mut frame),
            Action::IntoContainer { .. }
        )
    };
    assert_eq!((0..10).filter(|port| open(7, 1000 + port)).count(), 2);
    assert_eq!(
        tables.drops(Hook::TcUplink, DropReason::MaxNewConnectionsPerSource),
        8
    );
    assert!(open(8, 1000) && open(9, 1000));
    assert!(!open(9, 1001), "the service's own limit");
    assert_eq!(tables.drops(Hook::TcUplink, DropReason::MaxNewConnections), 1);
    assert_eq!(past_limits(&tables), [(1, 8), (0, 0)]);
}

#[test]
fn limits_count_what_they_drop_in_a_flood_too() {
    for (max_new, max_new_per_source, expected) in [(3, 0, (1, 0)), (0, 3, (0, 1))] {
        let tables = two_local(Openings {
            max_new,
            max_new_per_source,
            ..FLOOD
        });
        flood(&tables);
        assert_eq!(past_limits(&tables), [expected; 2]);
    }
}

#[test]
fn processes_of_the_node_are_under_no_limit() {
    let tables = two_local(Openings {
        max_new: 1,
        max_new_per_source: 1,
        flood_limit: 1,
        ..UNLIMITED
    });
    for number in 0..10 {
        let mut frame = tcp(
            at(&format!("10.0.0.1:{}", 3000 + number)),
            at("169.254.96.1:9200"),
            SYN,
        );
        let action = run(&tables, Hook::TcMesh0, &mut frame);
        assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    }
    assert_eq!(tables.flow_count(), 20);
}

#[test]
fn a_flood_for_another_machine_is_left_to_the_kernel() {
    let tables = two_local(FLOOD);
    flood(&tables);
    let mut frame = tcp(client(1), at(FRONTEND), SYN);
    frame.bytes[5] ^= 1;
    for hook in [Hook::Xdp, Hook::TcUplink] {
        assert_eq!(run(&tables, hook, &mut frame), Action::Pass);
    }
    assert_eq!(tables.events(Event::OtherMachine), 1);
}
