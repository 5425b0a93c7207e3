//! Connections that come in mid-stream to a node that does not know them.

use super::*;
use crate::{
    abi::{Choice, Event, Role},
    bytes::Be16,
    testing::{CLIENT_ROUTE, reply_to, run, view, view_inner},
    verdict::Action,
};

/// Node `node` of a service that is balanced by a hash; every node answers at node 1's address.
fn hashing(node: u8, replicas: &[Replica]) -> TestTables {
    let mut tables = TestTables::node(node).publish(PROTOCOL_TCP, 9200, replicas);
    tables
        .services
        .entry(0)
        .and_modify(|service| service.choice = Choice::HASH_ENDPOINT);
    let moving = FrontendKey {
        address: (*at(FRONTEND).ip()).into(),
        port: Be16::new(at(FRONTEND).port()),
        protocol: u16::from(PROTOCOL_TCP),
    };
    tables.frontends.insert(moving, 0);
    tables
}

/// Five replicas on node 3.
fn remote() -> Vec<Replica> {
    (1..=5).map(|number| Replica::on(3, number)).collect()
}

fn role(tables: &TestTables, frame: &TestFrame) -> Option<Role> {
    let key = parse(frame, ETHERNET_LENGTH).expect("a packet").key;
    tables.flow(&key).map(FlowEntry::role)
}

#[test]
fn a_connection_goes_on_when_its_address_moves_to_another_node() {
    let (before, after, there) = (
        hashing(1, &remote()),
        hashing(2, &remote()),
        hashing(3, &remote()),
    );
    for port in 40000..40020 {
        let backend = chosen(&before, Hook::TcUplink, &from(port, SYN));
        let mut frame = from(port, SYN);
        run(&before, Hook::TcUplink, &mut frame);
        run(&there, Hook::TcUplink, &mut frame);
        let mut answer = reply_to(&view(&frame), SYN | ACK, b"").routed(CLIENT_ROUTE);
        run(&there, Hook::TcContainer, &mut answer);

        let mut frame = from(port, ACK);
        check_passes(&after, Hook::Xdp, &frame);
        assert_eq!(
            chosen(&after, Hook::TcUplink, &frame),
            backend,
            "as at the first node"
        );
        run(&after, Hook::TcUplink, &mut frame);
        let action = run(&there, Hook::TcUplink, &mut frame);
        assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
        let mut reply = reply_to(&view(&frame), ACK, b"x").routed(CLIENT_ROUTE);
        run(&there, Hook::TcContainer, &mut reply);
        assert_eq!(view_inner(&reply).source, at(FRONTEND));
        let action = run(&after, Hook::TcUplink, &mut reply);
        assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
        assert_eq!(view(&reply).destination, client(port));
        assert_eq!(chosen(&after, Hook::Xdp, &from(port, ACK)), backend);
    }
    assert_eq!(after.events(Event::FlowAdopted), 20);
    assert_eq!(after.events(Event::FlowUnknown), 0);
}

#[test]
fn the_node_of_the_backend_takes_the_connection_over_from_the_entry_node() {
    let (before, there) = (hashing(1, &remote()), hashing(3, &remote()));
    let mut frame = from(40000, SYN);
    run(&before, Hook::TcUplink, &mut frame);
    run(&there, Hook::TcUplink, &mut frame);
    let container = view(&frame).destination;
    let mut frame = from(40000, ACK);
    run(&there, Hook::TcUplink, &mut frame);
    assert_eq!(view(&frame).destination, container);
    let mut reply = reply_to(&view(&frame), ACK, b"x").routed(CLIENT_ROUTE);
    let action = run(&there, Hook::TcContainer, &mut reply);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    let reply = view(&reply);
    assert_eq!((reply.source, reply.destination), (at(FRONTEND), client(40000)));
}

#[test]
fn a_connection_that_its_backend_does_not_know_is_the_kernels() {
    let tables = hashing(1, &locals(3));
    let mut frame = from(40000, ACK);
    run(&tables, Hook::TcUplink, &mut frame);
    let mut reset = reply_to(&view(&frame), RST, b"").routed(CLIENT_ROUTE);
    check_dropped(&tables, Hook::TcContainer, &reset, DropReason::UnknownFlow);
    run(&tables, Hook::TcContainer, &mut reset);
    for hook in UPLINKS {
        check_passes(&tables, hook, &from(40000, ACK));
    }
    assert_eq!(role(&tables, &from(40000, ACK)), Some(Role::FOREIGN));
    assert_eq!(tables.events(Event::FlowAdopted), 1);

    // Its port may be used again.
    let mut frame = from(40000, SYN);
    run(&tables, Hook::TcUplink, &mut frame);
    let mut refusal = reply_to(&view(&frame), RST | ACK, b"").routed(CLIENT_ROUTE);
    let action = run(&tables, Hook::TcContainer, &mut refusal);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
}

#[test]
fn a_reset_that_comes_back_through_the_tunnel_is_no_clients() {
    let (entry_node, there) = (hashing(1, &remote()), hashing(3, &remote()));
    let mut frame = from(40000, ACK);
    run(&entry_node, Hook::TcUplink, &mut frame);
    run(&there, Hook::TcUplink, &mut frame);
    let mut reset = reply_to(&view(&frame), RST, b"").routed(CLIENT_ROUTE);
    run(&there, Hook::TcContainer, &mut reset);
    check_dropped(&entry_node, Hook::Xdp, &reset, DropReason::UnknownFlow);
    check_passes(&entry_node, Hook::TcUplink, &from(40000, ACK));
    // Once it has answered, its RST is one.
    let mut frame = from(40001, ACK);
    run(&entry_node, Hook::TcUplink, &mut frame);
    run(&there, Hook::TcUplink, &mut frame);
    for flags in [ACK, RST] {
        let mut reply = reply_to(&view(&frame), flags, b"").routed(CLIENT_ROUTE);
        run(&there, Hook::TcContainer, &mut reply);
        let action = run(&entry_node, Hook::Xdp, &mut reply);
        assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    }
}

#[test]
fn nothing_is_adopted_whose_backend_cannot_be_found_again_or_whose_reset_would_not_be_seen() {
    let rotating = node_with(&remote());
    let direct = hashing(1, &remote()).direct();
    for tables in [rotating, direct] {
        check_passes(&tables, Hook::TcUplink, &from(40000, ACK));
        assert_eq!((tables.flow_count(), tables.events(Event::FlowUnknown)), (0, 1));
    }
    let tables = hashing(1, &remote());
    for flags in [FIN | ACK, RST, RST | ACK] {
        check_passes(&tables, Hook::TcUplink, &from(40000, flags));
    }
    assert_eq!(tables.flow_count(), 0);
}
