//! Clients that a service's source rules keep out, in XDP and in tc, by TCP and UDP, whichever node has the
//! replica.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use mesh_agent::{
    datapath::Datapath as _,
    model::{
        Desired, Ingress, Location, ServiceKey, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts,
    },
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, frontend, out_of_container},
    frames::{ACK, Packet, SYN},
    idle::on_a_node,
    node::Node,
    run::{TC_REDIRECT, TC_SHOT, TC_UNSPEC, XDP_DROP, XDP_PASS, XDP_TX},
};

const DROP: SourceVerdicts = SourceVerdicts::both(SourceVerdict::Drop);
const REJECT: SourceVerdicts = SourceVerdicts::both(SourceVerdict::Reject);

fn other() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 3, 10), 40_000)
}

/// The client's network, its verdicts, and everyone else comes in.
fn rules(verdicts: SourceVerdicts) -> SourceRules {
    SourceRules::from([("192.0.2.0/24".parse().unwrap(), verdicts)])
}

fn with(state: &Desired, policy: Option<SourcePolicy>) -> Desired {
    let mut state = state.clone();
    let policy = policy.map(Arc::new);
    for service in state.services.values_mut() {
        service.policy.clone_from(&policy);
    }
    state
}

fn anywhere(verdicts: SourceVerdicts) -> Option<SourcePolicy> {
    SourcePolicy::new([(Ingress::Any, rules(verdicts))])
}

fn first(client: SocketAddrV4, service: ServiceKey) -> Vec<u8> {
    let macs = arriving();
    if service == WEB {
        Packet::tcp(macs, client, frontend(service), SYN).frame()
    } else {
        Packet::udp(macs, client, frontend(service)).frame()
    }
}

fn dropped(node: &mut Node, hook: &str, reason: &str) -> u64 {
    let drops = node.drops();
    drops
        .get(&(hook.to_owned(), reason.to_owned()))
        .copied()
        .unwrap_or_default()
}

#[test]
fn a_client_that_the_rules_drop_is_dropped_at_every_hook() {
    on_a_node(|node| {
        for location in [Location::Remote(PEER), node.local()] {
            let open = node.serving(location);
            node.apply(&with(&open, anywhere(DROP)));
            for service in [WEB, DNS] {
                assert_eq!(node.xdp(&first(CLIENT, service)).verdict, XDP_DROP);
                assert_eq!(node.tc_uplink(&first(CLIENT, service)).verdict, TC_SHOT);
                let expected = match location {
                    Location::Remote(_) => XDP_TX,
                    Location::Local(_) => XDP_PASS,
                };
                assert_eq!(node.xdp(&first(other(), service)).verdict, expected);
                assert_eq!(node.tc_uplink(&first(other(), service)).verdict, TC_REDIRECT);
            }
            // And no longer, once the rules are gone.
            node.apply(&open);
            assert_eq!(node.tc_uplink(&first(CLIENT, WEB)).verdict, TC_REDIRECT);
            node.apply(&node.without_services());
        }
        assert_eq!(dropped(node, "xdp", "source_denied"), 4);
        assert_eq!(dropped(node, "tc_uplink", "source_denied"), 4);
    });
}

#[test]
fn a_client_that_the_rules_reject_is_answered() {
    on_a_node(|node| {
        let open = node.serving(Location::Remote(PEER));
        node.apply(&with(&open, anywhere(REJECT)));
        assert_eq!(node.xdp(&first(CLIENT, WEB)).verdict, XDP_TX);
        assert_eq!(dropped(node, "xdp", "source_rejected"), 1);
    });
}

#[test]
fn open_connections_of_a_client_end_in_silence_when_a_rule_drops_it() {
    on_a_node(|node| {
        let open = node.serving(Location::Remote(PEER));
        node.apply(&open);
        node.connect(WEB, CLIENT);
        node.connect(WEB, other());
        let later = |client| Packet::tcp(arriving(), client, frontend(WEB), ACK).frame();
        assert_eq!(node.xdp(&later(CLIENT)).verdict, XDP_TX);
        node.apply(&with(&open, anywhere(DROP)));
        node.datapath().maintain().expect("the walk over the flows");
        // XDP leaves a packet of no known flow to tc.
        assert_eq!(node.xdp(&later(CLIENT)).verdict, XDP_PASS);
        assert_eq!(node.tc_uplink(&later(CLIENT)).verdict, TC_SHOT);
        assert_eq!(node.xdp(&later(other())).verdict, XDP_TX);
    });
}

#[test]
fn rules_of_one_interface_do_not_hold_on_another() {
    on_a_node(|node| {
        let uplink = node.state().uplinks.values().next().map(|uplink| uplink.index);
        let open = node.serving(node.local());
        let uplink = uplink
            .or_else(|| open.uplinks.values().next().map(|uplink| uplink.index))
            .expect("the node has an uplink");
        let policy = SourcePolicy::new([
            (Ingress::Uplink(uplink), rules(DROP)),
            (Ingress::Containers, SourceRules::new()),
        ]);
        node.apply(&with(&open, policy));
        assert_eq!(node.xdp(&first(CLIENT, WEB)).verdict, XDP_DROP);
        assert_eq!(node.tc_uplink(&first(CLIENT, WEB)).verdict, TC_SHOT);
        let mut packet = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
        packet.macs = out_of_container();
        assert_eq!(node.tc_container(&packet.frame()).verdict, TC_REDIRECT);
    });
}

#[test]
fn an_address_that_is_closed_refuses_everyone_until_it_is_opened() {
    on_a_node(|node| {
        let open = node.serving(Location::Remote(PEER));
        let mut closed = open.clone();
        for service in closed.services.values_mut() {
            service.closed = [*frontend(WEB).ip()].into();
        }
        node.apply(&open);
        node.connect(WEB, CLIENT);
        let later = Packet::tcp(arriving(), CLIENT, frontend(WEB), ACK).frame();
        assert_eq!(node.xdp(&later).verdict, XDP_TX);
        node.apply(&closed);
        node.datapath().maintain().expect("the walk over the flows");
        for expected in 1..=2 {
            assert_eq!(node.xdp(&first(other(), WEB)).verdict, XDP_TX, "a RST");
            assert_eq!(dropped(node, "xdp", "source_rejected"), expected);
            assert_eq!(node.xdp(&later).verdict, XDP_PASS, "the flow is gone");
            node.tc_uplink(&later);
            assert_eq!(dropped(node, "tc_uplink", "source_rejected"), expected);
            // The next agent finds it so.
            node.crash();
            node.load();
            let dump = node.datapath().dump(0).expect("the maps can be read");
            assert!(dump.frontends.iter().any(|frontend| frontend.closed));
            assert!(dump.services.iter().all(|service| service.service.port != 0));
            node.apply(&closed);
        }
        node.apply(&open);
        node.connect(WEB, other());
        assert_eq!(dropped(node, "xdp", "source_rejected"), 2);
        let dump = node.datapath().dump(0).expect("the maps can be read");
        assert!(dump.frontends.iter().all(|frontend| !frontend.closed));
    });
}

#[test]
fn the_next_agent_takes_the_rules_over() {
    on_a_node(|node| {
        let state = with(&node.serving(node.local()), anywhere(DROP));
        node.apply(&state);
        node.crash();
        node.load();
        assert_eq!(node.tc_uplink(&first(CLIENT, WEB)).verdict, TC_SHOT);
        assert_eq!(node.tc_uplink(&first(other(), WEB)).verdict, TC_REDIRECT);
        let dump = node.datapath().dump(0).expect("the maps can be read");
        assert_eq!(dump.policies.len(), 2);
        assert_eq!(dump.policies[0].rules, "accept ::/0, drop 192.0.2.0/24");
        // A packet of a connection that no one knows goes to the kernel where the rules allow it.
        let stray = Packet::tcp(
            arriving(),
            SocketAddrV4::new(*other().ip(), 41_000),
            frontend(WEB),
            ACK,
        );
        assert_eq!(node.tc_uplink(&stray.frame()).verdict, TC_UNSPEC);
    });
}
