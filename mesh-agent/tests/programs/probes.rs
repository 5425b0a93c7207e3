//! Probes of other nodes' agents, answered by the programs.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use mesh_agent_testing::{
    cluster::{NODE, PEER, STRANGER, WEB, from_peer},
    frames::{Macs, PROBE, PROBE_ANSWER, Packet, Tunnel, check_frame},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, TC_UNSPEC, XDP_DROP, XDP_PASS, XDP_TX},
};

const MESH_PORT: u16 = 6081;

fn serving(node: &mut Node) {
    let state = node.without_services();
    node.apply(&state);
}

/// A probe or an answer from an address of the peer's wire, as a socket sends it: with a checksum.
fn arriving(from: Ipv4Addr, kind: u8) -> Packet {
    let tunnel = Tunnel {
        from,
        ..from_peer(WEB, kind)
    };
    let at = |address| SocketAddrV4::new(address, MESH_PORT);
    let mut packet = Packet::udp(tunnel.macs, at(from), at(NODE));
    packet.payload = tunnel.around_ip(&[])[42..].to_vec();
    packet
}

#[test]
fn a_peers_probe_comes_back_as_an_answer() {
    on_a_node(|node| {
        serving(node);
        for padding in [0, 1300] {
            let mut probe = arriving(PEER, PROBE);
            probe.payload.resize(probe.payload.len() + padding, 0xaa);
            let back = Macs {
                source: probe.macs.destination,
                destination: probe.macs.source,
            };
            let mut answer = probe.rewritten(back, probe.destination, probe.source);
            answer.payload[10] = PROBE_ANSWER;
            let by_xdp = node.xdp(&probe.frame());
            assert_eq!(by_xdp.verdict, XDP_TX);
            check_frame(&by_xdp.frame, &answer.frame());
            let by_tc = node.tc_uplink(&probe.frame());
            assert_eq!(by_tc.verdict, TC_REDIRECT);
            check_frame(&by_tc.frame, &answer.frame());
        }
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn an_answer_passes_unchanged_to_the_agents_socket() {
    on_a_node(|node| {
        serving(node);
        let answer = arriving(PEER, PROBE_ANSWER).frame();
        let by_xdp = node.xdp(&answer);
        assert_eq!(by_xdp.verdict, XDP_PASS);
        check_frame(&by_xdp.frame, &answer);
        let by_tc = node.tc_uplink(&answer);
        assert_eq!(by_tc.verdict, TC_UNSPEC);
        check_frame(&by_tc.frame, &answer);
    });
}

#[test]
fn a_strangers_probe_is_dropped_and_counted() {
    on_a_node(|node| {
        serving(node);
        for kind in [PROBE, PROBE_ANSWER] {
            let frame = arriving(STRANGER, kind).frame();
            assert_eq!(node.xdp(&frame).verdict, XDP_DROP);
            assert_eq!(node.tc_uplink(&frame).verdict, TC_SHOT);
        }
        let count = |hook: &str| ((hook.to_owned(), "unknown_peer".to_owned()), 2);
        assert_eq!(node.drops(), BTreeMap::from([count("xdp"), count("tc_uplink")]));
    });
}
