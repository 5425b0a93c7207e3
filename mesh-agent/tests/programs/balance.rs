//! The replica that a new connection goes to, for each balancing algorithm.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use mesh_agent::{
    datapath::Datapath,
    model::{Algorithm, BackendState, Balance, Desired, Location},
};
use mesh_agent_testing::{
    cluster::{PEER, WEB, arriving, backend_key, frontend, serve},
    frames::{Packet, RST, SYN},
    idle::on_a_node,
    node::Node,
    run::{XDP_PASS, XDP_TX},
};

fn by(algorithm: Algorithm) -> Balance {
    Balance {
        algorithm,
        ..Balance::default()
    }
}

/// Remote replicas 1 and up with these weights.
fn replicas(node: &Node, balance: Balance, weights: &[u32]) -> Desired {
    let mut state = node.without_services();
    let backends: Vec<_> = (1..)
        .zip(weights)
        .map(|(number, _)| (number, Location::Remote(PEER)))
        .collect();
    serve(&mut state, WEB, &backends);
    if let Some(service) = state.services.get_mut(&WEB) {
        service.balance = balance;
    }
    for (number, weight) in (1..).zip(weights) {
        if let Some(backend) = state.backends.get_mut(&backend_key(WEB, number)) {
            backend.weight = *weight;
        }
    }
    state
}

/// The replica that a client's connection is opened to. It answers: on a slow machine, one that does not
/// would be passed over.
fn chosen(node: &mut Node, client: SocketAddrV4) -> u8 {
    node.connect(WEB, client)
}

fn client(address: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, address), port)
}

fn spread(node: &mut Node, clients: impl Iterator<Item = SocketAddrV4>) -> BTreeMap<u8, usize> {
    let mut spread = BTreeMap::new();
    for client in clients {
        *spread.entry(chosen(node, client)).or_default() += 1;
    }
    spread
}

#[test]
fn weighted_round_robin_follows_the_weights_exactly() {
    on_a_node(|node| {
        let state = replicas(node, by(Algorithm::WeightedRoundRobin), &[1, 3]);
        node.apply(&state);
        let spread = spread(node, (0..40).map(|number| client(7, 40_000 + number)));
        assert_eq!(spread, [(1, 10), (2, 30)].into());
    });
}

#[test]
fn a_random_choice_follows_the_weights_and_no_turns() {
    on_a_node(|node| {
        let state = replicas(node, by(Algorithm::Random), &[1, 3]);
        node.apply(&state);
        let homes: Vec<u8> = (0..400)
            .map(|number| chosen(node, client(7, 40_000 + number)))
            .collect();
        // Six standard deviations of a binomial distribution: sqrt(400 * 1/4 * 3/4) is 9.
        let first = homes.iter().filter(|home| **home == 1).count();
        assert!((48..=152).contains(&first), "{first} of 400");
        let turns = homes.chunks(4).filter(|turn| *turn == &homes[..4]).count();
        assert!(turns < 90, "{turns} of 100 rounds are the same");
    });
}

#[test]
fn a_changed_weight_moves_new_connections_only() {
    on_a_node(|node| {
        let before = replicas(node, by(Algorithm::WeightedRoundRobin), &[1, 1]);
        node.apply(&before);
        let home = chosen(node, client(7, 40_000));
        let after = replicas(node, by(Algorithm::WeightedRoundRobin), &[1, 9]);
        let changes = mesh_agent::plan::plan(&before, &after);
        assert!(node.datapath().apply(&changes).is_empty());
        assert_eq!(chosen(node, client(7, 40_000)), home);
        let spread = spread(node, (0..20).map(|number| client(8, 40_000 + number)));
        assert_eq!(spread, [(1, 2), (2, 18)].into());
    });
}

#[test]
fn maglev_sends_an_endpoint_to_the_same_replica_again() {
    on_a_node(|node| {
        let state = replicas(node, by(Algorithm::Maglev), &[1, 1, 1]);
        node.apply(&state);
        for number in 0..50 {
            let client = client(7, 40_000 + number);
            let home = chosen(node, client);
            node.xdp(&Packet::tcp(arriving(), client, frontend(WEB), RST).frame());
            assert_eq!(chosen(node, client), home, "{client}");
        }
        let spread = spread(node, (0..300).map(|number| client(8, 40_000 + number)));
        assert!(
            spread.values().all(|count| (60..140).contains(count)),
            "{spread:?}"
        );
    });
}

#[test]
fn affinity_keeps_an_address_until_its_replica_drains() {
    on_a_node(|node| {
        let balance = Balance {
            affinity: Some(60),
            ..Balance::default()
        };
        let before = replicas(node, balance, &[1, 1, 1]);
        node.apply(&before);
        let home = chosen(node, client(7, 40_000));
        let again = spread(node, (1..50).map(|number| client(7, 40_000 + number)));
        assert_eq!(again, [(home, 49)].into());

        let mut after = before.clone();
        let drained = backend_key(WEB, home);
        if let Some(backend) = after.backends.get_mut(&drained) {
            (backend.state, backend.weight) = (BackendState::Draining, 0);
        }
        if let Some(service) = after.services.get_mut(&WEB) {
            service.active.retain(|key| *key != drained);
        }
        let changes = mesh_agent::plan::plan(&before, &after);
        assert!(node.datapath().apply(&changes).is_empty());
        assert_eq!(chosen(node, client(7, 40_000)), home, "an open connection stays");
        let moved = spread(node, (100..150).map(|number| client(7, 40_000 + number)));
        assert_eq!(moved.len(), 1, "the address has one new home: {moved:?}");
        assert!(!moved.contains_key(&home));
    });
}

#[test]
fn affinity_survives_scaling_and_the_next_agent() {
    on_a_node(|node| {
        let balance = Balance {
            affinity: Some(600),
            ..Balance::default()
        };
        let three = replicas(node, balance, &[1, 1, 1]);
        // Connections that rotation has given to a replica are no reason to stay there.
        let rotating = replicas(node, Balance::default(), &[1, 1, 1]);
        node.apply(&rotating);
        let begun: Vec<u8> = (200..=210)
            .map(|address| {
                let syn = Packet::tcp(arriving(), client(address, 40_000), frontend(WEB), SYN);
                node.xdp(&syn.frame()).frame[57]
            })
            .collect();
        let changes = mesh_agent::plan::plan(&rotating, &three);
        assert!(node.datapath().apply(&changes).is_empty());
        for (address, replica) in (200..=210).zip(&begun) {
            node.answer(WEB, client(address, 40_000), *replica);
        }
        let hashed = |node: &mut Node, port| -> Vec<u8> {
            (200..=210)
                .map(|address| chosen(node, client(address, port)))
                .collect()
        };
        let homes = hashed(node, 40_001);
        assert_ne!(homes, begun);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        node.datapath().maintain().expect("affinity can begin");
        assert_eq!(hashed(node, 40_002), homes);
        let clients = 1..=60;
        let homes: Vec<u8> = clients
            .clone()
            .map(|address| chosen(node, client(address, 40_000)))
            .collect();
        let four = replicas(node, balance, &[1, 1, 1, 1]);
        let changes = mesh_agent::plan::plan(&three, &four);
        assert!(node.datapath().apply(&changes).is_empty());
        let again = |node: &mut Node, port| -> Vec<u8> {
            clients
                .clone()
                .map(|address| chosen(node, client(address, port)))
                .collect()
        };
        assert_eq!(again(node, 40_001), homes);
        let new = spread(node, (100..160).map(|address| client(address, 40_000)));
        assert!(new.contains_key(&4), "new clients use the new replica: {new:?}");

        node.crash();
        node.load();
        let changes = mesh_agent::plan::plan(&Desired::default(), &four);
        assert!(node.datapath().apply(&changes).is_empty());
        assert_eq!(again(node, 40_002), homes);

        // Its clients are the only ones that move, and they have a new home each.
        let mut drained = four.clone();
        let gone = backend_key(WEB, 1);
        if let Some(service) = drained.services.get_mut(&WEB) {
            service.active.retain(|key| *key != gone);
        }
        let changes = mesh_agent::plan::plan(&four, &drained);
        assert!(node.datapath().apply(&changes).is_empty());
        let after = again(node, 40_003);
        for (before, after) in homes.iter().zip(&after) {
            assert!(
                *after != 1 && (*before == 1 || before == after),
                "{before} to {after}"
            );
        }
        let changes = mesh_agent::plan::plan(&drained, &four);
        assert!(node.datapath().apply(&changes).is_empty());
        assert_eq!(again(node, 40_004), after);
    });
}

#[test]
fn a_nodes_own_replica_is_preferred_while_it_answers() {
    on_a_node(|node| {
        let local = node.local();
        let mut state = node.without_services();
        serve(&mut state, WEB, &[(1, local), (2, Location::Remote(PEER))]);
        if let Some(service) = state.services.get_mut(&WEB) {
            service.balance.prefer_local = true;
        }
        node.apply(&state);
        let syn = |node: &mut Node, port| {
            let verdict = node
                .xdp(&Packet::tcp(arriving(), client(7, port), frontend(WEB), SYN).frame())
                .verdict;
            // What the container here is to get is left to tc.
            [(XDP_PASS, 1), (XDP_TX, 2)]
                .into_iter()
                .find(|(known, _)| *known == verdict)
        };
        for port in 40_000..40_020 {
            assert_eq!(syn(node, port), Some((XDP_PASS, 1)));
        }
        // Twenty connections that it has not answered, by now for long enough.
        std::thread::sleep(std::time::Duration::from_millis(150));
        let tried = (41_000..41_020)
            .filter(|port| syn(node, *port) == Some((XDP_PASS, 1)))
            .count();
        assert!(tried <= 2, "{tried} of 20 went to a replica that does not answer");

        let before = state.clone();
        if let Some(service) = state.services.get_mut(&WEB) {
            service.active.retain(|key| *key != backend_key(WEB, 1));
        }
        let changes = mesh_agent::plan::plan(&before, &state);
        assert!(node.datapath().apply(&changes).is_empty());
        assert_eq!(syn(node, 42_000), Some((XDP_TX, 2)), "it drains");
    });
}

#[test]
fn least_connection_prefers_the_replica_with_fewer_open_ones() {
    on_a_node(|node| {
        let state = replicas(node, by(Algorithm::LeastConnection), &[1, 1]);
        node.apply(&state);
        let first: Vec<_> = (0..20).map(|number| client(7, 40_000 + number)).collect();
        let homes: Vec<u8> = first.iter().map(|client| chosen(node, *client)).collect();
        // All of one replica's connections end; the data path's upkeep notices.
        for (client, home) in first.iter().zip(&homes) {
            if *home == 1 {
                node.xdp(&Packet::tcp(arriving(), *client, frontend(WEB), RST).frame());
            }
        }
        node.datapath().maintain().expect("the flows can be walked");
        let spread = spread(node, (0..10).map(|number| client(8, 40_000 + number)));
        assert_eq!(spread, [(1, 10)].into());
    });
}

#[test]
fn weighted_least_connection_gives_the_heavier_more() {
    on_a_node(|node| {
        let state = replicas(node, by(Algorithm::WeightedLeastConnection), &[1, 3]);
        node.apply(&state);
        let spread = spread(node, (0..80).map(|number| client(7, 40_000 + number)));
        assert!((18..=22).contains(&spread[&1]), "{spread:?}");
    });
}
