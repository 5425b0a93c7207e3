//! The tables of open and half-open flows when they fill up.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

use mesh_agent::{
    datapath::{
        Counters, Datapath, MapUsage,
        flow_list::{FlowCursor, FlowState, Ingress, ListedFlow},
    },
    model::Location,
};
use mesh_agent_testing::{
    cluster::{
        CONTAINER, NODE, PEER, WEB, arriving, backend_key, from_peer_about, frontend, out_of_container,
    },
    frames::{ACK, FORWARD, Packet, RST, SYN},
    idle::on_a_node,
    node::{Node, on_a_node_with},
    run::{XDP_PASS, XDP_TX},
};

fn client(number: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 10_000 + number)
}

fn verdict(node: &mut Node, client: SocketAddrV4, flags: u8) -> u32 {
    node.xdp(&Packet::tcp(arriving(), client, frontend(WEB), flags).frame())
        .verdict
}

/// The connections of these clients that are known.
fn known(node: &mut Node, numbers: impl Iterator<Item = u16>) -> usize {
    numbers
        .filter(|number| match verdict(node, client(*number), ACK) {
            XDP_TX => true,
            XDP_PASS => false,
            other => panic!("verdict {other}"),
        })
        .count()
}

/// The counters after a walk of the tables, of which there is one a second at most.
fn counters(node: &mut Node) -> Counters {
    thread::sleep(Duration::from_millis(1100));
    node.datapath().maintain().expect("the flows can be walked");
    node.datapath().counters().expect("counters can be read")
}

fn entries(counters: &Counters, map: &str) -> u64 {
    let found = counters.maps.iter().find(|usage| usage.map == map);
    found
        .map(|usage: &MapUsage| usage.entries)
        .expect("the map is listed")
}

#[test]
fn open_connections_survive_any_number_of_new_ones() {
    on_a_node_with(None, 4096, |node| {
        let state = node.serving(Location::Remote(PEER));
        // With one, none of this would be in a table: see `flood`.
        node.apply(&Node::without_flood_limit(&state));
        for number in 0..100 {
            node.connect(WEB, client(number));
        }
        // Counts from here on.
        counters(node);
        // Twenty times what the table of half-open flows holds, from as many addresses.
        for number in 0..20_000_u32 {
            let address = Ipv4Addr::from(0x0a01_0000 + number);
            assert_eq!(verdict(node, SocketAddrV4::new(address, 40_000), SYN), XDP_TX);
        }
        assert_eq!(known(node, 0..100), 100);
        let counters = counters(node);
        assert_eq!(entries(&counters, "flows"), 100);
        assert!(entries(&counters, "half_open") <= 1024);
        assert!(
            counters.half_open_evictions > 18_000,
            "{}",
            counters.half_open_evictions
        );
        assert_eq!((counters.flow_evictions, counters.flows_not_opened), (0, 0));
        let active: u64 = counters
            .backends
            .values()
            .map(|traffic| traffic.connections_active)
            .sum();
        assert_eq!(active, 100, "what is not answered is not active");
    });
}

#[test]
fn a_full_table_refuses_nothing_and_makes_room_for_what_is_in_use() {
    on_a_node_with(None, 1024, |node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&Node::without_flood_limit(&state));
        for number in 0..1200 {
            node.connect(WEB, client(number));
        }
        assert_eq!(known(node, 0..1200), 1200, "some are in the other table");
        // As many as make room are over.
        for number in 0..300 {
            assert_eq!(verdict(node, client(number), RST), XDP_TX);
        }
        let full = counters(node);
        assert!(full.flows_not_opened >= 176, "{}", full.flows_not_opened);
        assert!(
            (120..=300).contains(&full.flow_evictions),
            "{}",
            full.flow_evictions
        );
        assert_eq!(known(node, 300..1200), 900, "what closes goes first");
        let after = node.datapath().counters().expect("counters can be read");
        assert_eq!(after.flow_evictions, full.flow_evictions);
        node.connect(WEB, client(2000));
        assert_eq!(known(node, 2000..2001), 1);
    });
}

/// Every flow, read page by page, and how many pages that took.
fn list(node: &mut Node) -> (Vec<ListedFlow>, usize) {
    let (mut flows, mut pages) = (Vec::new(), 1);
    let mut cursor = FlowCursor::default();
    let read = |cursor: &mut FlowCursor, flows: &mut Vec<ListedFlow>, node: &mut Node| {
        let read = node.datapath().read_flows(cursor, &mut |flow| flows.push(flow));
        read.expect("the flows can be read")
    };
    while read(&mut cursor, &mut flows, node) {
        pages += 1;
    }
    (flows, pages)
}

#[test]
fn flows_are_listed_page_by_page_each_once() {
    on_a_node_with(None, 8192, |node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&Node::without_flood_limit(&state));
        for number in 0..5000 {
            node.connect(WEB, client(number));
        }
        assert_eq!(verdict(node, client(5000), SYN), XDP_TX);
        assert_eq!(verdict(node, client(7), RST), XDP_TX);
        let (flows, pages) = list(node);
        assert!(pages > 2, "{pages} for both tables");
        let clients: BTreeSet<_> = flows.iter().map(|flow| flow.client.port()).collect();
        assert_eq!((flows.len(), clients.len()), (5001, 5001));
        for flow in &flows {
            let expected = match flow.client.port() - 10_000 {
                7 => FlowState::Closed,
                5000 => FlowState::HalfOpen,
                _ => FlowState::Open,
            };
            assert_eq!(flow.state, expected, "{flow:?}");
            assert_eq!(flow.backend, Some(backend_key(WEB, 5)), "{flow:?}");
            assert_eq!(
                (flow.frontend, flow.ingress),
                (frontend(WEB).into(), Ingress::Network)
            );
            assert_eq!(flow.presented, None);
        }
        // Those of a backend that is gone are listed without it.
        node.apply(&node.without_services());
        let (flows, _) = list(node);
        assert_eq!(flows.len(), 5001);
        assert!(flows.iter().all(|flow| flow.backend.is_none()));
    });
}

#[test]
fn a_flow_to_a_local_replica_is_listed_once_and_says_from_which_node_it_came() {
    on_a_node(|node| {
        let local = node.local();
        node.apply(&node.serving(local));
        let here = Packet::tcp(arriving(), client(1), frontend(WEB), SYN).frame();
        node.tc_uplink(&here);
        let inner = Packet::tcp(arriving(), client(2), frontend(WEB), SYN);
        node.tc_uplink(&from_peer_about(5, WEB, FORWARD).around(&inner));
        // A container that dials its own node, which answers it by the node's address.
        let container = SocketAddrV4::new(CONTAINER, 10_003);
        let own = Packet::tcp(out_of_container(), container, frontend(WEB), SYN).frame();
        node.tc_container(&own);
        let (mut flows, _) = list(node);
        flows.sort_by_key(|flow| flow.client.port());
        let found: Vec<_> = flows
            .iter()
            .map(|flow| (flow.client, flow.ingress, flow.presented.map(|it| *it.ip())))
            .collect();
        assert_eq!(
            found,
            [
                (client(1).into(), Ingress::Network, None),
                (client(2).into(), Ingress::Node(PEER), None),
                (container.into(), Ingress::Container, Some(NODE)),
            ]
        );
        assert!(flows.iter().all(|flow| flow.backend == Some(backend_key(WEB, 5))));
    });
}
