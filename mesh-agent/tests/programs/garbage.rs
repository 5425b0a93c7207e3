//! Malformed and forged frames: each kind is dropped, and counted once under its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use mesh_agent::model::{Frontend, Location};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, MESH0_MAC, PEER, STRANGER, WEB, arriving, from_peer, frontend},
    frames::{ACK, FORWARD, Macs, Packet, REPLY, SYN},
    idle::on_a_node,
    node::Node,
    run::{Output, TC_SHOT, XDP_DROP, XDP_PASS},
};

fn web() -> Vec<u8> {
    Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame()
}

/// A frame with bytes changed.
fn changed(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut frame);
    frame
}

/// Runs both programs of an uplink on a frame, and checks that each drops it for this reason.
#[track_caller]
fn check(node: &mut Node, reason: &str, frame: &[u8]) {
    check_at(node, "xdp", reason, XDP_DROP, |node| node.xdp(frame));
    check_at(node, "tc_uplink", reason, TC_SHOT, |node| node.tc_uplink(frame));
}

#[track_caller]
fn check_at(node: &mut Node, hook: &str, reason: &str, dropped: u32, feed: impl FnOnce(&mut Node) -> Output) {
    let before = node.drops();
    let output = feed(node);
    assert_eq!(
        output.verdict, dropped,
        "the verdict of {hook} on what is {reason}"
    );
    let mut expected: BTreeMap<_, _> = before;
    *expected.entry((hook.to_owned(), reason.to_owned())).or_default() += 1;
    assert_eq!(node.drops(), expected, "drops of {hook} for {reason}");
}

#[test]
fn malformed_packets_are_dropped_and_counted() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        check(
            node,
            "bad_length",
            &changed(web(), |frame| {
                frame[16..18].copy_from_slice(&2000_u16.to_be_bytes());
            }),
        );
        // A TCP header below the minimum length.
        check(node, "bad_length", &changed(web(), |frame| frame[46] = 0x40));
        // A TCP header longer than the packet.
        check(node, "bad_length", &changed(web(), |frame| frame[46] = 0xf0));
        // The lengths leave no room for a TCP header.
        check(
            node,
            "truncated",
            &changed(web(), |frame| {
                frame[16..18].copy_from_slice(&30_u16.to_be_bytes());
            }),
        );
        check(
            node,
            "ip_options",
            &changed(web(), |frame| {
                frame[14] = 0x46;
                let length = frame.len() as u16 - 14 + 4;
                frame[16..18].copy_from_slice(&length.to_be_bytes());
                frame.splice(34..34, [1, 1, 1, 0]);
            }),
        );
    });
}

#[test]
fn what_has_no_ports_is_left_to_the_kernel() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        let before = node.drops();
        let other_version = changed(web(), |frame| frame[14] = 0x65);
        let short_header = changed(web(), |frame| frame[14] = 0x44);
        let frames = [
            &web()[..14],
            &web()[..15],
            &web()[..33],
            &other_version,
            &short_header,
        ];
        for frame in frames {
            let output = node.xdp(frame);
            assert_eq!((output.verdict, output.frame.as_slice()), (XDP_PASS, frame));
        }
        assert_eq!(node.drops(), before);
    });
}

#[test]
fn frames_that_end_early_are_dropped_and_counted() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        // Cut within the TCP header, with a matching length in the IP header.
        let cut = changed(web(), |frame| {
            frame.truncate(14 + 20 + 12);
            frame[16..18].copy_from_slice(&32_u16.to_be_bytes());
        });
        check(node, "truncated", &cut);
    });
}

#[test]
fn bad_encapsulation_is_dropped_and_counted() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let inner = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        let good = || from_peer(WEB, FORWARD).around(&inner);
        for (offset, value) in [
            (42, 0xc3), // version
            (42, 2),    // length of the options
            (43, 0),    // no critical option announced
            (44, 0x65), // no IPv4 inside
            (50, 0),    // option class
            (52, 0x01), // not critical
            (52, 0x8f), // no kind we know
            (53, 1),    // option length
        ] {
            let frame = changed(good(), |frame| frame[offset] = value);
            check(node, "bad_geneve", &frame);
        }
        check(
            node,
            "bad_geneve",
            &from_peer(WEB, FORWARD).around_ip(&[0x45; 19]),
        );
        let cut = changed(good(), |frame| frame.truncate(50));
        let cut = changed(cut, |frame| {
            frame[16..18].copy_from_slice(&36_u16.to_be_bytes());
        });
        check(node, "truncated", &cut);
    });
}

#[test]
fn encapsulated_packets_are_accepted_from_peers_only() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let inner = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        for kind in [FORWARD, REPLY] {
            let mut tunnel = from_peer(WEB, kind);
            tunnel.from = STRANGER;
            check(node, "unknown_peer", &tunnel.around(&inner));
        }
    });
}

#[test]
fn a_peers_reply_for_an_unknown_flow_is_dropped() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let answer = Packet::tcp(arriving(), frontend(WEB), CLIENT, ACK);
        check(node, "unknown_flow", &from_peer(WEB, REPLY).around(&answer));
    });
}

#[test]
fn a_packet_for_a_peer_without_a_route_is_dropped() {
    on_a_node(|node| {
        let nowhere = Ipv4Addr::new(203, 0, 113, 9);
        let mut state = node.serving(Location::Remote(nowhere));
        state.peers.insert(nowhere, None);
        node.apply(&state);
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS)).frame();
        check_at(node, "tc_uplink", "no_route", TC_SHOT, |node| {
            node.tc_uplink(&packet)
        });
    });
}

#[test]
fn mesh0_leads_to_frontends_only() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let own = Macs {
            source: MESH0_MAC,
            destination: MESH0_MAC,
        };
        let mut unpublished = frontend(WEB);
        unpublished.set_port(22);
        for destination in [unpublished, frontend(WEB)] {
            let frame = Packet::tcp(own, CLIENT, destination, SYN).frame();
            check_at(node, "tc_mesh0", "not_a_frontend", TC_SHOT, |node| {
                node.tc_mesh0(&frame)
            });
        }
    });
}

#[test]
fn flows_of_one_client_port_all_find_another() {
    on_a_node(|node| {
        let mut state = node.serving(node.local());
        let addresses: Vec<Ipv4Addr> = (11..41).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        for address in &addresses {
            state.frontends.insert(Frontend {
                address: *address,
                service: WEB,
            });
        }
        node.apply(&state);
        let dial = |address: Ipv4Addr| {
            let mut packet = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
            packet.destination.set_ip(address);
            packet.frame()
        };
        let delivered = addresses
            .iter()
            .map(|address| node.tc_uplink(&dial(*address)).frame);
        let ports: BTreeSet<_> = delivered.map(|frame| frame[34..36].to_vec()).collect();
        assert!(node.drops().is_empty());
        assert_eq!(ports.len(), addresses.len());
    });
}
