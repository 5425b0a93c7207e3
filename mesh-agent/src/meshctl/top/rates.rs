//! Rates from two readings of the counters. Pure.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::Serialize;

use crate::{
    admin::api::{Route, RouteBackend, RouteState, Routes},
    datapath::Traffic,
    model::Protocol,
};

/// What passed in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) connections_per_second: f64,
    /// Those that their replica refused or did not answer; `None` where that is not counted.
    pub(super) connections_failed_per_second: Option<f64>,
    /// Open at the end.
    pub(super) connections_active: u64,
    pub(super) packets_in_per_second: f64,
    pub(super) packets_out_per_second: f64,
    pub(super) bytes_in_per_second: f64,
    pub(super) bytes_out_per_second: f64,
}

/// The rates of a published port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ServiceRates {
    pub(super) service: String,
    pub(super) service_id: String,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    #[serde(flatten)]
    pub(super) rates: Rates,
    pub(super) replicas: Vec<ReplicaRates>,
}

/// The rates of a replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ReplicaRates {
    pub(super) task: String,
    pub(super) task_id: String,
    pub(super) node: String,
    #[serde(flatten)]
    pub(super) rates: Rates,
}

/// A route, and what passed it.
pub(super) type RouteRates = (Route, Rates);

/// The rates of one node's routes. Its own clock says how much time has passed; an agent that reports none is
/// taken to have read its counters `elapsed` seconds apart.
pub(super) fn rates(before: &Routes, after: &Routes, elapsed: f64) -> Vec<RouteRates> {
    let measured = after.clock_seconds - before.clock_seconds;
    let seconds = if measured > 0.0 { measured } else { elapsed };
    let earlier: BTreeMap<_, _> = before
        .routes
        .iter()
        .map(|route| (key(route), (route.traffic, route.connections_failed)))
        .collect();
    let routes = after.routes.iter().map(|route| {
        // A replica that was not there before has counted from zero.
        let before = earlier.get(&key(route)).copied().unwrap_or_default();
        let after = (route.traffic, route.connections_failed);
        (route.clone(), between(before, after, seconds))
    });
    routes.collect()
}

type Key<'a> = (Protocol, u16, Option<&'a str>);

fn key(route: &Route) -> Key<'_> {
    let task = route.backend.as_ref().map(|backend| backend.task_id.as_str());
    (route.protocol, route.port, task)
}

/// What the data path counts of a route.
type Counted = (Traffic, Option<u64>);

fn between((before, failed_before): Counted, (after, failed): Counted, seconds: f64) -> Rates {
    // Counters that begin again count from zero.
    let rate = |before: u64, after: u64| {
        let passed = if after < before { after } else { after - before };
        passed as f64 / seconds
    };
    Rates {
        connections_per_second: rate(before.connections_total, after.connections_total),
        connections_failed_per_second: failed.map(|failed| rate(failed_before.unwrap_or(0), failed)),
        connections_active: after.connections_active,
        packets_in_per_second: rate(before.packets_in, after.packets_in),
        packets_out_per_second: rate(before.packets_out, after.packets_out),
        bytes_in_per_second: rate(before.bytes_in, after.bytes_in),
        bytes_out_per_second: rate(before.bytes_out, after.bytes_out),
    }
}

impl AddAssign for Rates {
    fn add_assign(&mut self, other: Self) {
        self.connections_per_second += other.connections_per_second;
        if let Some(failed) = other.connections_failed_per_second {
            *self.connections_failed_per_second.get_or_insert(0.0) += failed;
        }
        self.connections_active += other.connections_active;
        self.packets_in_per_second += other.packets_in_per_second;
        self.packets_out_per_second += other.packets_out_per_second;
        self.bytes_in_per_second += other.bytes_in_per_second;
        self.bytes_out_per_second += other.bytes_out_per_second;
    }
}

/// The routes of any number of nodes by service and replica, in the order of names. Counters count where
/// traffic enters, so that sums over nodes are right.
pub(super) fn sum(routes: impl IntoIterator<Item = RouteRates>) -> Vec<ServiceRates> {
    let mut services = BTreeMap::<_, (ServiceRates, BTreeMap<_, ReplicaRates>)>::new();
    for (route, rates) in routes {
        let order = (route.service.clone(), route.protocol, route.port);
        let (service, replicas) = services.entry(order).or_insert_with(|| {
            let service = ServiceRates {
                service: route.service.clone(),
                service_id: route.service_id.clone(),
                protocol: route.protocol,
                port: route.port,
                rates: Rates::default(),
                replicas: Vec::new(),
            };
            (service, BTreeMap::new())
        });
        service.rates += rates;
        let Some(backend) = route.backend else { continue };
        // What gets no traffic is listed by `routes`.
        if route.state == RouteState::Excluded && rates == Rates::default() {
            continue;
        }
        let RouteBackend {
            task,
            task_id,
            slot,
            node,
            ..
        } = backend;
        // By slot first, so that `web.10` follows `web.9`.
        let order = (slot.unwrap_or(0), task.clone(), task_id.clone());
        let replica = replicas.entry(order).or_insert(ReplicaRates {
            task,
            task_id,
            node,
            rates: Rates::default(),
        });
        replica.rates += rates;
    }
    let with_replicas = |(service, replicas): (ServiceRates, BTreeMap<_, ReplicaRates>)| ServiceRates {
        replicas: replicas.into_values().collect(),
        ..service
    };
    services.into_values().map(with_replicas).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn route(service: &str, task: &str, traffic: Traffic) -> Route {
        Route {
            service: service.to_owned(),
            service_id: format!("{service}-id"),
            protocol: Protocol::Tcp,
            port: match service {
                "web" => 80,
                "idle" => 81,
                _ => 9200,
            },
            frontends: Vec::new(),
            ipv6_frontends: Vec::new(),
            backend: Some(RouteBackend {
                task: task.to_owned(),
                task_id: format!("{task}-id"),
                slot: task.split_once('.').and_then(|(_, slot)| slot.parse().ok()),
                node: "n1".to_owned(),
                node_id: "id1".to_owned(),
                local: true,
                address: "10.0.0.5:80".to_owned(),
                weight: 1,
            }),
            state: RouteState::Active,
            reason: String::new(),
            traffic,
            connections_failed: Some(traffic.connections_total / 10),
        }
    }

    fn traffic(connections: u64, bytes_out: u64) -> Traffic {
        Traffic {
            connections_total: connections,
            connections_active: 2,
            bytes_out,
            ..Traffic::default()
        }
    }

    fn reading(clock_seconds: f64, routes: Vec<Route>) -> Routes {
        Routes {
            version: 1,
            node: "n1".to_owned(),
            routes,
            notices: Vec::new(),
            clock_seconds,
        }
    }

    #[test]
    fn a_rate_goes_by_the_nodes_own_clock_if_it_reports_one() {
        let read = |clock, connections| reading(clock, vec![route("web", "web.1", traffic(connections, 0))]);
        let rate = |before: Routes, after: Routes| rates(&before, &after, 2.0)[0].1.connections_per_second;
        assert_eq!(rate(read(10.0, 100), read(14.0, 120)), 5.0);
        assert_eq!(rate(read(0.0, 100), read(0.0, 120)), 10.0);
    }

    #[test]
    fn new_replicas_and_counters_that_begin_again_count_from_zero() {
        let before = reading(1.0, vec![route("web", "web.1", traffic(100, 0))]);
        let after = vec![
            route("web", "web.1", traffic(4, 0)),
            route("web", "web.2", traffic(6, 0)),
        ];
        let rates = rates(&before, &reading(3.0, after), 2.0);
        let found: Vec<_> = rates
            .iter()
            .map(|(_, rates)| rates.connections_per_second)
            .collect();
        assert_eq!(found, [2.0, 3.0]);
    }

    #[test]
    fn failures_add_up_where_they_are_counted() {
        let failed = |failed| Rates {
            connections_failed_per_second: failed,
            ..Rates::default()
        };
        let of = |task: &str| route("web", task, Traffic::default());
        for (counted, sum_of_all) in [
            ([None, None], None),
            ([Some(1.0), None], Some(1.0)),
            ([Some(1.0), Some(2.0)], Some(3.0)),
        ] {
            let rates = counted.map(|counted| (of("web.1"), failed(counted)));
            assert_eq!(sum(rates)[0].rates, failed(sum_of_all));
        }
        let read = |connections| reading(0.0, vec![route("web", "web.1", traffic(connections, 0))]);
        let found = rates(&read(100), &read(140), 2.0)[0].1;
        assert_eq!(found.connections_failed_per_second, Some(2.0));
    }

    #[test]
    fn the_rates_of_several_nodes_add_up() {
        let rates = |connections, bytes| Rates {
            connections_per_second: connections,
            connections_active: 1,
            bytes_out_per_second: bytes,
            ..Rates::default()
        };
        let of = |task: &str| route("web", task, Traffic::default());
        let excluded = Route {
            state: RouteState::Excluded,
            ..of("web.3")
        };
        let without = Route {
            backend: None,
            ..route("idle", "idle.1", Traffic::default())
        };
        let services = sum([
            (of("web.10"), rates(1.0, 10.0)),
            (of("web.9"), rates(2.0, 0.0)),
            (of("web.10"), rates(3.0, 5.0)),
            (excluded, Rates::default()),
            (without, Rates::default()),
        ]);
        let names: Vec<_> = services.iter().map(|service| service.service.as_str()).collect();
        assert_eq!(names, ["idle", "web"]);
        assert!(services[0].replicas.is_empty());
        let web = &services[1];
        assert_eq!(
            (
                web.rates.connections_per_second,
                web.rates.connections_active,
                web.rates.bytes_out_per_second
            ),
            (6.0, 3, 15.0)
        );
        let replicas: Vec<_> = web
            .replicas
            .iter()
            .map(|replica| (replica.task.as_str(), replica.rates.connections_per_second))
            .collect();
        assert_eq!(replicas, [("web.9", 2.0), ("web.10", 4.0)]);
    }
}
