//! The IPVS table for a desired state. Pure; imports the model.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{
    address::mesh_address,
    detour,
    kernel::{Destination, SchedulerFlags, Settings, VirtualService},
};
use crate::model::{Algorithm, Backend, BackendKey, Balance, Desired, Location, Protocol, ServiceKey};

/// The largest weight given to IPVS, which computes with signed numbers and whose `wrr` steps through the
/// range.
const MAX_WEIGHT: u32 = 65_535;

/// Every virtual service that should be there.
pub(super) type Table = BTreeMap<VirtualService, WantedService>;

/// A virtual service with its destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedService {
    /// Its scheduler and persistence.
    pub(super) settings: Settings,
    /// Its destinations.
    pub(super) destinations: BTreeMap<Destination, WantedDestination>,
    /// What it is for.
    pub(super) role: Role,
}

/// What a virtual service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It answers clients; its traffic is counted.
    Frontend(ServiceKey),
    /// It delivers what a peer sends through the tunnel to the one replica behind a mesh address; the peer
    /// counts the traffic.
    Replica(BackendKey),
}

impl Role {
    /// The published port it serves.
    pub(super) fn service(self) -> ServiceKey {
        match self {
            Self::Frontend(service) => service,
            Self::Replica(backend) => backend.service,
        }
    }
}

/// A backend as a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantedDestination {
    /// The backend that its traffic counts for.
    pub(super) backend: BackendKey,
    /// Its share of new connections.
    pub(super) weight: u32,
}

/// Whether a virtual service is the mesh's own. The scheduler's third flag marks it in the kernel itself (no
/// scheduler gives that flag a meaning), so that the next agent recognises it and others' are never touched.
pub(super) fn is_ours(settings: &Settings) -> bool {
    settings.flags.third
}

/// The table for a state. At the service address only the eBPF data path answers; here it stands for the
/// detour.
pub(super) fn table(state: &Desired, service_address: Ipv4Addr) -> Table {
    let mut destinations: BTreeMap<ServiceKey, BTreeMap<Destination, WantedDestination>> = BTreeMap::new();
    let mut table = Table::new();
    for (key, backend) in &state.backends {
        let Some(service) = state.services.get(&key.service) else {
            continue;
        };
        // IPVS has no others to go to when those that it prefers do not answer: its plan must say.
        let is_preferred = backend.location.is_local() || !state.prefers_local(service);
        let active = service.active.contains(key) && is_preferred;
        destinations.entry(key.service).or_default().insert(
            destination(key, backend),
            WantedDestination {
                backend: *key,
                weight: if active {
                    weight(service.balance, backend)
                } else {
                    0
                },
            },
        );
        if let Location::Local(_) = backend.location {
            let (name, service) = replica(key, backend);
            table.insert(name, service);
        }
    }
    for frontend in &state.frontends {
        let Some(service) = state.services.get(&frontend.service) else {
            continue;
        };
        let address = if frontend.address == service_address {
            detour::FRONTEND
        } else {
            frontend.address
        };
        table.insert(
            virtual_service(address, frontend.service.protocol, frontend.service.port),
            WantedService {
                settings: settings(service.balance),
                destinations: destinations.get(&frontend.service).cloned().unwrap_or_default(),
                role: Role::Frontend(frontend.service),
            },
        );
    }
    table
}

/// Where a backend's packets go: into its container, or by its mesh address to its node.
pub(super) fn destination(key: &BackendKey, backend: &Backend) -> Destination {
    match backend.location {
        Location::Local(container) => Destination {
            address: container.address.into(),
            port: backend.target_port,
        },
        Location::Remote(_) => Destination {
            address: mesh_address(key.address).into(),
            port: key.service.port,
        },
    }
}

/// What answers at the mesh address of a replica of this node. That replica is its only destination, so what
/// arrived through the tunnel never goes on to another node.
fn replica(key: &BackendKey, backend: &Backend) -> (VirtualService, WantedService) {
    let wanted = WantedDestination {
        backend: *key,
        weight: 1,
    };
    (
        virtual_service(mesh_address(key.address), key.service.protocol, key.service.port),
        WantedService {
            settings: settings(Balance::default()),
            destinations: BTreeMap::from([(destination(key, backend), wanted)]),
            role: Role::Replica(*key),
        },
    )
}

fn virtual_service(address: Ipv4Addr, protocol: Protocol, port: u16) -> VirtualService {
    VirtualService {
        address: address.into(),
        port,
        protocol,
    }
}

/// The weight of an active backend. With a slow start, the schedulers that ignore weights are replaced by
/// those that do not.
fn weight(balance: Balance, backend: &Backend) -> u32 {
    if balance.slow_start().is_none() {
        return backend.weight.min(MAX_WEIGHT);
    }
    let full = match balance.algorithm {
        Algorithm::RoundRobin | Algorithm::LeastConnection => 1,
        Algorithm::WeightedRoundRobin
        | Algorithm::Random
        | Algorithm::Maglev
        | Algorithm::WeightedLeastConnection => backend.weight,
    };
    full.saturating_mul(u32::from(backend.share)).min(MAX_WEIGHT)
}

/// The algorithm whose name the kernel knows.
fn scheduler(balance: Balance) -> Algorithm {
    match balance.algorithm.in_ipvs() {
        Algorithm::RoundRobin if balance.slow_start().is_some() => Algorithm::WeightedRoundRobin,
        Algorithm::LeastConnection if balance.slow_start().is_some() => Algorithm::WeightedLeastConnection,
        algorithm => algorithm,
    }
}

fn settings(balance: Balance) -> Settings {
    let hashed = balance.algorithm == Algorithm::Maglev;
    Settings {
        scheduler: scheduler(balance).name().to_owned(),
        flags: SchedulerFlags {
            first: hashed,
            second: hashed,
            third: true,
        },
        // IPVS has no persistence of 0 seconds.
        persistence: balance.affinity.filter(|seconds| *seconds > 0),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{BackendState, Container, Frontend, MacAddress, ServiceEntry};

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const LEFT_OUT: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 1);
    const WEB: ServiceKey = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };

    fn backend(location: Location, weight: u32) -> Backend {
        Backend {
            task: "task".into(),
            task_name: "web.1".into(),
            slot: Some(1),
            node: "node".into(),
            node_name: "node".into(),
            target_port: 80,
            location,
            state: if weight == 0 {
                BackendState::Draining
            } else {
                BackendState::Active
            },
            weight,
            share: 10,
        }
    }

    pub(in crate::datapath::ipvs) fn container(last: u8) -> Location {
        Location::Local(Container {
            ingress_address: Ipv4Addr::new(10, 0, 0, last),
            address: Ipv4Addr::new(172, 18, 0, last),
            mac: MacAddress::default(),
            host_interface: u32::from(last),
            gateway_mac: MacAddress::default(),
        })
    }

    /// A state with one service: its backends are named by the last byte of their ingress address.
    pub(in crate::datapath::ipvs) fn state(balance: Balance, backends: &[(u8, Location, u32)]) -> Desired {
        let mut state = Desired::default();
        let mut entry = ServiceEntry {
            id: "s1".into(),
            name: "web".into(),
            balance,
            active: Vec::new(),
            limits: Default::default(),
            policy: None,
            closed: Default::default(),
            idle: Default::default(),
        };
        for (last, location, weight) in backends {
            let key = key(*last);
            if *weight > 0 {
                entry.active.push(key);
            }
            state.backends.insert(key, backend(*location, *weight));
        }
        state.services.insert(WEB, entry);
        for address in [NODE, LEFT_OUT] {
            state.frontends.insert(Frontend {
                address,
                service: WEB,
            });
        }
        state
    }

    fn key(last: u8) -> BackendKey {
        BackendKey {
            service: WEB,
            address: Ipv4Addr::new(10, 0, 0, last),
        }
    }

    fn name(address: &str) -> VirtualService {
        VirtualService {
            address: address.parse().unwrap(),
            port: 9200,
            protocol: Protocol::Tcp,
        }
    }

    fn destinations(service: &WantedService) -> Vec<(String, u32)> {
        service
            .destinations
            .iter()
            .map(|(destination, wanted)| (destination.to_string(), wanted.weight))
            .collect()
    }

    #[test]
    fn a_frontend_reaches_local_replicas_directly_and_remote_ones_by_their_mesh_address() {
        let backends = [(7, container(7), 1), (8, Location::Remote(PEER), 1)];
        let table = table(&state(Balance::default(), &backends), LEFT_OUT);
        assert_eq!(
            destinations(&table[&name("192.0.2.1")]),
            [("172.18.0.7:80".to_owned(), 1), ("250.0.0.8:9200".to_owned(), 1)]
        );
    }

    #[test]
    fn what_arrives_through_the_tunnel_goes_to_the_replica_it_is_addressed_to() {
        let backends = [
            (7, container(7), 1),
            (9, container(9), 0),
            (8, Location::Remote(PEER), 1),
        ];
        let table = table(&state(Balance::default(), &backends), LEFT_OUT);
        assert_eq!(
            destinations(&table[&name("250.0.0.7")]),
            [("172.18.0.7:80".to_owned(), 1)]
        );
        assert_eq!(
            destinations(&table[&name("250.0.0.9")]),
            [("172.18.0.9:80".to_owned(), 1)],
            "draining is up to the entry node"
        );
        assert!(!table.contains_key(&name("250.0.0.8")), "that one is the peer's");
    }

    #[test]
    fn a_replica_that_starts_slowly_has_less_weight_under_a_scheduler_that_uses_it() {
        for (algorithm, scheduler, weights) in [
            (Algorithm::RoundRobin, "wrr", [10, 3]),
            (Algorithm::WeightedRoundRobin, "wrr", [20, 15]),
            (Algorithm::LeastConnection, "wlc", [10, 3]),
            (Algorithm::WeightedLeastConnection, "wlc", [20, 15]),
        ] {
            let balance = Balance {
                algorithm,
                slow_start: Some(30),
                ..Balance::default()
            };
            let backends = [(7, container(7), 2), (9, container(9), 5)];
            let mut state = state(balance, &backends);
            if let Some(backend) = state.backends.get_mut(&key(9)) {
                backend.share = 3;
            }
            let wanted = &table(&state, LEFT_OUT)[&name("192.0.2.1")];
            assert_eq!(wanted.settings.scheduler, scheduler);
            let found: Vec<_> = destinations(wanted)
                .into_iter()
                .map(|(_, weight)| weight)
                .collect();
            assert_eq!(found, weights, "{algorithm:?}");
        }
    }

    #[test]
    fn remote_replicas_have_weight_0_while_the_nodes_own_are_preferred() {
        let balance = Balance {
            prefer_local: true,
            ..Balance::default()
        };
        for (local, remote) in [(1, 0), (0, 1)] {
            let backends = [(7, container(7), local), (8, Location::Remote(PEER), 1)];
            let table = table(&state(balance, &backends), LEFT_OUT);
            assert_eq!(
                destinations(&table[&name("192.0.2.1")]),
                [
                    ("172.18.0.7:80".to_owned(), local),
                    ("250.0.0.8:9200".to_owned(), remote)
                ]
            );
        }
    }

    #[test]
    fn a_draining_backend_stays_with_weight_0() {
        let backends = [(7, container(7), 1), (8, Location::Remote(PEER), 0)];
        let table = table(&state(Balance::default(), &backends), LEFT_OUT);
        assert_eq!(
            destinations(&table[&name("192.0.2.1")]),
            [("172.18.0.7:80".to_owned(), 1), ("250.0.0.8:9200".to_owned(), 0)]
        );
    }

    #[test]
    fn a_service_without_backends_still_has_a_virtual_service() {
        let table = table(&state(Balance::default(), &[]), LEFT_OUT);
        assert_eq!(destinations(&table[&name("192.0.2.1")]), []);
        let addresses: Vec<_> = table.keys().map(|name| name.address.to_string()).collect();
        assert_eq!(
            addresses,
            ["192.0.2.1", "252.0.0.2"],
            "and not at the service address"
        );
    }

    #[test]
    fn algorithms_and_affinity_become_ipvs_schedulers_and_persistence() {
        for algorithm in Algorithm::ALL {
            let balance = Balance {
                algorithm,
                affinity: Some(300),
                ..Balance::default()
            };
            let table = table(&state(balance, &[]), LEFT_OUT);
            let settings = &table[&name("192.0.2.1")].settings;
            let expected = match algorithm {
                Algorithm::Random => "wrr",
                other => other.name(),
            };
            assert_eq!(settings.scheduler, expected);
            assert_eq!(settings.persistence, Some(300));
            assert!(is_ours(settings));
            assert_eq!(settings.flags.second, algorithm == Algorithm::Maglev);
        }
    }
}
