//! Packets that are too big for their way, and the size of segments that TCP is allowed.

use super::*;

/// What the way to the peer carries, where it is less than the uplink does.
const NARROW: u16 = 1352;
const OPTIONS: [u8; 12] = [1; 12];

/// A datagram of so many bytes.
fn datagram(source: &str, destination: &str, length: u16) -> TestFrame {
    udp(at(source), at(destination), &vec![0; usize::from(length) - 28])
}

/// Three segments that GRO has put together, `length` bytes each on the wire.
fn aggregated(mut frame: TestFrame, headers: u16, length: u16) -> TestFrame {
    (frame.segments, frame.segment_size) = (3, u32::from(length - headers));
    frame
}

fn segments(length: u16) -> TestFrame {
    let segment = Segment {
        flags: SYN,
        options: &OPTIONS,
        payload: &[0; 4000],
        ..Segment::default()
    };
    aggregated(tcp(at(CLIENT), at(FRONTEND), segment), 20 + 20 + 12, length)
}

/// A node whose way to its peer carries [`NARROW`].
fn narrow(replica: Replica) -> TestTables {
    let mut tables = node(1, replica);
    tables.next_hops[2].inner_mtu = NARROW;
    tables
}

/// The packet is answered by ICMP 3/4 with the MTU, and goes nowhere.
#[track_caller]
fn check_too_big(tables: &TestTables, hook: Hook, frame: &TestFrame, mtu: u16) {
    let mut frame = frame.clone();
    let before = tables.drops(hook, DropReason::TooBig);
    assert_eq!(run(tables, hook, &mut frame), Action::Answer);
    assert_eq!(tables.drops(hook, DropReason::TooBig), before + 1);
    assert_eq!(tables.all_drops(), before + 1);
    assert_eq!(frame.bytes[L4_OFFSET..L4_OFFSET + 2], [3, 4]);
    assert_eq!(frame.bytes[L4_OFFSET + 6..L4_OFFSET + 8], mtu.to_be_bytes());
}

#[test]
fn what_is_larger_than_the_tunnel_is_answered_for_remote_backends_only() {
    for (tables, mtu) in [(node(1, REMOTE), INNER_MTU), (narrow(REMOTE), NARROW)] {
        for hook in [Hook::Xdp, Hook::TcUplink] {
            let mut fits = datagram(CLIENT, FRONTEND, mtu);
            assert_eq!(run(&tables, hook, &mut fits), TO_PEER);
        }
        let counted = tables.counters(1).packets_in;
        check_too_big(&tables, Hook::Xdp, &datagram(CLIENT, FRONTEND, mtu + 1), mtu);
        assert_eq!(tables.counters(1).packets_in, counted);
    }
    let mut whole = datagram(CLIENT, FRONTEND, 1500);
    let into = Action::IntoContainer {
        interface: LOCAL.interface(),
    };
    assert_eq!(run(&narrow(LOCAL), Hook::TcUplink, &mut whole), into);
}

#[test]
fn a_way_may_carry_more_than_the_smallest_uplink() {
    let mut tables = node(1, REMOTE);
    tables.next_hops[2].inner_mtu = 8952;
    let mut large = datagram(CLIENT, FRONTEND, 8952);
    assert_eq!(run(&tables, Hook::TcUplink, &mut large), TO_PEER);
    check_too_big(&tables, Hook::TcUplink, &datagram(CLIENT, FRONTEND, 8953), 8952);
}

#[test]
fn an_aggregated_packet_is_too_big_when_its_segments_are() {
    let tables = narrow(REMOTE);
    assert_eq!(run(&tables, Hook::TcUplink, &mut segments(NARROW)), TO_PEER);
    check_too_big(&tables, Hook::TcUplink, &segments(NARROW + 1), NARROW);
    let datagrams = |length| aggregated(datagram(CLIENT, FRONTEND, 4000), 28, length);
    assert_eq!(run(&tables, Hook::TcUplink, &mut datagrams(NARROW)), TO_PEER);
    let before = tables.all_drops();
    let mut frame = datagrams(NARROW + 1);
    assert_eq!(run(&tables, Hook::TcUplink, &mut frame), Action::Answer);
    assert_eq!(tables.all_drops(), before + 1);
}

#[test]
fn the_size_of_segments_is_what_the_way_to_the_peer_carries() {
    let segment = Segment {
        flags: SYN,
        options: &[2, 4, 0x05, 0xb4],
        ..Segment::default()
    };
    for hook in [Hook::Xdp, Hook::TcUplink] {
        let mut frame = tcp(at(CLIENT), at(FRONTEND), segment.clone());
        assert_eq!(run(&narrow(REMOTE), hook, &mut frame), TO_PEER);
        assert_eq!(view_inner(&frame).options[2..], (NARROW - 40).to_be_bytes());
    }
}

/// Node 2, whose way to the entry node 1 is narrow, with a flow of each protocol that node 1 has sent there.
fn behind_the_tunnel(direct: bool) -> TestTables {
    let replica = Replica::on(2, 1);
    let mut entry_node = node(1, replica);
    if direct {
        entry_node = entry_node.direct();
    }
    let mut tables = node(2, replica);
    tables.next_hops[1].inner_mtu = NARROW;
    for mut frame in [syn(), udp(at(CLIENT), at(FRONTEND), b"hello")] {
        run(&entry_node, Hook::TcUplink, &mut frame);
        run(&tables, Hook::TcUplink, &mut frame.received());
    }
    tables
}

const CONTAINER: &str = "172.18.0.1:80";

#[test]
fn a_reply_larger_than_the_tunnel_is_answered() {
    let tables = behind_the_tunnel(false);
    let mut fits = datagram(CONTAINER, CLIENT, NARROW);
    assert_eq!(run(&tables, Hook::TcContainer, &mut fits), TO_PEER);
    let mut fits = aggregated(datagram(CONTAINER, CLIENT, 4000), 28, NARROW);
    assert_eq!(run(&tables, Hook::TcContainer, &mut fits), TO_PEER);
    let large = datagram(CONTAINER, CLIENT, NARROW + 1);
    check_too_big(&tables, Hook::TcContainer, &large, NARROW);
}

#[test]
fn the_size_of_segments_in_an_answer_is_what_the_way_to_the_entry_node_carries() {
    let segment = Segment {
        flags: SYN | ACK,
        options: &[2, 4, 0x05, 0xb4],
        ..Segment::default()
    };
    let mut frame = tcp(at(CONTAINER), at(CLIENT), segment);
    assert_eq!(
        run(&behind_the_tunnel(false), Hook::TcContainer, &mut frame),
        TO_PEER
    );
    assert_eq!(view_inner(&frame).options[2..], (NARROW - 40).to_be_bytes());
}

#[test]
fn a_direct_reply_may_be_as_large_as_its_own_way_carries() {
    let tables = behind_the_tunnel(true);
    let mut large = datagram(CONTAINER, CLIENT, 1500).routed(CLIENT_ROUTE);
    assert_eq!(run(&tables, Hook::TcContainer, &mut large), TO_CLIENT);
    // Nothing leads to the client but the entry node.
    let by_entry_node = datagram(CONTAINER, CLIENT, NARROW + 1);
    check_too_big(&tables, Hook::TcContainer, &by_entry_node, NARROW);
}

#[test]
fn a_remote_reply_larger_than_the_route_to_its_client_is_answered_at_its_container() {
    let (entry_node, backend_node) = (node(1, REMOTE), node(2, REMOTE));
    let mut request = udp(at(CLIENT), at(FRONTEND), b"x");
    run(&entry_node, Hook::Xdp, &mut request);
    let mut request = request.received();
    run(&backend_node, Hook::TcUplink, &mut request);
    let answer = reply_to(&view(&request), 0, &[7; 1400]);
    let mut reply = answer.clone();
    assert_eq!(run(&backend_node, Hook::TcContainer, &mut reply), TO_PEER);
    let mut reply = reply.received().routed(Route::TooBig { mtu: 1300 });
    assert_eq!(run(&entry_node, Hook::Xdp, &mut reply.clone()), Action::Pass);
    assert_eq!(run(&entry_node, Hook::TcUplink, &mut reply), Action::Again);
    assert_eq!(entry_node.drops(Hook::TcUplink, DropReason::TooBig), 1);
    assert_eq!(run(&entry_node, Hook::TcUplink, &mut reply), TO_PEER);
    let mut error = reply.received();
    let interface = REMOTE.interface();
    assert_eq!(
        run(&backend_node, Hook::TcUplink, &mut error),
        Action::IntoContainer { interface }
    );
    let error = view_error(&error, ETHERNET_LENGTH);
    assert_eq!(error.header, (3, 4, [0, 0, 0x05, 0x14]), "1300");
    assert_eq!(
        (error.source, error.destination),
        (*at(CLIENT).ip(), REMOTE.address())
    );
    assert_eq!(
        (error.quoted_source, error.quoted_destination),
        (at(CONTAINER), at(CLIENT))
    );
}

#[test]
fn a_reply_larger_than_the_route_to_its_client_is_answered() {
    let mut tables = node(1, LOCAL);
    run(&tables, Hook::TcUplink, &mut udp(at(CLIENT), at(FRONTEND), b"x"));
    let large = datagram(CONTAINER, CLIENT, 1451).routed(Route::TooBig { mtu: 1450 });
    check_too_big(&tables, Hook::TcContainer, &large, 1450);
    // What is quoted is the packet as the container has sent it.
    let mut answered = large.clone();
    run(&tables, Hook::TcContainer, &mut answered);
    let quoted = L4_OFFSET + 8;
    assert_eq!(answered.bytes[quoted + 12..quoted + 24], large.bytes[26..38]);
    tables.config_mut().inner_mtu = 100;
    let mut segments = aggregated(datagram(CONTAINER, CLIENT, 4000), 28, 1450).routed(CLIENT_ROUTE);
    assert_eq!(run(&tables, Hook::TcContainer, &mut segments), TO_CLIENT);
    assert_eq!(
        segments.asked.get().map(|(.., length)| length),
        Some(1450),
        "its segments are what is sent"
    );
}
