//! Encapsulated replies on their entry node.

use super::*;

/// What node 2 sends back to node 1 for the SYN.
fn returned_by(backend_node: &TestTables, flags: u8) -> TestFrame {
    let mut frame = encapsulated(&node(1), SYN);
    run(backend_node, Hook::TcUplink, &mut frame);
    let mut reply = reply_to(&view(&frame), flags, b"");
    let action = run(backend_node, Hook::TcContainer, &mut reply);
    assert!(matches!(action, Action::Transmit { .. }), "{action:?}");
    reply.received()
}

#[test]
fn a_reply_finds_its_flow_and_notes_the_backends_progress() {
    for (flags, progress) in [
        (SYN | ACK, Progress::OPEN),
        (FIN | ACK, Progress::FINISHED),
        (RST, Progress::RESET),
    ] {
        let tables = node(1);
        run(&tables, Hook::Xdp, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
        let frame = returned_by(&node(2), flags);
        for hook in [Hook::Xdp, Hook::TcUplink] {
            match decide(&frame, &tables, hook).verdict() {
                Verdict::DeliverReply { flow } => {
                    assert_eq!(
                        (flow.from_backend(), flow.from_client()),
                        (progress, Progress::OPEN)
                    );
                }
                decision => panic!("{decision:?}"),
            }
        }
    }
}

#[test]
fn a_reply_to_a_container_notes_progress_at_the_forward_entry() {
    let (tables, backend_node) = (node(1), node(2));
    let container = at("172.18.0.9:40000");
    let mut frame = tcp(container, at(FRONTEND), SYN);
    run(&tables, Hook::TcContainer, &mut frame);
    let mut frame = frame.received();
    run(&backend_node, Hook::TcUplink, &mut frame);
    let mut reply = reply_to(&view(&frame), FIN | ACK, b"");
    run(&backend_node, Hook::TcContainer, &mut reply);
    assert_eq!(view_inner(&reply).destination, at("10.0.0.1:40000"));
    run(
        &tables,
        Hook::TcUplink,
        &mut reply.received().routed(CLIENT_ROUTE),
    );
    let key = parse(&tcp(container, at(FRONTEND), ACK), ETHERNET_LENGTH)
        .expect("a packet")
        .key;
    assert_eq!(
        tables.flow(&key).expect("a flow").from_backend(),
        Progress::FINISHED
    );
}

#[test]
fn a_reply_of_an_unknown_flow_is_dropped() {
    check_dropped(
        &node(1),
        &returned_by(&node(2), SYN | ACK),
        DropReason::UnknownFlow,
    );
}

#[test]
fn a_reply_for_what_is_no_clients_flow_is_dropped() {
    let frame = returned_by(&node(2), ACK);
    let key = parse(&frame, INNER).expect("a packet").key.reversed();
    for (origin, role) in [
        (Origin::TUNNEL, Role::FORWARD),
        (Origin::TUNNEL_DIRECT, Role::FORWARD),
        (Origin::UPLINK, Role::REPLY),
    ] {
        let tables = node(1);
        let flow = crate::abi::Flow {
            origin,
            role,
            ..Default::default()
        };
        tables.put_flow(&key, &flow).expect("room");
        check_dropped(&tables, &frame, DropReason::UnknownFlow);
    }
}

#[test]
fn a_returned_reply_is_seen() {
    let mut tables = node(1);
    run(&tables, Hook::Xdp, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
    tables.config_mut().now = 2000;
    let frame = returned_by(&node(2), ACK);
    run(&tables, Hook::Xdp, &mut frame.routed(CLIENT_ROUTE));
    let key = parse(&tcp(at(CLIENT), at(FRONTEND), ACK), ETHERNET_LENGTH)
        .expect("a packet")
        .key;
    assert_eq!(tables.flow(&key).expect("a flow").seen(), 2000);
}

/// An entry node with a flow of the client to the first replica, and that one's reply.
fn answered() -> (TestTables, TestFrame) {
    let tables = node(1);
    run(&tables, Hook::Xdp, &mut tcp(at(CLIENT), at(FRONTEND), SYN));
    (tables, returned_by(&node(2), RST))
}

/// The client's flow is as it was.
#[track_caller]
fn check_untouched(tables: &TestTables) {
    let key = parse(&tcp(at(CLIENT), at(FRONTEND), ACK), ETHERNET_LENGTH)
        .expect("a packet")
        .key;
    let flow = tables.flow(&key).expect("a flow");
    assert_eq!(
        (flow.from_backend(), flow.opening()),
        (Progress::OPEN, Opening::asked(0))
    );
}

#[test]
fn a_reply_of_another_node_is_dropped() {
    let (tables, frame) = answered();
    let mut forged = with(frame.clone(), OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut forged.bytes, OUTER);
    check_dropped(&tables, &forged, DropReason::UnknownFlow);
    check_untouched(&tables);
    let decision = decide(&frame, &tables, Hook::Xdp).verdict();
    assert!(matches!(decision, Verdict::DeliverReply { .. }), "{decision:?}");
}

#[test]
fn a_reply_of_another_backend_is_dropped() {
    let (tables, frame) = answered();
    for (offset, bytes) in [
        (12, &[10, 200, 0, 2][..]), // the service's other replica, on the same node
        (16, &[0, 81]),             // another port of the container
        (18, &[0x7a, 2]),           // another task
    ] {
        let forged = with(frame.clone(), GENEVE + offset, bytes);
        check_dropped(&tables, &forged, DropReason::UnknownFlow);
    }
    check_untouched(&tables);
}

#[test]
fn a_reply_of_a_backend_that_is_gone_is_dropped() {
    let (mut tables, frame) = answered();
    // Its slot has another backend, or none; or the replica has moved to this node.
    tables.backends[0].generation += 1;
    check_dropped(&tables, &frame, DropReason::UnknownFlow);
    tables.backends[0].generation = 0;
    check_dropped(&tables, &frame, DropReason::UnknownFlow);
    tables.backends[0].generation = 1;
    tables.backends[0].location = BACKEND_LOCAL;
    check_dropped(&tables, &frame, DropReason::UnknownFlow);
    check_untouched(&tables);
    tables.backends.clear();
    check_dropped(&tables, &frame, DropReason::UnknownFlow);
}

#[test]
fn a_draining_backend_still_replies() {
    let (mut tables, frame) = answered();
    // It is in no ring any more.
    tables.ring.clear();
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let decision = decide(&frame, &tables, hook).verdict();
        assert!(matches!(decision, Verdict::DeliverReply { .. }), "{decision:?}");
    }
}

#[test]
fn a_reply_to_a_container_is_checked_as_well() {
    let (tables, backend_node) = (node(1), node(2));
    let mut frame = tcp(at("172.18.0.9:40000"), at(FRONTEND), SYN);
    run(&tables, Hook::TcContainer, &mut frame);
    let mut frame = frame.received();
    run(&backend_node, Hook::TcUplink, &mut frame);
    let mut reply = reply_to(&view(&frame), SYN | ACK, b"");
    run(&backend_node, Hook::TcContainer, &mut reply);
    let reply = reply.received();
    let mut forged = with(reply.clone(), OUTER + 12, &node_address(3).octets());
    fix_ip_checksum(&mut forged.bytes, OUTER);
    for (frame, expect) in [(forged, false), (reply, true)] {
        let decision = decide(&frame, &tables, Hook::TcUplink).verdict();
        assert_eq!(
            matches!(decision, Verdict::DeliverReply { .. }),
            expect,
            "{decision:?}"
        );
    }
}
