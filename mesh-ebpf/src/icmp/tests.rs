//! ICMP errors on their way to those who sent what they are about, from node to node.

use std::net::Ipv4Addr;

use super::*;
use crate::{
    headers::{OUTER_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP},
    testing::{
        ACK, CLIENT_ROUTE, ErrorView, MESH0, Replica, SERVICE_ADDRESS, SYN, TestFrame, TestTables, at, icmp,
        node_address, reply_to, run, run_layer3, tcp, udp, view, view_error, view_inner,
    },
};

const CLIENT: &str = "192.0.2.7:40000";
const FRONTEND: &str = "10.0.0.1:9200";
const CONTAINER: &str = "172.18.0.1:80";
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const INTO_CONTAINER: Action = Action::IntoContainer { interface: 101 };
/// By the next hops of the test tables.
const TO_PEER: Action = Action::Transmit { interface: 2 };
/// By [`CLIENT_ROUTE`].
const TO_CLIENT: Action = Action::Transmit { interface: 3 };
/// "Fragmentation needed" at 1300 bytes.
const TOO_BIG: (u8, u8, [u8; 4]) = (3, 4, [0, 0, 5, 20]);
const PORT_UNREACHABLE: (u8, u8, [u8; 4]) = (3, 3, [0; 4]);

/// Node 1 is the entry node; the replica of both services is on the given node.
fn nodes(replica: u8) -> (TestTables, TestTables) {
    let node = |number| {
        TestTables::node(number)
            .publish(PROTOCOL_TCP, 9200, &[Replica::on(replica, 1)])
            .publish(PROTOCOL_UDP, 9200, &[Replica::on(replica, 1)])
    };
    (node(1), node(2))
}

/// What an error quotes of a packet: so many bytes, from its IP header on.
fn quote(frame: &TestFrame, length: usize) -> &[u8] {
    let packet = &frame.bytes[ETHERNET_LENGTH..];
    &packet[..length.min(packet.len())]
}

#[track_caller]
fn check(
    frame: &TestFrame,
    offset: usize,
    between: (Ipv4Addr, &str),
    quoted: (&str, &str),
) -> (u8, u8, [u8; 4]) {
    let found = view_error(frame, offset);
    let expected = ErrorView {
        source: between.0,
        destination: between.1.parse().expect("an address"),
        header: found.header,
        quoted_source: at(quoted.0),
        quoted_destination: at(quoted.1),
    };
    assert_eq!(found, expected);
    (found.header.0, found.header.1, found.header.2)
}

/// A client's packet as it reaches the container, by way of both nodes if that is on the other one.
fn delivered(entry: &TestTables, other: &TestTables, replica: u8, mut frame: TestFrame) -> TestFrame {
    let action = run(entry, Hook::TcUplink, &mut frame);
    if replica == 1 {
        assert_eq!(action, INTO_CONTAINER);
        return frame;
    }
    assert_eq!(action, TO_PEER);
    let mut frame = frame.received();
    assert_eq!(run(other, Hook::TcUplink, &mut frame), INTO_CONTAINER);
    frame
}

/// What a container sends, as it leaves the entry node.
fn returned(entry: &TestTables, other: &TestTables, replica: u8, frame: TestFrame) -> TestFrame {
    let mut frame = frame.routed(CLIENT_ROUTE);
    if replica == 1 {
        assert_eq!(run(entry, Hook::TcContainer, &mut frame), TO_CLIENT);
        return frame;
    }
    assert_eq!(run(other, Hook::TcContainer, &mut frame), TO_PEER);
    let mut frame = frame.received().routed(CLIENT_ROUTE);
    assert_eq!(run(entry, Hook::TcUplink, &mut frame), TO_CLIENT);
    frame
}

#[test]
fn a_routers_error_about_a_reply_reaches_the_replica_wherever_it_runs() {
    for (replica, length) in [(1, 28), (1, 1000), (2, 28), (2, 1000)] {
        let (entry, other) = nodes(replica);
        let syn = delivered(&entry, &other, replica, tcp(at(CLIENT), at(FRONTEND), SYN));
        let reply = returned(&entry, &other, replica, reply_to(&view(&syn), SYN | ACK, b""));
        let mut error = icmp(ROUTER, node_address(1), TOO_BIG, quote(&reply, length));
        if replica == 2 {
            assert_eq!(run(&entry, Hook::Xdp, &mut error), Action::Pass, "tc's");
        }
        let mut by_layer3 = error.clone();
        by_layer3.bytes.drain(..ETHERNET_LENGTH);
        let action = run_layer3(&entry, Hook::TcUplink, &mut by_layer3);
        let mut behind_ethernet = error.clone();
        assert_eq!(run(&entry, Hook::TcUplink, &mut behind_ethernet), action);
        assert_eq!(by_layer3.bytes, behind_ethernet.bytes);
        let error = delivered(&entry, &other, replica, error);
        let header = check(
            &error,
            ETHERNET_LENGTH,
            (ROUTER, "172.18.0.1"),
            (CONTAINER, CLIENT),
        );
        assert_eq!(header, TOO_BIG);
        assert_eq!(error.bytes[..6], [2, 8, 0, 0, 0, 1]);
        assert_eq!((entry.all_drops(), other.all_drops()), (0, 0));
    }
}

#[test]
fn a_replicas_error_about_a_clients_packet_comes_from_the_frontend() {
    for (replica, length) in [(1, 28), (1, 1000), (2, 28), (2, 1000)] {
        let (entry, other) = nodes(replica);
        let datagram = delivered(&entry, &other, replica, udp(at(CLIENT), at(FRONTEND), b"hello"));
        let container = view(&datagram).destination;
        let error = icmp(
            *container.ip(),
            *at(CLIENT).ip(),
            PORT_UNREACHABLE,
            quote(&datagram, length),
        );
        let error = returned(&entry, &other, replica, error);
        let header = check(
            &error,
            ETHERNET_LENGTH,
            (node_address(1), "192.0.2.7"),
            (CLIENT, FRONTEND),
        );
        assert_eq!(header, PORT_UNREACHABLE);
        assert_eq!((entry.all_drops(), other.all_drops()), (0, 0));
    }
}

#[test]
fn a_client_in_a_container_hears_of_its_own_addresses_only() {
    let client = "172.18.0.9:40000";
    let (entry, other) = nodes(2);
    let mut datagram = udp(at(client), at(FRONTEND), b"hello");
    assert_eq!(run(&entry, Hook::TcContainer, &mut datagram), TO_PEER);
    let mut datagram = datagram.received();
    assert_eq!(run(&other, Hook::TcUplink, &mut datagram), INTO_CONTAINER);
    assert_eq!(view(&datagram).source, at("10.0.0.1:40000"));
    let error = icmp(
        "172.18.0.1".parse().expect("an address"),
        node_address(1),
        PORT_UNREACHABLE,
        quote(&datagram, 28),
    );
    let error = returned(&entry, &other, 2, error);
    check(
        &error,
        ETHERNET_LENGTH,
        (node_address(1), "172.18.0.9"),
        (client, FRONTEND),
    );

    // And its own kernel's error about a reply, which names those, reaches the replica with the node's.
    let reply = returned(&entry, &other, 2, reply_to(&view(&datagram), 0, b"answer"));
    let mut error = icmp(
        *at(client).ip(),
        node_address(1),
        PORT_UNREACHABLE,
        quote(&reply, 28),
    );
    assert_eq!(run(&entry, Hook::TcContainer, &mut error), TO_PEER);
    check(
        &error,
        ETHERNET_LENGTH + OUTER_LENGTH,
        (*at(client).ip(), "10.0.0.1"),
        (FRONTEND, "10.0.0.1:40000"),
    );
}

#[test]
fn a_local_process_hears_by_mesh0() {
    let (entry, _) = nodes(1);
    let frontend = format!("{SERVICE_ADDRESS}:9200");
    let mut datagram = udp(at("10.0.0.1:40000"), at(&frontend), b"hello");
    run(&entry, Hook::TcMesh0, &mut datagram);
    let mut error = icmp(
        "172.18.0.1".parse().expect("an address"),
        node_address(1),
        PORT_UNREACHABLE,
        quote(&datagram, 28),
    );
    assert_eq!(
        run(&entry, Hook::TcContainer, &mut error),
        Action::IntoHost { interface: MESH0 }
    );
    check(
        &error,
        ETHERNET_LENGTH,
        (SERVICE_ADDRESS, "10.0.0.1"),
        ("10.0.0.1:40000", &frontend),
    );
}

#[test]
fn other_messages_pass_unchanged() {
    let (entry, other) = nodes(1);
    let syn = delivered(&entry, &other, 1, tcp(at(CLIENT), at(FRONTEND), SYN));
    let reply = returned(&entry, &other, 1, reply_to(&view(&syn), SYN | ACK, b""));
    let of_host = tcp(at("10.0.0.1:22"), at(CLIENT), ACK);
    let to_client = |frame: &TestFrame| quote(frame, 28).to_vec();
    let node = node_address(1);
    let mut optioned = to_client(&reply);
    optioned[0] = 0x46;
    for (what, hook, frame) in [
        (
            "an echo request",
            Hook::TcUplink,
            icmp(ROUTER, node, (8, 0, [0; 4]), b"hello"),
        ),
        (
            "a redirect",
            Hook::TcUplink,
            icmp(ROUTER, node, (5, 1, [0; 4]), &to_client(&reply)),
        ),
        (
            "about the host's own",
            Hook::TcUplink,
            icmp(ROUTER, node, TOO_BIG, &to_client(&of_host)),
        ),
        (
            "to another than the sender",
            Hook::TcUplink,
            icmp(ROUTER, node_address(3), TOO_BIG, &to_client(&reply)),
        ),
        (
            "of a container about an uplink's flow",
            Hook::TcContainer,
            icmp(ROUTER, node, TOO_BIG, &to_client(&reply)),
        ),
        (
            "of another container",
            Hook::TcContainer,
            icmp(
                "172.18.0.2".parse().expect("an address"),
                *at(CLIENT).ip(),
                PORT_UNREACHABLE,
                &to_client(&syn),
            ),
        ),
        (
            "of the replica, at an uplink",
            Hook::TcUplink,
            icmp(
                "172.18.0.1".parse().expect("an address"),
                *at(CLIENT).ip(),
                PORT_UNREACHABLE,
                &to_client(&syn),
            ),
        ),
        (
            "a quote with options",
            Hook::TcUplink,
            icmp(ROUTER, node, TOO_BIG, &optioned),
        ),
        (
            "a quote without ports",
            Hook::TcUplink,
            icmp(ROUTER, node, TOO_BIG, &to_client(&reply)[..20]),
        ),
    ] {
        let mut after = frame.clone();
        assert_eq!(run(&entry, hook, &mut after), Action::Pass, "{what}");
        assert_eq!(after.bytes, frame.bytes, "{what}");
    }
    assert_eq!(entry.all_drops(), 0);
}

#[test]
fn a_peers_error_must_be_about_a_flow_of_that_peer_and_backend() {
    let (entry, other) = nodes(2);
    let syn = delivered(&entry, &other, 2, tcp(at(CLIENT), at(FRONTEND), SYN));
    let reply = returned(&entry, &other, 2, reply_to(&view(&syn), SYN | ACK, b""));
    let mut error = icmp(ROUTER, node_address(1), TOO_BIG, quote(&reply, 28));
    run(&entry, Hook::TcUplink, &mut error);
    let inner = ETHERNET_LENGTH + OUTER_LENGTH;
    check(&error, inner, (ROUTER, "10.0.0.1"), (FRONTEND, CLIENT));
    let changed = |offset: usize, bytes: &[u8]| {
        let mut frame = error.received();
        frame.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    // The source of the outer header, the backend's tag, a port of the quote, the router's address.
    for (what, mut frame, reason) in [
        (
            "another peer",
            changed(ETHERNET_LENGTH + 12, &[10, 0, 0, 3]),
            DropReason::UnknownFlow,
        ),
        (
            "another backend",
            changed(inner - 2, &[1, 2]),
            DropReason::UnknownFlow,
        ),
        (
            "another flow",
            changed(inner + 48, &[1, 2]),
            DropReason::UnknownFlow,
        ),
        (
            "from 127.0.0.1",
            changed(inner + 12, &[127, 0, 0, 1]),
            DropReason::BadGeneve,
        ),
    ] {
        let before = other.drops(Hook::TcUplink, reason);
        assert_eq!(run(&other, Hook::TcUplink, &mut frame), Action::Drop, "{what}");
        assert_eq!(other.drops(Hook::TcUplink, reason), before + 1, "{what}");
    }
    assert_eq!(run(&other, Hook::TcUplink, &mut error.received()), INTO_CONTAINER);
    assert_eq!(
        view_inner(&{
            let mut data = tcp(at(CLIENT), at(FRONTEND), ACK);
            run(&entry, Hook::TcUplink, &mut data);
            data
        })
        .source,
        at(CLIENT)
    );
}
