//! Computes the agent's status from a view of it and the clock. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr, time::SystemTime};

use super::{
    View,
    access::unknown_interfaces,
    api::{self, Counts, Ipv6Status, ModelStatus, Peer, PeerProbes, ProbeState, Status},
    firewall::inexpressible_rules,
    forwarding::forwarding_line,
    health::{failing_lines, out_of_reach_lines},
    labels::ignored_labels,
    limits::{limit_lines, limited_services},
    ports::port_lines,
};
use crate::{
    model::{AgentConnection, BackendState, NoHook, Node, NodeDatapath, NodeId},
    probes::PeerLiveness,
};

/// The node's status at `now`.
#[must_use]
pub fn status(view: &View, now: SystemTime) -> Status {
    let cluster = &view.source.cluster;
    let peers = cluster
        .nodes
        .iter()
        .filter(|(id, _)| **id != view.node)
        .map(|(id, node)| Peer {
            hostname: node.hostname.clone(),
            node: id.clone(),
            address: node.address,
            role: node.role,
            ready: node.ready,
            datapath: node.datapath,
            resolved: view.desired.peers.get(&node.address).is_some_and(Option::is_some),
            path_mtu: smaller_path_mtu(view, node.address),
            no_hook: view.without_hook.get(&node.address).cloned(),
            probes: view.probes.peers.get(&node.address).map(|peer| probes(peer, now)),
            agent_version: node.release.clone(),
            agent: node.agent,
            agent_lost_seconds: view.lost_agents.get(id).map(|since| seconds_between(*since, now)),
        })
        .collect();
    let in_state = |state| {
        let backends = view.desired.backends.values();
        backends.filter(|backend| backend.state == state).count()
    };
    Status {
        version: api::VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: seconds_between(view.started, now),
        not_ready: view.not_ready.clone(),
        ready_without_snapshot: view.ready_without_snapshot.clone(),
        node: view.node.clone(),
        hostname: cluster
            .nodes
            .get(&view.node)
            .map(|node| node.hostname.clone())
            .unwrap_or_default(),
        node_address: view.desired.settings.node_address,
        role: view.role,
        datapath: view.datapath,
        drained: drained(view),
        policy: view.policy.rules().iter().map(ToString::to_string).collect(),
        ipv6: Ipv6Status {
            addresses: view.desired.own_ipv6.keys().copied().collect(),
            reason: view.ipv6_left.clone(),
        },
        return_mode: view.return_mode,
        datapath_status: view.datapath_status.clone(),
        interfaces: view.modes.clone(),
        peers,
        model: ModelStatus {
            origin: view.source.origin.clone(),
            revision_applied: view.applied_revision,
            revision_seen: view.source.revision,
            lag_seconds: view
                .source
                .confirmed
                .map(|confirmed| seconds_between(confirmed, now)),
        },
        counts: Counts {
            services: view.desired.services.len(),
            frontends: view.desired.frontends.len(),
            backends_active: in_state(BackendState::Active),
            backends_draining: in_state(BackendState::Draining),
        },
        limited: limited_services(view),
        errors: errors(view, now),
    }
}

/// Seconds from `earlier` to `later`; zero if the wall clock was set back in between.
#[must_use]
pub fn seconds_between(earlier: SystemTime, later: SystemTime) -> f64 {
    later.duration_since(earlier).unwrap_or_default().as_secs_f64()
}

/// What the path to a peer carries, if its interface carries more.
fn smaller_path_mtu(view: &View, peer: Ipv4Addr) -> Option<u32> {
    let next_hop = view.desired.peers.get(&peer)?.as_ref()?;
    let mut uplinks = view.desired.uplinks.values();
    let uplink = uplinks.find(|uplink| uplink.index == next_hop.interface)?;
    next_hop.mtu.filter(|mtu| *mtu < uplink.mtu)
}

fn probes(peer: &PeerLiveness, now: SystemTime) -> PeerProbes {
    PeerProbes {
        state: match peer.answers {
            Some(true) => ProbeState::Answers,
            Some(false) => ProbeState::Silent,
            None => ProbeState::Unknown,
        },
        round_trip_seconds: peer.round_trip.map(|round_trip| round_trip.as_secs_f64()),
        silent_seconds: peer.silent_since.map(|since| seconds_between(since, now)),
        answers_again: peer.answers_again,
    }
}

/// This node's own name if all of it is drained, or else the names of the drained tasks.
fn drained(view: &View) -> Vec<String> {
    let cluster = &view.source.cluster;
    if view.drained.node {
        let node = cluster.nodes.get(&view.node);
        return vec![node.map_or_else(|| view.node.clone(), |node| node.hostname.clone())];
    }
    let name = |id: &String| cluster.tasks.get(id).map_or(id, |task| &task.name).clone();
    view.drained.tasks.iter().map(name).collect()
}

fn errors(view: &View, now: SystemTime) -> Vec<String> {
    let docker = view
        .docker_trouble
        .iter()
        .map(|trouble| format!("docker: {trouble}"));
    let source = view
        .source
        .trouble
        .iter()
        .map(|trouble| format!("source: {trouble}"));
    let datapath = view
        .datapath_errors
        .iter()
        .map(|error| format!("data path: {error}"));
    let network = missing_hooks(view)
        .into_iter()
        .chain(forwarding_line(view))
        .map(|line| format!("network: {line}"));
    let isolated = view.probes.is_isolated().then(|| {
        "probes: no peer answers; this node may be cut off, and keeps its connections to peers".to_owned()
    });
    let probes = view
        .probes
        .trouble
        .iter()
        .map(|trouble| format!("probes: {trouble}"));
    let agents = lost_agents(view, now)
        .into_iter()
        .map(|line| format!("peers: {line}"));
    let metrics = view
        .metrics_trouble
        .iter()
        .map(|trouble| format!("metrics: {trouble}"));
    let ports = port_lines(view).into_iter().map(|line| format!("ports: {line}"));
    let health = failing_lines(view)
        .into_iter()
        .chain(out_of_reach_lines(view))
        .map(|line| format!("health: {line}"));
    let limits = limit_lines(view)
        .into_iter()
        .map(|line| format!("limits: {line}"));
    let firewall = inexpressible_rules(view)
        .into_iter()
        .map(|line| format!("firewall: {line}"));
    let policy = unknown_interfaces(view)
        .into_iter()
        .map(|line| format!("policy: {line}"));
    let labels = ignored_labels(view)
        .into_iter()
        .map(|line| format!("labels: {line}"));
    docker
        .chain(source)
        .chain(datapath)
        .chain(network)
        .chain(isolated)
        .chain(probes)
        .chain(agents)
        .chain(metrics)
        .chain(ports)
        .chain(health)
        .chain(limits)
        .chain(firewall)
        .chain(policy)
        .chain(labels)
        .collect()
}

/// The nodes with a data path whose agent does not keep it up to date, one line each.
fn lost_agents(view: &View, now: SystemTime) -> Vec<String> {
    let line = |(id, node): (&NodeId, &Node)| {
        let answers = view.probes.peers.get(&node.address).and_then(|peer| peer.answers);
        let has_datapath = match node.datapath {
            NodeDatapath::Ebpf | NodeDatapath::Ipvs | NodeDatapath::Leaving => true,
            NodeDatapath::Unknown | NodeDatapath::None => answers == Some(true),
        };
        let ready = node.ready && *id != view.node && has_datapath;
        let hostname = &node.hostname;
        match node.agent {
            AgentConnection::Lost if ready => {
                let since = view.lost_agents.get(id).copied().unwrap_or(now);
                let goes_on = match answers {
                    Some(true) => "its data path answers, and forwards as it last did",
                    Some(false) | None => "its data path may forward as it last did",
                };
                Some(format!(
                    "agent of {hostname} not connected for {:.0} s: it does not run there, or cannot reach the \
                     managers; {goes_on}",
                    seconds_between(since, now)
                ))
            }
            AgentConnection::Unsteady if ready => Some(format!(
                "agent of {hostname} connects again and again: see its log on that node"
            )),
            AgentConnection::Lost
            | AgentConnection::Unsteady
            | AgentConnection::Connected
            | AgentConnection::Unknown => None,
        }
    };
    view.source.cluster.nodes.iter().filter_map(line).collect()
}

/// The interfaces that lead to other nodes and have no hook, one line each.
#[must_use]
pub fn missing_hooks(view: &View) -> Vec<String> {
    let mut peers = BTreeMap::<&NoHook, Vec<&str>>::new();
    for node in view.source.cluster.nodes.values() {
        if let Some(no_hook) = view.without_hook.get(&node.address) {
            peers.entry(no_hook).or_default().push(&node.hostname);
        }
    }
    peers
        .into_iter()
        .map(|(NoHook { interface, reason }, names)| {
            format!(
                "no hook on {interface}, which leads to {}: {reason}; nothing is sent to them by the mesh, and this \
                 node announces no data path",
                names.join(", ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::{admin::view::fixture, model::HostInterface};

    #[test]
    fn status_has_lag_peers_and_counts() {
        let (view, _) = fixture::two_nodes();
        let status = status(&view, view.started + Duration::from_secs(10));
        assert_eq!(status.uptime_seconds, 10.0);
        assert_eq!(status.model.lag_seconds, Some(8.0));
        assert_eq!(
            (status.model.revision_applied, status.model.revision_seen),
            (4, 5)
        );
        assert_eq!(status.hostname, "n1");
        let peers: Vec<_> = status
            .peers
            .iter()
            .map(|peer| (peer.hostname.as_str(), peer.ready, peer.resolved))
            .collect();
        assert_eq!(peers, [("n2", true, false), ("n3", false, true)]);
        assert_eq!(
            (status.counts.backends_active, status.counts.backends_draining),
            (2, 1)
        );
    }

    #[test]
    fn a_peers_answers_are_in_the_status() {
        let (mut view, _) = fixture::two_nodes();
        view.probes.peers.pop_first();
        let status = status(&view, view.started + Duration::from_secs(10));
        let probes: Vec<_> = status.peers.into_iter().map(|peer| peer.probes).collect();
        let silent = PeerProbes {
            state: ProbeState::Silent,
            round_trip_seconds: Some(0.003),
            silent_seconds: Some(6.0),
            answers_again: false,
        };
        assert_eq!(probes, [None, Some(silent)]);
    }

    #[test]
    fn a_path_that_carries_less_than_the_uplink_is_in_the_status() {
        let (mut view, _) = fixture::two_nodes();
        for (mtu, expected) in [(1500, Some(1400)), (1400, None)] {
            let mut desired = (*view.desired).clone();
            let uplink = HostInterface {
                index: 2,
                mac: None,
                mtu,
                has_vlans: false,
            };
            desired.uplinks.insert("eth0".to_owned(), uplink);
            view.desired = desired.into();
            let peers = status(&view, view.started).peers.into_iter();
            let path_mtus: Vec<_> = peers.map(|peer| peer.path_mtu).collect();
            assert_eq!(path_mtus, [None, expected]);
        }
    }

    #[test]
    fn a_node_that_no_peer_answers_says_so() {
        let (mut view, _) = fixture::two_nodes();
        assert_eq!(status(&view, view.started).errors, [""; 0]);
        for peer in view.probes.peers.values_mut() {
            peer.answers = Some(false);
        }
        let errors = status(&view, view.started).errors;
        assert!(errors[0].contains("may be cut off"), "{errors:?}");
    }

    #[test]
    fn every_problem_is_listed_with_its_component() {
        let (mut view, _) = fixture::two_nodes();
        view.docker_trouble = Some("connection refused".to_owned());
        view.source.trouble = Some("no manager answers".to_owned());
        view.datapath_errors = vec!["attach to eth0".to_owned()];
        view.metrics_trouble = Some("the port is taken".to_owned());
        let mut cluster = (*view.source.cluster).clone();
        let web = cluster.services.get_mut("web-id").unwrap();
        web.invalid_labels = vec!["label mesh.health=x of service web".to_owned()];
        view.source.cluster = cluster.into();
        view.without_hook = BTreeMap::from([(
            Ipv4Addr::new(192, 168, 0, 2),
            NoHook {
                interface: "wg0".to_owned(),
                reason: "no MAC address".to_owned(),
            },
        )]);
        view.probes.trouble = Some("the port is in use".to_owned());
        let status = status(&view, view.started);
        assert_eq!(
            status.errors,
            [
                "docker: connection refused",
                "source: no manager answers",
                "data path: attach to eth0",
                "network: no hook on wg0, which leads to n2: no MAC address; nothing is sent to them by the mesh, and \
                 this node announces no data path",
                "probes: the port is in use",
                "metrics: the port is taken",
                "labels: label mesh.health=x of service web"
            ]
        );
    }

    #[test]
    fn a_peer_whose_agent_is_gone_is_named_if_its_data_path_serves() {
        let (mut view, _) = fixture::two_nodes();
        let mut cluster = (*view.source.cluster).clone();
        let lost_since = view.started;
        for (id, node) in &mut cluster.nodes {
            // The third node is not ready, which says more.
            node.agent = AgentConnection::Lost;
            view.lost_agents.insert(id.clone(), lost_since);
        }
        view.source.cluster = cluster.clone().into();
        let now = lost_since + Duration::from_secs(12);
        let shown = status(&view, now);
        assert_eq!(shown.errors.len(), 1, "{:?}", shown.errors);
        assert!(
            shown.errors[0].starts_with("peers: agent of n2 not connected for 12 s"),
            "{:?}",
            shown.errors
        );
        assert_eq!(shown.peers[0].agent_lost_seconds, Some(12.0));
        cluster.nodes.get_mut("id2").unwrap().agent = AgentConnection::Unsteady;
        view.source.cluster = cluster.into();
        let errors = status(&view, now).errors;
        assert!(
            errors[0].contains("agent of n2 connects again and again"),
            "{errors:?}"
        );
    }

    #[test]
    fn drained_tasks_are_named_and_a_drained_node_by_its_own_name() {
        let (mut view, _) = fixture::two_nodes();
        assert_eq!(status(&view, view.started).drained, [""; 0]);
        view.drained.tasks = ["t1", "gone"].map(str::to_owned).into();
        assert_eq!(status(&view, view.started).drained, ["gone", "web.1"]);
        view.drained.node = true;
        assert_eq!(status(&view, view.started).drained, ["n1"]);
    }

    #[test]
    fn a_clock_set_back_gives_zero_not_a_panic() {
        let (view, _) = fixture::two_nodes();
        let status = status(&view, SystemTime::UNIX_EPOCH);
        assert_eq!(status.uptime_seconds, 0.0);
    }
}
