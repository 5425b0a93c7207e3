//! Computes the table of routes from the agent's view and counters. Pure.

use super::{
    View,
    access::{access_lines, unpublished},
    answered::{Addresses, answered},
    api::{self, Route, RouteBackend, RouteState, Routes},
    firewall::{inexpressible_rules, left_by},
    health::{OUT_OF_REACH, failing_lines, out_of_reach_lines},
    labels::ignored_labels,
    limits::limit_lines,
};
use crate::{
    datapath::{Counters, Signals, Traffic, UNANSWERED_LIMIT},
    model::{
        Backend, BackendKey, BackendState, Draining, FULL_SHARE, Location, NoHook, Node, NodeDatapath,
        ServiceEntry, ServiceKey, Task, TaskId, TaskState,
    },
};

/// One route for each published port and replica; a published port without replicas gets one that says so.
///
/// Running replicas that this node sends nothing to are listed too, with the reason: an operator looks for it
/// when a replica gets no traffic.
#[must_use]
pub fn routes(view: &View, counters: &Counters) -> Routes {
    let addresses = answered(&view.desired);
    let mut routes = Vec::new();
    for (key, service) in &view.desired.services {
        let frontends = addresses.get(key).cloned().unwrap_or_default();
        routes.extend(service_routes(view, counters, *key, service, &frontends));
    }
    Routes {
        version: api::VERSION,
        node: view.node.clone(),
        clock_seconds: 0.0,
        routes,
        notices: failing_lines(view)
            .into_iter()
            .chain(out_of_reach_lines(view))
            .chain(inexpressible_rules(view))
            .chain(ignored_labels(view))
            .chain(access_lines(view))
            .chain(limit_lines(view))
            .collect(),
    }
}

/// The rows of a service with frontends on this node.
fn service_routes(
    view: &View,
    counters: &Counters,
    key: ServiceKey,
    service: &ServiceEntry,
    frontends: &Addresses,
) -> Vec<Route> {
    let backends = view.desired.backends.iter();
    let mut rows: Vec<Route> = backends
        .filter(|(backend_key, _)| backend_key.service == key)
        .map(|(backend_key, backend)| Route {
            backend: Some(route_backend(view, backend_key, backend)),
            state: match backend.state {
                BackendState::Active => RouteState::Active,
                BackendState::Draining => RouteState::Draining,
            },
            reason: drained(view, backend)
                .or_else(|| failed(view, backend))
                .or_else(|| backend_reason(view, backend))
                .or_else(|| unpublished(view, key, service))
                .or_else(|| unanswered(counters, backend_key))
                .or_else(|| not_preferred(view, service, backend))
                .or_else(|| starting(backend))
                .unwrap_or_default(),
            traffic: counters.backends.get(backend_key).copied().unwrap_or_default(),
            connections_failed: counters.signals.get(backend_key).map(Signals::failed),
            ..route(key, service, frontends)
        })
        .collect();
    if let Some(reason) = view.refused_services.get(&key) {
        for row in &mut rows {
            row.state = RouteState::Excluded;
            row.reason = format!("the kernel refuses the service: {reason}");
        }
    }
    if let Some(purpose) = view.desired.left.get(&key) {
        for row in &mut rows {
            row.state = RouteState::Excluded;
            row.reason = format!("the port is that of {purpose}");
        }
    }
    if let Some(rule) = view.desired.inexpressible.get(&key) {
        for row in &mut rows {
            row.state = RouteState::Excluded;
            row.reason = left_by(rule);
        }
    }
    rows.extend(excluded_routes(view, key, service, frontends));
    rows.sort_by(|left, right| sort_key(left).cmp(&sort_key(right)));
    if rows.is_empty() {
        rows.push(Route {
            // Traffic of removed replicas is counted for the service only.
            traffic: counters.services.get(&key).copied().unwrap_or_default(),
            ..route(key, service, frontends)
        });
    }
    rows
}

/// The rows of a service's running tasks that this node sends nothing to.
fn excluded_routes(
    view: &View,
    key: ServiceKey,
    service: &ServiceEntry,
    frontends: &Addresses,
) -> Vec<Route> {
    let mut rows: Vec<Route> = excluded(view, key, service)
        .map(|(backend, reason)| Route {
            backend: Some(backend),
            state: RouteState::Excluded,
            reason,
            ..route(key, service, frontends)
        })
        .collect();
    rows.sort_by(|left, right| sort_key(left).cmp(&sort_key(right)));
    rows
}

/// The row of a service without replicas.
fn route(key: ServiceKey, service: &ServiceEntry, frontends: &Addresses) -> Route {
    Route {
        service: service.name.clone(),
        service_id: service.id.clone(),
        protocol: key.protocol,
        port: key.port,
        frontends: frontends.ipv4.clone(),
        ipv6_frontends: frontends.ipv6.clone(),
        backend: None,
        state: RouteState::NoBackend,
        reason: "no task of the service is running".to_owned(),
        traffic: Traffic::default(),
        connections_failed: None,
    }
}

/// `ip:port` of a backend, as columns and metrics show it.
#[must_use]
pub fn backend_address(key: &BackendKey, backend: &Backend) -> String {
    format!("{}:{}", key.address, backend.target_port)
}

/// By slot first, so that `web.10` follows `web.9`.
fn sort_key(route: &Route) -> Option<(u64, &str)> {
    let backend = route.backend.as_ref()?;
    Some((backend.slot.unwrap_or(0), backend.task.as_str()))
}

fn route_backend(view: &View, key: &BackendKey, backend: &Backend) -> RouteBackend {
    RouteBackend {
        task: backend.task_name.clone(),
        task_id: backend.task.clone(),
        slot: backend.slot,
        node: backend.node_name.clone(),
        node_id: backend.node.clone(),
        local: backend.node == view.node,
        address: backend_address(key, backend),
        weight: backend.weight,
    }
}

/// A replica that this node asks in vain, and therefore passes over.
fn unanswered(counters: &Counters, key: &BackendKey) -> Option<String> {
    let asked = *counters.unanswered.get(key)?;
    (asked >= UNANSWERED_LIMIT)
        .then(|| "asked, never answered: gets one connection a second while others answer".to_owned())
}

/// A replica that is new, and does not get its full share yet.
fn starting(backend: &Backend) -> Option<String> {
    let share = backend.share;
    (share < FULL_SHARE).then(|| format!("new: gets {share}/{FULL_SHARE} of its share (mesh.slow-start)"))
}

/// A replica that gets nothing while this node's own work.
fn not_preferred(view: &View, service: &ServiceEntry, backend: &Backend) -> Option<String> {
    let is_other = backend.state == BackendState::Active && !backend.location.is_local();
    (is_other && view.desired.prefers_local(service))
        .then(|| "this node's own replicas are preferred (mesh.prefer-local)".to_owned())
}

/// A replica that an operator drains.
pub(super) fn drained(view: &View, backend: &Backend) -> Option<String> {
    let node = view.source.cluster.nodes.get(&backend.node);
    let drained = if backend.node == view.node {
        &view.drained
    } else {
        &node?.drained
    };
    let command = match (drained.node, drained.contains(&backend.task)) {
        (true, _) => &backend.node_name,
        (false, true) => &backend.task_name,
        (false, false) => return None,
    };
    Some(format!(
        "drained by an operator; `meshctl undrain {command}` on {} ends it",
        backend.node_name
    ))
}

/// A replica that fails its check.
pub(super) fn failed(view: &View, backend: &Backend) -> Option<String> {
    let reason = view.checks().failure(&backend.task)?;
    let tried = match backend.state {
        BackendState::Active => "; tried all the same, as every replica fails",
        BackendState::Draining => "",
    };
    Some(format!("failed its check: {reason}{tried}"))
}

/// Why a backend gets nothing from this node, or may not, because of the way to it.
pub(super) fn backend_reason(view: &View, backend: &Backend) -> Option<String> {
    let Location::Remote(address) = backend.location else {
        return None;
    };
    let node = view.source.cluster.nodes.get(&backend.node);
    if node.is_some_and(|node| node.datapath == NodeDatapath::Leaving) {
        return Some(format!("the agent on {} is stopping", backend.node_name));
    }
    if node.is_some_and(|node| node.silent) {
        return Some(format!("lost contact with the agent on {}", backend.node_name));
    }
    if let Some(peer) = view
        .probes
        .peers
        .get(&address)
        .filter(|peer| peer.answers == Some(false))
    {
        let alone = if peer.lost {
            "; connections to it are given up"
        } else {
            ""
        };
        return Some(format!("{} does not answer this node{alone}", backend.node_name));
    }
    match view.desired.peers.get(&address) {
        Some(Some(_)) => None,
        Some(None) => Some(format!("the next hop to {address} is not resolved yet")),
        None => Some(format!("{address} is not a peer of this node")),
    }
}

/// Running tasks of the service that are not backends on this node, and why.
fn excluded(
    view: &View,
    key: ServiceKey,
    service: &ServiceEntry,
) -> impl Iterator<Item = (RouteBackend, String)> {
    let cluster = &view.source.cluster;
    let target = cluster
        .services
        .get(&service.id)
        .and_then(|service| {
            service
                .ports
                .iter()
                .find(|port| port.protocol == key.protocol && port.published == key.port)
        })
        .map(|port| port.target);
    cluster.tasks.iter().filter_map(move |(id, task)| {
        let target = target.filter(|_| task.service == service.id && task.state == TaskState::Active)?;
        let known = BackendKey {
            service: key,
            address: task.address,
        };
        if view.desired.backends.contains_key(&known) {
            return None;
        }
        let node = cluster.nodes.get(&task.node);
        let reason = match node {
            None => "its node is not in the cluster".to_owned(),
            Some(_) if drained_out(view, id, task) => {
                "drained for longer than mesh.drain-timeout: what was open is reset".to_owned()
            }
            Some(_) if view.checks().is_out_of_reach(id) => OUT_OF_REACH.to_owned(),
            Some(_) if task.node == view.node => "its container was not found on this node (yet)".to_owned(),
            Some(node) if !node.ready => format!("node {} is not ready", node.hostname),
            Some(node) if view.probes.peers.get(&node.address).is_some_and(|peer| peer.lost) => {
                format!("{} does not answer this node", node.hostname)
            }
            Some(node) => datapath_reason(view, node),
        };
        let backend = RouteBackend {
            task: task.name.clone(),
            task_id: id.clone(),
            slot: task.slot,
            node: node.map_or_else(|| task.node.clone(), |node| node.hostname.clone()),
            node_id: task.node.clone(),
            local: task.node == view.node,
            address: format!("{}:{target}", task.address),
            weight: 0,
        };
        Some((backend, reason))
    })
}

/// Whether an operator drains a task of a service whose drains end, so that it is no backend any more.
fn drained_out(view: &View, id: &TaskId, task: &Task) -> bool {
    let draining = Draining {
        cluster: &view.source.cluster,
        own: &view.node,
        drained: &view.drained,
    };
    let service = view.source.cluster.services.get(&task.service);
    service.is_some_and(|service| service.drain_timeout.is_some()) && draining.has(id, task)
}

/// Why nothing is sent to a ready node's tasks.
fn datapath_reason(view: &View, node: &Node) -> String {
    let name = &node.hostname;
    if let Some(NoHook { interface, reason }) = view.without_hook.get(&node.address) {
        return format!("no hook on {interface}, which leads to {name}: {reason}");
    }
    match node.datapath {
        NodeDatapath::Unknown if answers_probes(view, node) => "not programmed yet".to_owned(),
        NodeDatapath::Unknown => {
            format!("no agent on {name} has announced its data path, and none there answers probes")
        }
        NodeDatapath::None => format!("no data path is up on {name}: its agent is stopped or starting"),
        NodeDatapath::Leaving => format!("the agent on {name} is stopping"),
        kind if kind.takes_from(view.datapath) => "not programmed yet".to_owned(),
        NodeDatapath::Ebpf => format!("{name} uses eBPF, this node another kind of data path"),
        NodeDatapath::Ipvs => format!("{name} uses IPVS, this node another kind of data path"),
    }
}

fn answers_probes(view: &View, node: &Node) -> bool {
    view.probes.answered().contains(&node.address)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::admin::{health::tests::with_failures, view::fixture};

    #[test]
    fn a_replica_that_fails_its_check_is_shown_with_the_reason() {
        let counters = Counters::default();
        let shown = |own: bool| {
            let mut view = with_failures(own);
            let mut desired = (*view.desired).clone();
            let backend = desired.backends.values_mut().find(|backend| backend.task == "t2");
            backend.unwrap().state = if own {
                BackendState::Active
            } else {
                BackendState::Draining
            };
            view.desired = desired.into();
            let answer = routes(&view, &counters);
            let mut rows = answer.routes.iter();
            let is_there = |row: &&Route| {
                row.backend
                    .as_ref()
                    .is_some_and(|backend| backend.task_id == "t2")
            };
            (rows.find(is_there).unwrap().reason.clone(), answer.notices.len())
        };
        assert_eq!(shown(false), ("failed its check: HTTP status 500".to_owned(), 0));
        let all = "failed its check: HTTP status 500; tried all the same, as every replica fails";
        assert_eq!(shown(true), (all.to_owned(), 1));
    }

    #[test]
    fn a_drained_replica_is_shown_with_the_command_that_ends_it() {
        let (mut view, counters) = fixture::two_nodes();
        let mut cluster = (*view.source.cluster).clone();
        cluster.nodes.get_mut("id2").unwrap().drained.node = true;
        view.source.cluster = cluster.into();
        view.drained.tasks = ["t1".to_owned()].into();
        let routes = routes(&view, &counters).routes;
        let reason = |task: &str| {
            let mut rows = routes.iter();
            let is_task = |row: &&Route| row.backend.as_ref().is_some_and(|backend| backend.task == task);
            rows.find(is_task).unwrap().reason.clone()
        };
        assert_eq!(
            reason("web.1"),
            "drained by an operator; `meshctl undrain web.1` on n1 ends it"
        );
        assert_eq!(
            reason("web.2"),
            "drained by an operator; `meshctl undrain n2` on n2 ends it"
        );
    }

    #[test]
    fn a_replica_whose_drain_has_ended_is_shown_with_the_reason() {
        let (mut view, counters) = fixture::two_nodes();
        view.drained.tasks = ["t1".to_owned()].into();
        let mut desired = (*view.desired).clone();
        desired.backends.retain(|_, backend| backend.task != "t1");
        view.desired = desired.into();
        let mut cluster = (*view.source.cluster).clone();
        cluster.services.get_mut("web-id").unwrap().drain_timeout = Some(60);
        view.source.cluster = cluster.into();
        let rows = routes(&view, &counters).routes;
        let is_it = |row: &&Route| {
            row.backend
                .as_ref()
                .is_some_and(|backend| backend.task_id == "t1")
        };
        let row = rows.iter().find(is_it).unwrap();
        assert_eq!(row.state, RouteState::Excluded);
        let expected = "drained for longer than mesh.drain-timeout";
        assert!(row.reason.starts_with(expected), "{}", row.reason);
    }

    #[test]
    fn a_replica_gets_one_row_per_published_port_with_its_traffic() {
        let (view, counters) = fixture::two_nodes();
        let table = routes(&view, &counters);
        let web: Vec<_> = table
            .routes
            .iter()
            .filter(|route| route.service == "web")
            .collect();
        assert_eq!(web.len(), 4, "{web:#?}");
        let first = web[0];
        let backend = first.backend.as_ref().unwrap();
        assert_eq!(
            (backend.task.as_str(), backend.address.as_str()),
            ("web.1", "10.0.0.5:80")
        );
        assert!(backend.local);
        assert_eq!(first.traffic.connections_total, 7);
        assert_eq!(first.connections_failed, Some(3));
        assert_eq!(first.frontends.len(), 2);
        let own: Ipv6Addr = "2001:db8::1".parse().unwrap();
        assert_eq!(
            first.ipv6_frontends,
            [own],
            "as it is, not as the data path has it"
        );
        assert_eq!(first.reason, "");
    }

    #[test]
    fn a_replica_that_is_asked_and_does_not_answer_has_a_reason() {
        let (view, mut counters) = fixture::two_nodes();
        let key = *view.desired.backends.keys().next().unwrap();
        for (asked, expected) in [(UNANSWERED_LIMIT - 1, false), (UNANSWERED_LIMIT, true)] {
            counters.unanswered.insert(key, asked);
            let table = routes(&view, &counters);
            let found = table
                .routes
                .iter()
                .any(|route| route.reason.contains("never answered"));
            assert_eq!(found, expected, "{asked} times");
        }
    }

    #[test]
    fn a_remote_replica_has_a_reason_where_the_nodes_own_are_preferred() {
        let (mut view, counters) = fixture::two_nodes();
        let mut desired = (*view.desired).clone();
        for service in desired.services.values_mut() {
            service.balance.prefer_local = true;
        }
        for hop in desired.peers.values_mut() {
            *hop = Some(crate::model::NextHop::layer3(2, None));
        }
        view.desired = desired.into();
        let reason = |view: &View, task: &str| {
            let rows = routes(view, &counters).routes;
            let is_task = |row: &Route| row.backend.as_ref().is_some_and(|backend| backend.task == task);
            rows.into_iter().find(is_task).unwrap().reason
        };
        assert_eq!(reason(&view, "web.1"), "");
        let expected = "this node's own replicas are preferred (mesh.prefer-local)";
        assert_eq!(reason(&view, "web.2"), expected);
        let mut desired = (*view.desired).clone();
        for service in desired.services.values_mut() {
            service
                .active
                .retain(|key| !desired.backends[key].location.is_local());
        }
        view.desired = desired.into();
        assert_eq!(reason(&view, "web.2"), "");
    }

    #[test]
    fn rows_are_sorted_by_slot_not_by_name() {
        let (view, counters) = fixture::two_nodes();
        let tasks: Vec<_> = routes(&view, &counters)
            .routes
            .into_iter()
            .filter_map(|route| route.backend)
            .map(|backend| backend.task)
            .collect();
        assert_eq!(tasks, ["web.1", "web.2", "web.3", "web.10"]);
    }

    #[test]
    fn a_service_without_replicas_says_so() {
        let (view, counters) = fixture::two_nodes();
        let table = routes(&view, &counters);
        let route = table.routes.iter().find(|route| route.service == "dns").unwrap();
        assert_eq!(route.state, RouteState::NoBackend);
        assert!(route.backend.is_none());
        assert!(!route.reason.is_empty());
    }

    #[test]
    fn a_running_task_without_traffic_has_a_reason() {
        let (view, counters) = fixture::two_nodes();
        let table = routes(&view, &counters);
        let find = |task: &str| {
            let of_task = |route: &&Route| route.backend.as_ref().is_some_and(|backend| backend.task == task);
            table.routes.iter().find(of_task).unwrap()
        };
        assert_eq!(find("web.10").state, RouteState::Excluded);
        assert_eq!(find("web.10").reason, "node n3 is not ready");
        assert_eq!(
            find("web.2").reason,
            "the next hop to 192.168.0.2 is not resolved yet"
        );
        assert_eq!(find("web.3").state, RouteState::Draining);
    }

    #[test]
    fn a_replica_on_a_silent_node_has_a_reason() {
        let (mut view, counters) = fixture::two_nodes();
        std::sync::Arc::make_mut(&mut view.source.cluster)
            .nodes
            .get_mut("id2")
            .unwrap()
            .silent = true;
        let rows = routes(&view, &counters).routes;
        let row = rows.iter().find(|row| {
            row.backend
                .as_ref()
                .is_some_and(|backend| backend.task == "web.2")
        });
        assert_eq!(row.unwrap().reason, "lost contact with the agent on n2");
    }

    #[test]
    fn a_replica_excluded_for_its_nodes_data_path_has_a_reason() {
        for (kind, reason) in [
            (
                NodeDatapath::Unknown,
                "no agent on n2 has announced its data path",
            ),
            (NodeDatapath::None, "no data path is up on n2"),
            (NodeDatapath::Ipvs, "n2 uses IPVS"),
            (NodeDatapath::Leaving, "the agent on n2 is stopping"),
        ] {
            let (mut view, counters) = fixture::with_peer_of_kind(kind);
            view.probes.peers.clear();
            let find = |view: &View, task: &str| {
                let rows = routes(view, &counters).routes;
                let of_task =
                    |route: &Route| route.backend.as_ref().is_some_and(|backend| backend.task == task);
                rows.into_iter().find(of_task).unwrap()
            };
            let row = find(&view, "web.2");
            assert!(row.reason.starts_with(reason), "{kind:?}: {}", row.reason);
            assert!(!row.frontends.is_empty(), "the local replica keeps the frontends");
        }
    }

    #[test]
    fn routes_round_trip_through_json() {
        let (view, counters) = fixture::two_nodes();
        let table = routes(&view, &counters);
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Routes>(&text).unwrap(), table);
    }
}
