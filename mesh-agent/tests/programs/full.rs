//! Tables that are full: the service that finds no room is not served, and all others are.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use mesh_agent::{
    agent::Reconciler,
    model::{Desired, Location, Protocol, ServiceKey},
};
use mesh_agent_testing::{
    cluster::{CLIENT, PEER, WEB, arriving, frontend, serve},
    frames::{ACK, Packet, SYN},
    node::{Node, on_a_small_node},
    run::{XDP_PASS, XDP_TX},
};

/// Longer than any time until a refused service is tried again.
const LATER: Duration = Duration::from_secs(120);

fn service(number: u16) -> ServiceKey {
    ServiceKey {
        protocol: Protocol::Tcp,
        port: 9300 + number,
    }
}

fn services(node: &Node, numbers: impl IntoIterator<Item = u16>) -> Desired {
    let mut state = node.without_services();
    for number in numbers {
        serve(&mut state, service(number), &[(1, Location::Remote(PEER))]);
    }
    state
}

/// What XDP does with a packet of a client to a service.
fn verdict(node: &mut Node, key: ServiceKey, port: u16, flags: u8) -> u32 {
    let client = SocketAddrV4::new(*CLIENT.ip(), port);
    node.xdp(&Packet::tcp(arriving(), client, frontend(key), flags).frame())
        .verdict
}

/// A round of the agent; nothing but single services may be refused.
fn round(node: &mut Node, reconciler: &mut Reconciler, state: &Desired, now: Instant) -> Vec<u16> {
    let round = reconciler.reconcile(state, node.datapath(), now);
    assert!(
        round.failed == 0 && !round.crippled,
        "{round:?}: {:?}",
        reconciler.failures()
    );
    let refused = reconciler.refused_services();
    refused.keys().map(|key| key.port - 9300).collect()
}

#[test]
fn the_seventeenth_service_of_sixteen_is_not_served_and_all_others_are() {
    for map in ["SERVICES", "FRONTENDS"] {
        // A service has two frontends here.
        let entries = if map == "SERVICES" { 16 } else { 32 };
        on_a_small_node(&[(map, entries)], |node| {
            let mut reconciler = Reconciler::default();
            let mut now = Instant::now();
            let state = services(node, 1..=16);
            assert!(round(node, &mut reconciler, &state, now).is_empty());
            let state = services(node, 0..=16);
            assert_eq!(round(node, &mut reconciler, &state, now), [0], "{map}");
            let reason = &reconciler.failures()[0];
            assert!(reason.contains("(tcp/9300) is left to Docker"), "{reason}");
            // Refusals again and again leak nothing.
            for _ in 0..40 {
                now += LATER;
                assert_eq!(round(node, &mut reconciler, &state, now), [0], "{map}");
            }
            for number in 0..=16 {
                let expected = if number == 0 { XDP_PASS } else { XDP_TX };
                let verdict = verdict(node, service(number), 40_000, SYN);
                assert_eq!(verdict, expected, "{map}, service {number}");
            }

            let state = services(node, 0..=15);
            round(node, &mut reconciler, &state, now);
            now += LATER;
            assert!(round(node, &mut reconciler, &state, now).is_empty());
            assert_eq!(verdict(node, service(0), 40_001, SYN), XDP_TX);
        });
    }
}

#[test]
fn a_service_that_outgrows_the_table_of_backends_keeps_its_connections() {
    on_a_small_node(&[("BACKENDS", 3)], |node| {
        let with_replicas = |node: &Node, count: u8| {
            let mut state = services(node, [1]);
            let replicas: Vec<_> = (1..=count)
                .map(|number| (number, Location::Remote(PEER)))
                .collect();
            serve(&mut state, WEB, &replicas);
            state
        };
        let mut reconciler = Reconciler::default();
        let mut now = Instant::now();
        let state = with_replicas(node, 2);
        round(node, &mut reconciler, &state, now);
        assert_eq!(verdict(node, WEB, 40_000, SYN), XDP_TX);

        let state = with_replicas(node, 4);
        let round_of = |reconciler: &mut Reconciler, node: &mut Node, state: &Desired, now| {
            let round = reconciler.reconcile(state, node.datapath(), now);
            assert!(round.failed == 0 && !round.crippled, "{round:?}");
            reconciler.refused_services().into_keys().collect::<Vec<_>>()
        };
        assert_eq!(round_of(&mut reconciler, node, &state, now), [WEB]);
        assert_eq!(
            verdict(node, WEB, 40_001, SYN),
            XDP_PASS,
            "new ones go to Docker's mesh"
        );
        assert_eq!(verdict(node, WEB, 40_000, ACK), XDP_TX, "an open one goes on");
        assert_eq!(verdict(node, service(1), 40_002, SYN), XDP_TX, "another service");

        now += LATER;
        let state = with_replicas(node, 2);
        assert!(round_of(&mut reconciler, node, &state, now).is_empty());
        assert_eq!(verdict(node, WEB, 40_001, SYN), XDP_TX);
    });
}
