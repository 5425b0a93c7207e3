//! What the programs report of packets while someone watches.

use std::{
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use mesh_agent::{
    datapath::{
        Datapath,
        monitor::{EventKind, Observation, Observations, PacketTuple, WATCH},
    },
    model::Location,
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, backend_key, from_peer_about, frontend, serve},
    frames::{ACK, Packet, REPLY, RST, SYN},
    node::{Node, on_a_node_with},
    run::{TC_REDIRECT, XDP_TX},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// What has been reported since a number.
fn observe(node: &mut Node, since: Option<u64>) -> Observations {
    node.datapath().observe(since).expect("reports can be read")
}

/// Each processor has a limit, and says with its next report how many it has not made.
fn on_one_processor() {
    let mut processors = CpuSet::new();
    processors.set(0).expect("there is a first processor");
    sched_setaffinity(Pid::from_raw(0), &processors).expect("the thread can be bound");
}

/// The only report since a number.
fn only(node: &mut Node, since: &mut Option<u64>) -> Observation {
    let mut found = observe(node, *since);
    assert_eq!((found.list.len(), found.lost), (1, 0), "{found:?}");
    *since = Some(found.next);
    found.list.remove(0)
}

fn syn(client: SocketAddrV4) -> Vec<u8> {
    Packet::tcp(arriving(), client, frontend(WEB), SYN).frame()
}

fn tuple(source: SocketAddrV4, destination: SocketAddrV4) -> Option<PacketTuple> {
    Some(PacketTuple {
        protocol: 6,
        source: source.ip().to_owned().into(),
        destination: destination.ip().to_owned().into(),
        ports: Some((source.port(), destination.port())),
    })
}

#[test]
fn events_have_addresses_replica_and_first_bytes_in_xdp_and_in_tc() {
    on_a_node_with(None, 4096, |node| {
        let remote = node.serving(Location::Remote(PEER));
        node.apply(&remote);
        let mut since = Some(observe(node, None).next);

        assert_eq!(node.xdp(&syn(CLIENT)).verdict, XDP_TX);
        let opened = only(node, &mut since);
        assert_eq!((opened.kind, opened.reason), (EventKind::Opened, None));
        assert_eq!(opened.tuple, tuple(CLIENT, frontend(WEB)));
        assert_eq!(opened.backend, Some(backend_key(WEB, 5)));
        assert_eq!(opened.length as usize, syn(CLIENT).len());
        // A part of a multiple of 4 bytes behind the Ethernet header may be missing.
        assert!(opened.head.len() + 4 > syn(CLIENT).len());
        assert_eq!(opened.head, syn(CLIENT)[..opened.head.len()]);
        assert_eq!(opened.headers, opened.head.len(), "there is no payload");

        // What the peer has encapsulated is shown by the addresses inside.
        let reset = Packet::tcp(arriving(), frontend(WEB), CLIENT, RST | ACK);
        let reset = from_peer_about(5, WEB, REPLY).around(&reset);
        assert_eq!(node.xdp(&reset).verdict, XDP_TX);
        let closed = only(node, &mut since);
        assert_eq!(
            (closed.kind, closed.reason),
            (EventKind::Closed, Some("reset_by_backend"))
        );
        assert_eq!(closed.tuple, tuple(frontend(WEB), CLIENT));
        assert_eq!(closed.backend, Some(backend_key(WEB, 5)));

        let local = node.serving(node.local());
        node.apply(&local);
        let client = SocketAddrV4::new(*CLIENT.ip(), 40_001);
        assert_eq!(node.tc_uplink(&syn(client)).verdict, TC_REDIRECT);
        let opened = only(node, &mut since);
        assert_eq!(
            (opened.kind, opened.tuple),
            (EventKind::Opened, tuple(client, frontend(WEB)))
        );
        assert_eq!(opened.head, syn(client), "an skb is copied to its end");

        let mut empty = node.without_services();
        serve(&mut empty, WEB, &[]);
        node.apply(&empty);
        node.xdp(&syn(CLIENT));
        let refused = only(node, &mut since);
        assert_eq!(
            (refused.kind, refused.reason),
            (EventKind::Refused, Some("no_backend"))
        );
        assert_eq!(
            (refused.tuple, refused.backend),
            (tuple(CLIENT, frontend(WEB)), None)
        );
    });
}

#[test]
fn a_flow_that_ends_without_a_packet_is_reported_with_the_reason() {
    on_a_node_with(None, 4096, |node| {
        let mut state = node.serving(Location::Remote(PEER));
        for service in state.services.values_mut() {
            service.idle.udp = Some(1);
        }
        node.apply(&state);
        let client = SocketAddrV4::new(*CLIENT.ip(), 40_001);
        node.connect(WEB, client);
        let datagram = Packet::udp(arriving(), CLIENT, frontend(DNS)).frame();
        assert_eq!(node.xdp(&datagram).verdict, XDP_TX);
        let mut since = Some(observe(node, None).next);

        let deadline = Instant::now() + Duration::from_secs(30);
        while observe(node, since).list.is_empty() {
            assert!(Instant::now() < deadline, "the flow of UDP never ends");
            thread::sleep(Duration::from_millis(100));
            node.datapath().maintain().expect("the walk over the flows");
        }
        let idle = only(node, &mut since);
        assert_eq!((idle.kind, idle.reason), (EventKind::Closed, Some("unanswered")));
        assert_eq!(idle.tuple.map(|tuple| tuple.protocol), Some(17));
        assert_eq!(idle.backend, Some(backend_key(DNS, 5)));

        for service in state.services.values_mut() {
            service.closed = [*frontend(WEB).ip()].into();
        }
        node.apply(&state);
        node.datapath().maintain().expect("the walk over the flows");
        let denied = only(node, &mut since);
        assert_eq!((denied.kind, denied.reason), (EventKind::Closed, Some("denied")));
        assert_eq!(denied.tuple, tuple(client, frontend(WEB)));
        assert!(
            denied.interface.is_empty() && denied.head.is_empty(),
            "there was no packet"
        );
    });
}

#[test]
fn no_more_is_reported_than_the_limit_and_what_is_past_it_is_counted() {
    on_a_node_with(None, 4096, |node| {
        let mut empty = node.without_services();
        serve(&mut empty, WEB, &[]);
        node.apply(&empty);
        on_one_processor();
        let first = observe(node, None).next;
        let packets = 6_000;
        for _ in 0..packets {
            node.xdp(&syn(CLIENT));
        }
        // The next second.
        thread::sleep(Duration::from_millis(1100));
        node.xdp(&syn(CLIENT));
        let found = observe(node, Some(first));
        assert!(found.list.len() < packets as usize, "{}", found.list.len());
        assert_eq!(found.next - first, packets + 1);
        assert_eq!(found.lost + found.list.len() as u64, packets + 1);
    });
}

#[test]
fn nothing_is_reported_when_no_one_has_asked_for_a_while() {
    on_a_node_with(None, 4096, |node| {
        let remote = node.serving(Location::Remote(PEER));
        node.apply(&remote);
        let first = observe(node, None).next;
        thread::sleep(WATCH + Duration::from_millis(100));
        node.datapath().maintain().expect("the data path is kept up");
        node.xdp(&syn(CLIENT));
        assert_eq!(observe(node, Some(first)).list, [], "no one watched");
        node.xdp(&syn(SocketAddrV4::new(*CLIENT.ip(), 40_001)));
        assert_eq!(observe(node, Some(first)).list.len(), 1);
    });
}
