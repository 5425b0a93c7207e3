//! Whole conversations: the container receives what the client sends, with translated addresses and nothing
//! else changed, and the other way round. Every checksum is verified on every hop.

use proptest::prelude::*;

use super::{
    talk::{Path, Talk, talks},
    *,
};

/// Every kind of talk, each between new nodes.
fn check(
    replica: Replica,
    client: &str,
    frontend: SocketAddrV4,
    presented: &str,
    hook: Hook,
    home: Action,
    direct: bool,
) {
    for talk in talks() {
        let entry_node = node(1, replica);
        let entry_node = if direct { entry_node.direct() } else { entry_node };
        let backend_node = (replica.node != 1).then(|| node(replica.node, replica));
        let path = Path {
            client: at(client),
            frontend,
            presented: at(presented),
            hook,
            home,
            entry_node: &entry_node,
            backend_node: backend_node.as_ref(),
            direct,
        };
        path.hold(&talk);
    }
}

const PROCESS: &str = "10.0.0.1:40000";
const CONTAINER: &str = "172.18.0.9:40000";
const HOME: Action = Action::IntoHost { interface: MESH0 };

fn service() -> SocketAddrV4 {
    SocketAddrV4::new(SERVICE_ADDRESS, 9200)
}

#[test]
fn a_client_talks_to_a_local_backend() {
    check(
        LOCAL,
        CLIENT,
        at(FRONTEND),
        CLIENT,
        Hook::TcUplink,
        TO_CLIENT,
        false,
    );
}

#[test]
fn a_client_talks_to_a_remote_backend_through_xdp() {
    check(REMOTE, CLIENT, at(FRONTEND), CLIENT, Hook::Xdp, TO_CLIENT, false);
}

#[test]
fn a_client_talks_to_a_remote_backend_through_tc() {
    check(
        REMOTE,
        CLIENT,
        at(FRONTEND),
        CLIENT,
        Hook::TcUplink,
        TO_CLIENT,
        false,
    );
}

#[test]
fn a_remote_backend_answers_a_client_directly() {
    check(REMOTE, CLIENT, at(FRONTEND), CLIENT, Hook::Xdp, TO_CLIENT, true);
}

/// A process of the very node that its replica runs on dialled another node.
#[test]
fn a_direct_answer_without_a_way_goes_back_by_the_entry_node() {
    let (entry_node, backend_node) = (node(1, REMOTE).direct(), node(2, REMOTE));
    let mut request = tcp(at(CLIENT), at(FRONTEND), SYN);
    assert_eq!(run(&entry_node, Hook::Xdp, &mut request), TO_PEER);
    let mut request = request.received();
    let action = run(&backend_node, Hook::TcUplink, &mut request);
    assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
    let mut reply = reply_to(&view(&request), SYN | ACK, &[]).routed(Route::Unreachable);
    assert_eq!(run(&backend_node, Hook::TcContainer, &mut reply), TO_PEER);
    let mut reply = reply.received().routed(CLIENT_ROUTE);
    assert_eq!(run(&entry_node, Hook::TcUplink, &mut reply), TO_CLIENT);
    assert_eq!(
        (view(&reply).source, view(&reply).destination),
        (at(FRONTEND), at(CLIENT))
    );
}

#[test]
fn a_local_process_talks_to_a_local_backend() {
    check(LOCAL, PROCESS, service(), PROCESS, Hook::TcMesh0, HOME, false);
}

#[test]
fn a_local_process_talks_to_a_remote_backend() {
    check(REMOTE, PROCESS, service(), PROCESS, Hook::TcMesh0, HOME, false);
}

#[test]
fn a_container_talks_to_another_as_its_node() {
    check(
        LOCAL,
        CONTAINER,
        at(FRONTEND),
        PROCESS,
        Hook::TcContainer,
        TO_CLIENT,
        false,
    );
}

#[test]
fn a_container_talks_to_itself_as_its_node() {
    let itself = "172.18.0.1:40000";
    assert_eq!(*at(itself).ip(), LOCAL.address());
    check(
        LOCAL,
        itself,
        at(FRONTEND),
        PROCESS,
        Hook::TcContainer,
        TO_CLIENT,
        false,
    );
}

#[test]
fn a_container_talks_to_a_remote_backend_as_its_node() {
    check(
        REMOTE,
        CONTAINER,
        at(FRONTEND),
        PROCESS,
        Hook::TcContainer,
        TO_CLIENT,
        false,
    );
}

#[test]
fn local_processes_and_containers_are_answered_by_the_tunnel_where_clients_are_not() {
    for (client, frontend, hook) in [
        (PROCESS, service(), Hook::TcMesh0),
        (CONTAINER, at(FRONTEND), Hook::TcContainer),
    ] {
        let (entry_node, backend_node) = (node(1, REMOTE).direct(), node(2, REMOTE));
        let mut frame = tcp(at(client), frontend, SYN);
        run(&entry_node, hook, &mut frame);
        let mut frame = frame.received();
        run(&backend_node, Hook::TcUplink, &mut frame);
        let mut reply = reply_to(&view(&frame), SYN | ACK, b"").routed(CLIENT_ROUTE);
        assert_eq!(run(&backend_node, Hook::TcContainer, &mut reply), TO_PEER);
    }
}

/// A remote backend's answer to the client's SYN, at its node's veth, and that node.
fn answer(options: &[u8]) -> (TestTables, TestTables, TestFrame) {
    let (entry_node, backend_node) = (node(1, REMOTE), node(2, REMOTE));
    let mut frame = syn();
    run(&entry_node, Hook::Xdp, &mut frame);
    let mut frame = frame.received();
    run(&backend_node, Hook::TcUplink, &mut frame);
    let seen = view(&frame);
    let segment = Segment {
        flags: SYN | ACK,
        options,
        ..Segment::default()
    };
    let reply = tcp(seen.destination, seen.source, segment);
    (entry_node, backend_node, reply)
}

#[test]
fn the_size_of_segments_is_lowered_in_the_answer_too() {
    let (_, backend_node, mut reply) = answer(&[2, 4, 0x05, 0xb4]);
    run(&backend_node, Hook::TcContainer, &mut reply);
    assert_eq!(view_inner(&reply).options[2..], (INNER_MTU - 40).to_be_bytes());
}

#[test]
fn a_reply_for_a_peer_that_has_left_is_dropped() {
    let (_, mut backend_node, reply) = answer(&[]);
    backend_node.next_hops[1] = NextHop::default();
    check_dropped(
        &backend_node,
        Hook::TcContainer,
        &mut reply.clone(),
        DropReason::NoRoute,
    );
    let (_, mut backend_node, mut reply) = answer(&[]);
    // Its slot has been given to another.
    backend_node.next_hops[1].address = node_address(3).into();
    check_dropped(&backend_node, Hook::TcContainer, &mut reply, DropReason::NoRoute);
}

#[test]
fn a_returned_reply_whose_way_is_not_known_is_tcs() {
    let (entry_node, backend_node, mut reply) = answer(&[]);
    run(&backend_node, Hook::TcContainer, &mut reply);
    for way in [Route::Unreachable, Route::Unresolved { interface: 4 }] {
        check_passed_whole(&entry_node, Hook::Xdp, &reply.received().routed(way));
    }
    assert_eq!(entry_node.counters(0).packets_out, 0, "counted where it is sent");
    let mut unresolved = reply.received().routed(Route::Unresolved { interface: 4 });
    let action = run(&entry_node, Hook::TcUplink, &mut unresolved);
    assert_eq!(action, Action::Route { interface: 4 });
    assert_eq!(view(&unresolved).destination, at(CLIENT));
    check_dropped(
        &entry_node,
        Hook::TcUplink,
        &mut reply.received(),
        DropReason::NoRoute,
    );
}

#[test]
fn an_encapsulated_packet_that_cannot_be_resized_is_dropped() {
    let (entry_node, backend_node, mut reply) = answer(&[]);
    run(&backend_node, Hook::TcContainer, &mut reply);
    let mut frame = reply.received().routed(CLIENT_ROUTE);
    frame.elastic = false;
    check_dropped(&entry_node, Hook::Xdp, &mut frame, DropReason::RewriteFailed);
}

proptest! {
    #[test]
    fn any_client_is_served_by_any_path(
        // Unicast.
        address in prop_oneof![0x0100_0000..0x7f00_0000_u32, 0x8000_0000..0xe000_0000_u32],
        port in any::<u16>(),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        is_tcp in any::<bool>(),
        unfinished in any::<bool>(),
        summed in any::<bool>(),
        remote in any::<bool>(),
        direct in any::<bool>(),
    ) {
        let protocol = if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let talk = Talk { protocol, payload, unfinished, summed };
        let replica = if remote { REMOTE } else { LOCAL };
        let entry_node = if direct { node(1, replica).direct() } else { node(1, replica) };
        let backend_node = remote.then(|| node(2, replica));
        let client = SocketAddrV4::new(address.into(), port);
        let path = Path {
            client,
            frontend: at(FRONTEND),
            presented: client,
            hook: if remote { Hook::Xdp } else { Hook::TcUplink },
            home: TO_CLIENT,
            entry_node: &entry_node,
            backend_node: backend_node.as_ref(),
            direct: direct && remote,
        };
        path.hold(&talk);
    }
}
