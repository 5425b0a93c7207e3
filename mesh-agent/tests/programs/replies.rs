//! Replies of containers to clients: directly, into the tunnel, out of the tunnel.

use std::net::{Ipv4Addr, SocketAddrV4};

use aya::maps::{Array, Map, MapData};
use mesh_agent::model::Location;
use mesh_agent_testing::{
    cluster::{
        CLIENT, DNS, PEER, ROUTER_MAC, WEB, arriving, backend_key, from_peer, frontend, leaving_to,
        out_of_container, target, to_peer,
    },
    frames::{ACK, FIN, FORWARD, FORWARD_DIRECT, Packet, REPLY, SYN, check_frame, outer_port},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_UNSPEC, XDP_TX},
};
use mesh_ebpf::abi::VERSION;

/// The frontend as a client of the peer has dialled it.
const ENTRY: SocketAddrV4 = SocketAddrV4::new(PEER, WEB.port);

fn local(node: &mut Node) {
    let state = node.serving(node.local());
    node.apply(&state);
}

/// The ports that the map of the backends' ports has bits for: TCP from 0, UDP from 65,536.
fn backend_ports(node: &Node) -> Vec<u32> {
    let filter = filter(node);
    let entries = (0..filter.len()).map(|index| (index, filter.get(&index, 0).expect("an entry")));
    entries
        .flat_map(|(index, bits)| {
            let set = (0..64).filter(move |bit| bits >> bit & 1 != 0);
            set.map(move |bit| index * 64 + bit)
        })
        .collect()
}

fn filter(node: &Node) -> Array<MapData, u64> {
    let path = node.pins().join(format!("v{VERSION}")).join("BACKEND_PORTS");
    let map = Map::Array(MapData::from_pin(&path).expect("the map is pinned"));
    map.try_into().expect("an array of bits")
}

#[test]
fn replies_are_looked_for_at_the_ports_of_this_nodes_backends_only() {
    on_a_node(|node| {
        assert!(backend_ports(node).is_empty());
        local(node);
        let (web, dns) = (u32::from(target(WEB).port()), u32::from(target(DNS).port()));
        assert_eq!(backend_ports(node), [web, 65_536 + dns]);
        node.tc_uplink(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, SYN | ACK).frame();
        assert_eq!(node.tc_container(&answer).verdict, TC_REDIRECT);

        // The maps of an earlier version have no such filter: a new agent fills it before it attaches.
        node.crash();
        for index in 0..filter(node).len() {
            filter(node).set(index, 0, 0).expect("the map can be written");
        }
        node.load();
        assert_eq!(backend_ports(node), [web, 65_536 + dns]);
        assert_eq!(node.tc_container(&answer).verdict, TC_REDIRECT);

        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        assert!(backend_ports(node).is_empty());
        assert_eq!(node.tc_container(&answer).verdict, TC_UNSPEC);
    });
}

#[test]
fn an_answer_to_a_client_of_this_node_comes_from_the_frontend() {
    on_a_node(|node| {
        local(node);
        node.tc_uplink(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let mut bytes = 0;
        for flags in [SYN | ACK, ACK] {
            let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, flags);
            bytes += answer.frame().len() as u64 - 14;
            let output = node.tc_container(&answer.frame());
            assert_eq!(output.verdict, TC_REDIRECT);
            let expected = answer.routed(leaving_to(ROUTER_MAC), frontend(WEB), CLIENT);
            check_frame(&output.frame, &expected.frame());
        }
        let traffic = node.traffic(backend_key(WEB, 5));
        assert_eq!((traffic.packets_out, traffic.bytes_out), (2, bytes));
    });
}

#[test]
fn an_answer_to_a_flow_from_a_peer_goes_back_through_the_tunnel() {
    on_a_node(|node| {
        local(node);
        let inner = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        node.tc_uplink(&from_peer(WEB, FORWARD).around(&inner));
        let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, SYN | ACK);
        let output = node.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let port = outer_port(&output.frame);
        let clamped = answer.routed(arriving(), ENTRY, CLIENT).with_mss(1404);
        check_frame(&output.frame, &to_peer(WEB, REPLY, port).around(&clamped));

        let data = Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK);
        let output = node.tc_container(&data.frame());
        let restored = data.routed(arriving(), ENTRY, CLIENT);
        check_frame(&output.frame, &to_peer(WEB, REPLY, port).around(&restored));
    });
}

#[test]
fn with_direct_return_the_answer_goes_to_the_client() {
    on_a_node(|node| {
        local(node);
        let inner = Packet::udp(arriving(), CLIENT, SocketAddrV4::new(PEER, DNS.port));
        node.tc_uplink(&from_peer(DNS, FORWARD_DIRECT).around(&inner));
        let answer = Packet::udp(out_of_container(), target(DNS), CLIENT);
        let output = node.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let expected = answer.routed(leaving_to(ROUTER_MAC), SocketAddrV4::new(PEER, DNS.port), CLIENT);
        check_frame(&output.frame, &expected.frame());
    });
}

#[test]
fn without_a_route_to_the_client_a_direct_answer_goes_back_through_the_tunnel() {
    on_a_node(|node| {
        local(node);
        let unreachable = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 40_000);
        let entry = SocketAddrV4::new(PEER, DNS.port);
        let inner = Packet::udp(arriving(), unreachable, entry);
        node.tc_uplink(&from_peer(DNS, FORWARD_DIRECT).around(&inner));
        let answer = Packet::udp(out_of_container(), target(DNS), unreachable);
        let output = node.tc_container(&answer.frame());
        assert_eq!(output.verdict, TC_REDIRECT);
        let port = outer_port(&output.frame);
        let restored = answer.routed(arriving(), entry, unreachable);
        check_frame(&output.frame, &to_peer(DNS, REPLY, port).around(&restored));
    });
}

#[test]
fn an_answer_out_of_the_tunnel_reaches_the_client_unchanged() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        node.xdp(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
        let inner = Packet::tcp(out_of_container(), frontend(WEB), CLIENT, SYN | ACK);
        let frame = from_peer(WEB, REPLY).around(&inner);
        let expected = inner
            .rewritten(leaving_to(ROUTER_MAC), frontend(WEB), CLIENT)
            .frame();
        let by_xdp = node.xdp(&frame);
        assert_eq!(by_xdp.verdict, XDP_TX);
        check_frame(&by_xdp.frame, &expected);
        let by_tc = node.tc_uplink(&frame);
        assert_eq!(by_tc.verdict, TC_REDIRECT);
        check_frame(&by_tc.frame, &expected);
        let traffic = node.traffic(backend_key(WEB, 5));
        assert_eq!(
            (traffic.packets_out, traffic.bytes_out),
            (2, 2 * (expected.len() as u64 - 14))
        );
    });
}

#[test]
fn other_packets_of_a_container_pass_unchanged() {
    on_a_node(|node| {
        local(node);
        for packet in [
            Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK),
            Packet::udp(
                out_of_container(),
                SocketAddrV4::new(*target(WEB).ip(), 5000),
                CLIENT,
            ),
        ] {
            let output = node.tc_container(&packet.frame());
            assert_eq!(output.verdict, TC_UNSPEC);
            check_frame(&output.frame, &packet.frame());
        }
    });
}

#[test]
fn a_port_opens_a_new_flow_only_after_its_old_one_closed() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let from_client = |flags| Packet::tcp(arriving(), CLIENT, frontend(WEB), flags).frame();
        let from_container = |flags| Packet::tcp(out_of_container(), target(WEB), CLIENT, flags).frame();
        node.tc_uplink(&from_client(SYN));
        node.tc_uplink(&from_client(SYN));
        assert_eq!(node.traffic(backend_key(WEB, 5)).connections_total, 1);
        node.tc_uplink(&from_client(FIN | ACK));
        node.tc_container(&from_container(FIN | ACK));
        node.tc_uplink(&from_client(SYN));
        assert_eq!(node.traffic(backend_key(WEB, 5)).connections_total, 2);
    });
}
