//! Each backend's traffic, summed up from IPVS's statistics and from the counters of local processes'
//! connections. Pure. Sums never go down: each reading adds the difference to the last reading of the same
//! object.

use std::collections::{BTreeMap, BTreeSet};

use super::kernel::{Destination, DestinationState, Statistics, VirtualService};
use crate::{
    datapath::{Counters, Traffic},
    model::{BackendKey, Desired, Protocol, ServiceKey},
};

/// A destination of a virtual service.
pub(super) type Position = (VirtualService, Destination);

/// Sums per backend and service, with the last readings.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    open: BTreeMap<Position, Account>,
    /// Connections of local processes, as last read.
    local: BTreeMap<BackendKey, u64>,
    backends: BTreeMap<BackendKey, Traffic>,
    services: BTreeMap<ServiceKey, Traffic>,
}

#[derive(Debug)]
struct Account {
    backend: BackendKey,
    last: Statistics,
    connections_open: u64,
}

impl Accounts {
    /// Counts a destination's traffic for a backend from now on; `since` is its reading so far.
    pub(super) fn open(&mut self, position: Position, backend: BackendKey, since: Statistics) {
        let account = Account {
            backend,
            last: since,
            connections_open: 0,
        };
        self.open.insert(position, account);
    }

    /// The backend that a destination is counted for.
    pub(super) fn owner(&self, position: &Position) -> Option<BackendKey> {
        self.open.get(position).map(|account| account.backend)
    }

    /// Every destination that is counted, with its backend.
    pub(super) fn positions(&self) -> impl Iterator<Item = (Position, BackendKey)> {
        self.open
            .iter()
            .map(|(position, account)| (*position, account.backend))
    }

    /// The virtual services that must be read for everything to be counted.
    pub(super) fn services(&self) -> BTreeSet<VirtualService> {
        self.open.keys().map(|(service, _)| *service).collect()
    }

    /// Stops counting a destination; what has been counted stays with its backend.
    pub(super) fn close(&mut self, position: &Position) {
        self.open.remove(position);
    }

    /// Adds the traffic since the last reading.
    pub(super) fn read(&mut self, position: &Position, state: &DestinationState) {
        let Some(account) = self.open.get_mut(position) else {
            return;
        };
        let new = since(state.statistics, account.last);
        account.last = state.statistics;
        account.connections_open = open_connections(&position.0, state);
        let backend = account.backend;
        self.add(
            backend,
            Traffic {
                connections_total: new.connections,
                connections_active: 0,
                packets_in: new.packets_in,
                packets_out: new.packets_out,
                bytes_in: new.bytes_in,
                bytes_out: new.bytes_out,
            },
        );
    }

    /// Adds local processes' connections since the last reading.
    pub(super) fn read_local(&mut self, connections: &BTreeMap<BackendKey, u64>) {
        for (backend, total) in connections {
            let last = self.local.insert(*backend, *total).unwrap_or(0);
            let new = if *total < last { *total } else { total - last };
            self.add(
                *backend,
                Traffic {
                    connections_total: new,
                    ..Traffic::default()
                },
            );
        }
        // A counter that is made again starts from 0.
        self.local.retain(|backend, _| connections.contains_key(backend));
    }

    /// Forgets the sums of what is not in the state; services keep the traffic of former backends.
    pub(super) fn keep(&mut self, state: &Desired) {
        self.backends
            .retain(|backend, _| state.backends.contains_key(backend));
        self.services
            .retain(|service, _| state.services.contains_key(service));
    }

    /// The sums for everything in the state.
    pub(super) fn counters(&self, state: &Desired) -> Counters {
        let mut counters = Counters {
            backends: state
                .backends
                .keys()
                .map(|key| (*key, self.backends.get(key).copied().unwrap_or_default()))
                .collect(),
            open: state.backends.keys().map(|key| (*key, 0)).collect(),
            services: state
                .services
                .keys()
                .map(|key| (*key, self.services.get(key).copied().unwrap_or_default()))
                .collect(),
            ..Counters::default()
        };
        for account in self.open.values() {
            if let Some(open) = counters.open.get_mut(&account.backend) {
                *open += account.connections_open;
            }
            if let Some(traffic) = counters.backends.get_mut(&account.backend) {
                traffic.connections_active += account.connections_open;
            }
            if let Some(traffic) = counters.services.get_mut(&account.backend.service) {
                traffic.connections_active += account.connections_open;
            }
        }
        counters
    }

    fn add(&mut self, backend: BackendKey, new: Traffic) {
        *self.backends.entry(backend).or_default() += new;
        *self.services.entry(backend.service).or_default() += new;
    }
}

/// The open connections of a virtual service to a destination.
pub(super) fn open_connections(service: &VirtualService, state: &DestinationState) -> u64 {
    u64::from(match service.protocol {
        Protocol::Tcp => state.active,
        // IPVS counts every UDP connection as inactive.
        Protocol::Udp => state.inactive,
    })
}

/// The difference to an earlier reading; the whole reading, if the object was made again in between.
fn since(now: Statistics, last: Statistics) -> Statistics {
    let restarted = now.connections < last.connections
        || now.packets_in < last.packets_in
        || now.packets_out < last.packets_out
        || now.bytes_in < last.bytes_in
        || now.bytes_out < last.bytes_out;
    if restarted {
        return now;
    }
    Statistics {
        connections: now.connections - last.connections,
        packets_in: now.packets_in - last.packets_in,
        packets_out: now.packets_out - last.packets_out,
        bytes_in: now.bytes_in - last.bytes_in,
        bytes_out: now.bytes_out - last.bytes_out,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        datapath::ipvs::wanted::tests::state,
        model::{Balance, Location},
    };

    const PEER: Location = Location::Remote(Ipv4Addr::new(192, 0, 2, 2));

    fn position(address: &str) -> Position {
        let service = VirtualService {
            address: address.parse().unwrap(),
            port: 9200,
            protocol: Protocol::Tcp,
        };
        let destination = Destination {
            address: "250.0.0.7".parse().unwrap(),
            port: 9200,
        };
        (service, destination)
    }

    fn reading(connections: u64, active: u32) -> DestinationState {
        DestinationState {
            weight: 1,
            active,
            inactive: 5,
            statistics: Statistics {
                connections,
                packets_in: 10 * connections,
                ..Statistics::default()
            },
        }
    }

    /// Connections in total and open, of the backend and of its service.
    fn sums(accounts: &Accounts, desired: &Desired) -> [(u64, u64); 2] {
        let counters = accounts.counters(desired);
        let figures = |traffic: Option<&Traffic>| {
            traffic.map_or((0, 0), |traffic| {
                (traffic.connections_total, traffic.connections_active)
            })
        };
        [
            figures(counters.backends.values().next()),
            figures(counters.services.values().next()),
        ]
    }

    #[test]
    fn a_backend_has_the_sum_over_all_addresses_and_local_processes() {
        let desired = state(Balance::default(), &[(7, PEER, 1)]);
        let backend = *desired.backends.keys().next().unwrap();
        let mut accounts = Accounts::default();
        for address in ["192.0.2.1", "198.51.100.1"] {
            accounts.open(position(address), backend, Statistics::default());
            accounts.read(&position(address), &reading(3, 1));
        }
        accounts.read_local(&BTreeMap::from([(backend, 4)]));
        accounts.read_local(&BTreeMap::from([(backend, 5)]));
        assert_eq!(sums(&accounts, &desired), [(11, 2); 2]);
        let traffic = accounts.counters(&desired).backends[&backend];
        assert_eq!(traffic.packets_in, 60);
    }

    #[test]
    fn earlier_traffic_is_not_counted_and_a_restarted_counter_is() {
        let desired = state(Balance::default(), &[(7, PEER, 1)]);
        let backend = *desired.backends.keys().next().unwrap();
        let mut accounts = Accounts::default();
        let position = position("192.0.2.1");
        accounts.open(position, backend, reading(100, 0).statistics);
        accounts.read(&position, &reading(103, 2));
        assert_eq!(sums(&accounts, &desired)[0], (3, 2));
        accounts.read(&position, &reading(1, 0));
        assert_eq!(sums(&accounts, &desired)[0], (4, 0));
        accounts.read_local(&BTreeMap::from([(backend, 5)]));
        accounts.read_local(&BTreeMap::new());
        accounts.read_local(&BTreeMap::from([(backend, 2)]));
        assert_eq!(sums(&accounts, &desired)[0], (11, 0));
    }

    #[test]
    fn a_service_keeps_the_traffic_of_former_backends() {
        let old = state(Balance::default(), &[(7, PEER, 1)]);
        let backend = *old.backends.keys().next().unwrap();
        let mut accounts = Accounts::default();
        let position = position("192.0.2.1");
        accounts.open(position, backend, Statistics::default());
        accounts.read(&position, &reading(3, 1));
        accounts.close(&position);
        let new = state(Balance::default(), &[(8, PEER, 1)]);
        accounts.keep(&new);
        assert_eq!(sums(&accounts, &new), [(0, 0), (3, 0)]);
        accounts.keep(&old);
        assert_eq!(
            sums(&accounts, &old)[0],
            (0, 0),
            "the next backend of that key starts from nothing"
        );
    }
}
