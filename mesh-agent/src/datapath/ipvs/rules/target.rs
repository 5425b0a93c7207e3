//! Replicas as the rules see them: the names of their chains and counters, and the order in which they take
//! turns. Pure.

use std::net::Ipv4Addr;

use crate::{
    datapath::turns::{reduced, turns},
    model::{BackendKey, Protocol, ServiceKey},
};

/// Names of the sets.
pub(super) mod names {
    pub(in super::super) const FRONTENDS: &str = "frontends";
    pub(in super::super) const LOCALHOST: &str = "localhost";
    pub(in super::super) const LOCAL_REPLICAS: &str = "local_replicas";
    pub(in super::super) const PEERS: &str = "peers";
    pub(in super::super) const REFUSED: &str = "refused";
}

/// Turns in a service's rotation; weights that need more are rounded.
const MOST_TURNS: u64 = 256;

/// A replica, as a destination of local processes' connections to 127.0.0.0/8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose connections are counted.
    pub backend: BackendKey,
    /// The container of this node, or the mesh address of another node's.
    pub address: Ipv4Addr,
    /// The container's port, or the published port for a mesh address; host byte order.
    pub port: u16,
    /// Its share of new connections; with 0 it gets none but keeps its counter.
    pub weight: u32,
}

/// The name of a service's chain.
pub(super) fn service_name(service: ServiceKey) -> String {
    format!("{}-{}", service.protocol, service.port)
}

/// The name of a replica's chain and of its counter.
pub(super) fn backend_name(backend: BackendKey) -> String {
    format!("{}-{}", service_name(backend.service), backend.address)
}

/// The replica whose counter has this name.
pub(super) fn backend_of(name: &str) -> Option<BackendKey> {
    let mut parts = name.splitn(3, '-');
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| Some(protocol.to_string().as_str()) == parts.clone().next())?;
    parts.next();
    Some(BackendKey {
        service: ServiceKey {
            protocol,
            port: parts.next()?.parse().ok()?,
        },
        address: parts.next()?.parse().ok()?,
    })
}

/// One round of turns: each replica as often as its weight says, evenly spread.
pub(super) fn rotation(targets: &[Target]) -> Vec<&Target> {
    let targets: Vec<&Target> = targets.iter().filter(|target| target.weight > 0).collect();
    let weights: Vec<u64> = targets.iter().map(|target| u64::from(target.weight)).collect();
    turns(&rounded(reduced(&weights)))
        .into_iter()
        .map(|turn| targets[turn])
        .collect()
}

/// Shares that add up to about [`MOST_TURNS`] at most, none of them 0.
fn rounded(mut shares: Vec<u64>) -> Vec<u64> {
    let sum: u64 = shares.iter().sum();
    if sum > MOST_TURNS {
        for share in &mut shares {
            *share = (share.saturating_mul(MOST_TURNS) / sum).max(1);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(weights: &[u32]) -> Vec<Target> {
        weights
            .iter()
            .zip(1..)
            .map(|(weight, number)| Target {
                backend: BackendKey {
                    service: ServiceKey {
                        protocol: Protocol::Udp,
                        port: 53,
                    },
                    address: Ipv4Addr::new(10, 0, number, 7),
                },
                address: Ipv4Addr::new(172, 18, 0, 2),
                port: 53,
                weight: *weight,
            })
            .collect()
    }

    #[track_caller]
    fn check(weights: &[u32], order: &[u8]) {
        let targets = targets(weights);
        let found: Vec<u8> = rotation(&targets)
            .iter()
            .map(|target| target.backend.address.octets()[2])
            .collect();
        assert_eq!(found, order, "{weights:?}");
    }

    #[test]
    fn replicas_take_turns_by_weight() {
        check(&[], &[]);
        check(&[0, 0], &[]);
        check(&[1, 1, 1], &[1, 2, 3]);
        check(&[7, 7], &[1, 2]);
        check(&[5, 0, 5], &[1, 3]);
        check(&[2, 1], &[1, 2, 1]);
        check(&[4, 2, 2], &[1, 2, 3, 1]);
    }

    #[test]
    fn large_weights_are_rounded_and_every_replica_gets_a_turn() {
        let targets = targets(&[u32::MAX, u32::MAX - 1, 1]);
        let order = rotation(&targets);
        assert!(order.len() <= 258, "{}", order.len());
        let turns = |number: usize| order.iter().filter(|target| ***target == targets[number]).count();
        assert_eq!([turns(0), turns(1), turns(2)], [128, 127, 1]);
    }

    #[test]
    fn a_counters_name_names_its_replica() {
        let backend = targets(&[1])[0].backend;
        assert_eq!(backend_name(backend), "udp-53-10.0.1.7");
        assert_eq!(backend_of(&backend_name(backend)), Some(backend));
        for name in [
            "",
            "udp",
            "udp-53",
            "sctp-53-10.0.1.7",
            "udp-x-10.0.1.7",
            "udp-53-10.0.1.7.9",
        ] {
            assert_eq!(backend_of(name), None, "{name}");
        }
    }
}
