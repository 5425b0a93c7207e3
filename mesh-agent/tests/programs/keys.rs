//! Packets between nodes that hold the cluster's key.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use mesh_agent::{
    datapath::Datapath,
    model::{KeyId, Location, TunnelKey, TunnelKeys},
};
use mesh_agent_testing::{
    cluster::{
        CLIENT, DNS, NODE, PEER, ROUTER_MAC, WEB, arriving, from_peer, frontend, into_container, leaving_to,
        out_of_container, serve, target, to_peer,
    },
    frames::{
        ACK, FORWARD, Macs, PROBE, PROBE_ANSWER, Packet, REPLY, SYN, Tunnel, UNDELIVERABLE, check_frame,
        outer_port,
    },
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_TX},
};

/// The frontend as a client of the peer has dialled it.
const ENTRY: SocketAddrV4 = SocketAddrV4::new(PEER, WEB.port);

fn key(secret: &str) -> TunnelKey {
    TunnelKey::derive(secret.as_bytes(), "cluster")
}

/// Gives the node the cluster's key, and says which ones its peer takes.
fn hold(node: &mut Node, current: TunnelKey, peer: Option<&[TunnelKey]>) -> Vec<KeyId> {
    let ids = peer.map(|keys| keys.iter().map(|key| key.id()).collect());
    let keys = TunnelKeys {
        current: Some(current),
        peers: ids.into_iter().map(|ids| (PEER, ids)).collect(),
        without_datapath: BTreeSet::new(),
    };
    node.datapath().set_keys(&keys).expect("the maps take the keys");
    node.datapath().key_ids()
}

fn keyed(tunnel: Tunnel, key: TunnelKey) -> Tunnel {
    Tunnel {
        key: Some(key.to_bytes()),
        ..tunnel
    }
}

fn no_key(node: &mut Node, hook: &str) -> u64 {
    let drops = node.drops();
    drops
        .get(&(hook.to_owned(), "no_key".to_owned()))
        .copied()
        .unwrap_or(0)
}

#[test]
fn a_connection_to_a_replica_of_the_peer_carries_the_key_both_ways() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        let key = key("first");
        hold(node, key, Some(&[key]));
        for (packet, service) in [
            (Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK | SYN), WEB),
            (
                Packet::udp(arriving(), CLIENT, frontend(DNS)).with_payload(900),
                DNS,
            ),
        ] {
            let packet = if service == WEB {
                node.xdp(&Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN).frame());
                Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).with_payload(700)
            } else {
                packet
            };
            for output in [node.xdp(&packet.frame()), node.tc_uplink(&packet.frame())] {
                let port = outer_port(&output.frame);
                let expected = keyed(to_peer(service, FORWARD, port), key).around(&packet);
                check_frame(&output.frame, &expected);
            }
            let answer = packet.rewritten(arriving(), frontend(service), CLIENT);
            let expected = answer.rewritten(leaving_to(ROUTER_MAC), frontend(service), CLIENT);
            let frame = keyed(from_peer(service, REPLY), key).around(&answer);
            for (output, verdict) in [(node.xdp(&frame), XDP_TX), (node.tc_uplink(&frame), TC_REDIRECT)] {
                assert_eq!(output.verdict, verdict);
                check_frame(&output.frame, &expected.frame());
            }
        }
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn a_connection_of_a_peer_carries_the_key_both_ways_and_then_needs_it() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let key = key("first");
        hold(node, key, Some(&[key]));
        let syn = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        let without = from_peer(WEB, FORWARD).around(&syn);
        assert_eq!(
            node.tc_uplink(&without).verdict,
            TC_REDIRECT,
            "of an earlier release"
        );

        let output = node.tc_uplink(&keyed(from_peer(WEB, FORWARD), key).around(&syn));
        assert_eq!(output.verdict, TC_REDIRECT);
        check_frame(
            &output.frame,
            &syn.routed(into_container(), CLIENT, target(WEB)).frame(),
        );
        let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK).with_payload(500);
        let output = node.tc_container(&answer.frame());
        let port = outer_port(&output.frame);
        let restored = answer.routed(arriving(), ENTRY, CLIENT);
        check_frame(
            &output.frame,
            &keyed(to_peer(WEB, REPLY, port), key).around(&restored),
        );

        assert_eq!(node.tc_uplink(&without).verdict, TC_SHOT);
        assert_eq!(node.xdp(&without).verdict, XDP_DROP);
        let wrong = keyed(from_peer(WEB, FORWARD), self::key("another")).around(&syn);
        assert_eq!(node.tc_uplink(&wrong).verdict, TC_SHOT);
        assert_eq!((no_key(node, "tc_uplink"), no_key(node, "xdp")), (2, 1));
        // What is not known changes nothing, but a peer of an earlier release has no key.
        hold(node, key, None);
        assert_eq!(node.tc_uplink(&without).verdict, TC_SHOT);
        hold(node, key, Some(&[]));
        assert_eq!(node.tc_uplink(&without).verdict, TC_REDIRECT);
    });
}

#[test]
fn a_peer_whose_data_path_is_gone_may_begin_without_a_key() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let key = key("first");
        hold(node, key, Some(&[key]));
        let syn = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        let (without, with) = (
            from_peer(WEB, FORWARD).around(&syn),
            keyed(from_peer(WEB, FORWARD), key).around(&syn),
        );
        assert_eq!(node.tc_uplink(&with).verdict, TC_REDIRECT);
        assert_eq!(node.tc_uplink(&without).verdict, TC_SHOT);

        let gone = TunnelKeys {
            without_datapath: BTreeSet::from([PEER]),
            ..TunnelKeys::default()
        };
        node.datapath().set_keys(&gone).expect("the maps take the keys");
        assert_eq!(node.tc_uplink(&without).verdict, TC_REDIRECT);
        assert_eq!(node.tc_uplink(&with).verdict, TC_REDIRECT);
        assert_eq!(node.tc_uplink(&without).verdict, TC_SHOT);
    });
}

#[test]
fn the_next_agent_adopts_the_keys_and_who_has_sent_them() {
    on_a_node(|node| {
        let state = node.serving(node.local());
        node.apply(&state);
        let key = key("first");
        hold(node, key, Some(&[key]));
        let syn = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        node.tc_uplink(&keyed(from_peer(WEB, FORWARD), key).around(&syn));
        node.crash();
        node.load();
        // Its first snapshot may be of a manager that knows no keys.
        node.datapath().set_keys(&TunnelKeys::default()).unwrap();
        node.apply(&state);
        assert_eq!(node.datapath().key_ids(), [key.id()]);
        assert_eq!(node.datapath().sent_keys(), BTreeMap::from([(PEER, key)]));
        let without = from_peer(WEB, FORWARD).around(&syn);
        assert_eq!(node.tc_uplink(&without).verdict, TC_SHOT);
        let answer = Packet::tcp(out_of_container(), target(WEB), CLIENT, ACK);
        let output = node.tc_container(&answer.frame());
        let port = outer_port(&output.frame);
        let restored = answer.routed(arriving(), ENTRY, CLIENT);
        check_frame(
            &output.frame,
            &keyed(to_peer(WEB, REPLY, port), key).around(&restored),
        );
    });
}

#[test]
fn a_rotation_loses_no_packet_at_any_step() {
    on_a_node(|node| {
        let state = node.serving(Location::Remote(PEER));
        node.apply(&state);
        let (old, new) = (key("old"), key("new"));
        let packet = Packet::udp(arriving(), CLIENT, frontend(DNS));
        let sends = |node: &mut Node, key: TunnelKey, takes: [TunnelKey; 2]| {
            let output = node.xdp(&packet.frame());
            let port = outer_port(&output.frame);
            let expected = keyed(to_peer(DNS, FORWARD, port), key).around(&packet);
            check_frame(&output.frame, &expected);
            for key in takes {
                let answer = packet.rewritten(arriving(), frontend(DNS), CLIENT);
                let frame = keyed(from_peer(DNS, REPLY), key).around(&answer);
                assert_eq!(node.xdp(&frame).verdict, XDP_TX);
            }
        };
        hold(node, old, Some(&[old]));
        sends(node, old, [old, old]);
        assert_eq!(hold(node, new, Some(&[old])), [old.id(), new.id()]);
        sends(node, old, [old, new]);
        hold(node, new, Some(&[old, new]));
        sends(node, new, [old, new]);
        // A manager that has yet to notice.
        hold(node, old, Some(&[old, new]));
        sends(node, old, [old, new]);
        assert_eq!(node.drops(), BTreeMap::new());
    });
}

#[test]
fn what_comes_back_keeps_its_key() {
    on_a_node(|node| {
        let mut state = node.without_services();
        serve(&mut state, WEB, &[]);
        node.apply(&state);
        let key = key("first");
        hold(node, key, Some(&[key]));
        let inner = Packet::tcp(arriving(), CLIENT, ENTRY, SYN);
        let output = node.tc_uplink(&keyed(from_peer(WEB, FORWARD), key).around(&inner));
        assert_eq!(output.verdict, TC_REDIRECT);
        let mut expected = keyed(to_peer(WEB, UNDELIVERABLE, 0xc123), key);
        expected.key = Some(key.to_bytes());
        check_frame(&output.frame, &expected.around(&inner));
    });
}

#[test]
fn a_probe_with_the_key_is_answered_with_it_and_one_with_another_is_not() {
    on_a_node(|node| {
        let state = node.without_services();
        node.apply(&state);
        let key = key("first");
        hold(node, key, None);
        let at = |address: Ipv4Addr| SocketAddrV4::new(address, 6081);
        let probe = |key: Option<TunnelKey>| {
            let tunnel = Tunnel {
                key: key.map(TunnelKey::to_bytes),
                ..from_peer(WEB, PROBE)
            };
            let mut packet = Packet::udp(tunnel.macs, at(PEER), at(NODE));
            packet.payload = tunnel.around_ip(&[])[42..].to_vec();
            packet
        };
        let known = probe(Some(key));
        let back = Macs {
            source: known.macs.destination,
            destination: known.macs.source,
        };
        let mut answer = known.rewritten(back, known.destination, known.source);
        answer.payload[10] = PROBE_ANSWER;
        assert_eq!(
            node.xdp(&probe(None).frame()).verdict,
            XDP_TX,
            "of an earlier release"
        );
        let output = node.xdp(&known.frame());
        assert_eq!(output.verdict, XDP_TX);
        check_frame(&output.frame, &answer.frame());
        for forged in [None, Some(self::key("another"))] {
            assert_eq!(node.xdp(&probe(forged).frame()).verdict, XDP_DROP);
        }
    });
}
