//! More new flows than a service's limits allow.

use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_agent::{
    datapath::{
        Counters, Datapath,
        limited::{Dropped, Limited},
    },
    model::{Limits, Location, ServiceKey},
};
use mesh_agent_testing::{
    cluster::{CLIENT, CONTAINER, DNS, PEER, WEB, arriving, from_peer, frontend, out_of_container, target},
    frames::{ACK, Packet, REPLY, RST, SYN},
    idle::on_a_node,
    node::{Node, on_a_node_with},
    run::{TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_TX},
};

fn limits(max_new: Option<u32>, max_new_per_source: Option<u32>, flood: Option<u32>) -> Limits {
    Limits {
        max_new,
        max_new_per_source,
        flood,
    }
}

fn first(client: SocketAddrV4, service: ServiceKey) -> Vec<u8> {
    if service == WEB {
        Packet::tcp(arriving(), client, frontend(service), SYN).frame()
    } else {
        Packet::udp(arriving(), client, frontend(service)).frame()
    }
}

fn stranger(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a01_0000 + number), 40_000)
}

fn counters(node: &mut Node) -> Counters {
    node.datapath().counters().expect("counters can be read")
}

fn limited(node: &mut Node, service: ServiceKey) -> Limited {
    let datapath = node.datapath();
    datapath.maintain().expect("the data path can be maintained");
    datapath.limited().get(&service).copied().unwrap_or_default()
}

fn dropped(node: &mut Node, reason: &str) -> u64 {
    let drops = node.drops();
    drops
        .iter()
        .filter(|((_, of), _)| of == reason)
        .map(|(_, packets)| packets)
        .sum()
}

/// What this test's packets may cross in the middle of it.
const ONE_MORE_SECOND: u64 = 2;

#[test]
fn new_flows_past_a_services_limit_are_dropped() {
    on_a_node(|node| {
        for (location, service) in [
            (Location::Remote(PEER), WEB),
            (Location::Remote(PEER), DNS),
            (node.local(), WEB),
            (node.local(), DNS),
        ] {
            let before = dropped(node, "max_new_connections");
            let open = node.serving(location);
            node.apply(&Node::limited(&open, limits(Some(50), None, None)));
            for number in 0..300 {
                let frame = first(stranger(number), service);
                match node.xdp(&frame).verdict {
                    XDP_DROP | XDP_TX => {}
                    XDP_PASS => assert_eq!(node.tc_uplink(&frame).verdict, TC_REDIRECT),
                    other => panic!("verdict {other}"),
                }
            }
            let dropped = dropped(node, "max_new_connections") - before;
            assert!((300 - 50 * ONE_MORE_SECOND..=250).contains(&dropped), "{dropped}");
            // The last service of this port has taken nothing along.
            assert_eq!(limited(node, service).max_new.total, dropped);
            // And none any more, once the limit is gone.
            node.apply(&open);
            for number in 0..100 {
                assert_ne!(
                    node.xdp(&first(stranger(1000 + number), service)).verdict,
                    XDP_DROP
                );
            }
            node.apply(&node.without_services());
        }
    });
}

#[test]
fn one_client_is_limited_and_others_are_not() {
    on_a_node(|node| {
        let open = node.serving(Location::Remote(PEER));
        node.apply(&Node::limited(&open, limits(None, Some(20), None)));
        assert_eq!(limited(node, WEB), Limited::default());
        for port in 0..200 {
            node.xdp(&first(SocketAddrV4::new(*CLIENT.ip(), 10_000 + port), WEB));
            assert_eq!(
                node.tc_uplink(&first(stranger(port.into()), WEB)).verdict,
                TC_REDIRECT
            );
        }
        let dropped = dropped(node, "max_new_connections_per_source");
        assert!((200 - 20 * ONE_MORE_SECOND..=180).contains(&dropped), "{dropped}");
        let limited = limited(node, WEB);
        let expected = Dropped {
            last_minute: dropped,
            total: dropped,
        };
        assert_eq!(limited.max_new_per_source, expected);
        assert_eq!(limited.max_new, Dropped::default());
        assert!(
            [XDP_DROP, TC_SHOT].contains(&node.xdp(&first(SocketAddrV4::new(*CLIENT.ip(), 9), WEB)).verdict)
        );
    });
}

#[test]
fn a_flooded_local_service_answers_without_entries_and_opens_what_follows() {
    on_a_node_with(None, 4096, |node| {
        let state = node.serving(node.local());
        node.apply(&Node::limited(&state, limits(None, None, Some(10))));
        let web = target(WEB);
        for number in 0..20_000 {
            let client = stranger(number);
            let frame = first(client, WEB);
            assert_eq!(node.xdp(&frame).verdict, XDP_PASS);
            let delivered = node.tc_uplink(&frame);
            assert_eq!(delivered.verdict, TC_REDIRECT);
            assert_eq!(delivered.frame[30..34], CONTAINER.octets());
            let answer = Packet::tcp(out_of_container(), web, client, SYN | ACK).frame();
            let answer = node.tc_container(&answer);
            assert_eq!(answer.verdict, TC_REDIRECT, "an answer to {client}");
            assert_eq!(answer.frame[26..30], frontend(WEB).ip().octets());
        }
        assert!(limited(node, WEB).is_flooded && !limited(node, DNS).is_flooded);
        let flooded = counters(node);
        assert!(
            flooded.untracked_packets > 19_000,
            "{}",
            flooded.untracked_packets
        );
        assert!(
            flooded.half_open_evictions < 100,
            "{}",
            flooded.half_open_evictions
        );
        // A client that goes on gets a flow, and the flood does not take it away again.
        let client = CLIENT;
        let from_client = |flags| Packet::tcp(arriving(), client, frontend(WEB), flags).frame();
        node.tc_uplink(&from_client(SYN));
        node.tc_uplink(&from_client(ACK));
        let answer = Packet::tcp(out_of_container(), web, client, ACK).frame();
        assert_eq!(node.tc_container(&answer).verdict, TC_REDIRECT);
        for number in 0..20_000 {
            node.tc_uplink(&first(stranger(100_000 + number), WEB));
        }
        node.apply(&Node::without_flood_limit(&state));
        assert_eq!(node.tc_uplink(&from_client(ACK)).verdict, TC_REDIRECT);
        assert_eq!(node.tc_container(&answer).verdict, TC_REDIRECT);
        assert_eq!(node.tc_uplink(&from_client(RST)).verdict, TC_REDIRECT);
    });
}

#[test]
fn a_flooded_remote_service_is_answered_without_entries() {
    on_a_node_with(None, 4096, |node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&Node::limited(&state, limits(None, None, Some(10))));
        for number in 0..5_000 {
            let client = stranger(number);
            assert_eq!(node.xdp(&first(client, WEB)).verdict, XDP_TX);
            let answer = Packet::tcp(arriving(), frontend(WEB), client, SYN | ACK);
            let answer = node.xdp(&from_peer(WEB, REPLY).around(&answer));
            assert_eq!(answer.verdict, XDP_TX, "an answer to {client}");
        }
        assert!(counters(node).untracked_packets > 4_500);
        node.connect(WEB, CLIENT);
    });
}
