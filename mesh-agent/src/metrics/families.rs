//! Metric families from the agent's state and counters. Pure. Base units, no rates.

use std::time::SystemTime;

use prometheus::proto::MetricFamily;

use super::{
    ipv6, limits,
    samples::{Labels, counter, gauge, gauge_metric, sample, service_labels, with},
    signals::SignalFamilies,
};
use crate::{
    admin::{
        View,
        health::{self, failing_services},
        labels::ignored_labels,
        routes::backend_address,
        status::seconds_between,
    },
    datapath::{Counters, Traffic},
    model::{AgentConnection, BackendState},
};

/// Every family that has a sample; Prometheus' text format does not allow empty ones.
pub(super) fn families(
    view: &View,
    counters: &Counters,
    backend_series: bool,
    now: SystemTime,
) -> Vec<MetricFamily> {
    let mut families = services(view, counters);
    if backend_series {
        families.extend(backends(view, counters));
    }
    families.extend(replicas(view));
    families.extend(datapath(view, counters));
    families.extend(ipv6::families(view));
    families.extend(limits::families(view));
    families.extend(probes(view));
    families.extend(model(view, now));
    families.retain(|family| !family.get_metric().is_empty());
    families
}

/// The traffic families that services and backends have in common.
struct TrafficFamilies {
    connections_total: MetricFamily,
    connections_active: MetricFamily,
    packets: MetricFamily,
    bytes: MetricFamily,
    weight: MetricFamily,
}

impl TrafficFamilies {
    fn new(subject: &str) -> Self {
        let unseen = "In dsr mode this node does not see replies of backends on other nodes: direction=\"out\" then \
                      counts only those of its own backends.";
        let entered = "Counts only traffic that entered the mesh at this node.";
        Self {
            connections_total: counter(
                &format!("mesh_{subject}_connections_total"),
                &format!("Flows (TCP connections, UDP associations) sent to the {subject}. {entered}"),
            ),
            connections_active: gauge(
                &format!("mesh_{subject}_connections_active"),
                &format!(
                    "Open flows to the {subject}: TCP neither closed nor reset, UDP with a packet in the last 30 s. \
                     {entered} In dsr mode this node does not see when a backend on another node closes a flow."
                ),
            ),
            packets: counter(
                &format!("mesh_{subject}_packets_total"),
                &format!(
                    "Packets from clients to the {subject} (direction=\"in\") and back (\"out\"). {entered} {unseen}"
                ),
            ),
            bytes: counter(
                &format!("mesh_{subject}_bytes_total"),
                &format!(
                    "L3 bytes (with the IP header, without encapsulation and Ethernet header) from clients to the \
                     {subject} (direction=\"in\") and back (\"out\"). {entered} {unseen}"
                ),
            ),
            weight: gauge(
                &format!("mesh_{subject}_weight"),
                match subject {
                    "backend" => {
                        "Share of new flows relative to the service's other backends; 0 while draining."
                    }
                    _ => "Sum of the weights of the service's backends.",
                },
            ),
        }
    }

    fn add(&mut self, labels: &Labels, traffic: &Traffic, weight: u64) {
        sample(
            &mut self.connections_total,
            labels.clone(),
            traffic.connections_total,
        );
        sample(
            &mut self.connections_active,
            labels.clone(),
            traffic.connections_active,
        );
        let directions = [
            ("in", traffic.packets_in, traffic.bytes_in),
            ("out", traffic.packets_out, traffic.bytes_out),
        ];
        for (direction, packets, bytes) in directions {
            sample(&mut self.packets, with(labels, "direction", direction), packets);
            sample(&mut self.bytes, with(labels, "direction", direction), bytes);
        }
        sample(&mut self.weight, labels.clone(), weight);
    }

    fn into_families(self) -> [MetricFamily; 5] {
        [
            self.connections_total,
            self.connections_active,
            self.packets,
            self.bytes,
            self.weight,
        ]
    }
}

fn services(view: &View, counters: &Counters) -> Vec<MetricFamily> {
    let mut traffic = TrafficFamilies::new("service");
    let mut in_state = gauge(
        "mesh_service_backends",
        "Number of the service's backends, by state.",
    );
    for (key, service) in &view.desired.services {
        let labels = service_labels(*key, &service.name);
        let backends = || {
            let of_service = view.desired.backends.iter();
            of_service.filter(|(backend, _)| backend.service == *key)
        };
        let weight = backends().map(|(_, backend)| u64::from(backend.weight)).sum();
        let counted = counters.services.get(key).copied().unwrap_or_default();
        traffic.add(&labels, &counted, weight);
        for state in BackendState::ALL {
            let count = backends().filter(|(_, backend)| backend.state == state).count();
            sample(&mut in_state, with(&labels, "state", state.name()), count as u64);
        }
    }
    let mut all_failed = gauge(
        "mesh_service_all_checks_failed",
        "1 while every replica of the service that this node could choose fails its check, so that all are tried. \
         Absent for services without the label mesh.health.",
    );
    let failing = failing_services(view);
    for (key, service) in &view.desired.services {
        let listed = view.source.cluster.services.get(&service.id);
        if listed.is_some_and(|service| service.health.is_some()) {
            let labels = service_labels(*key, &service.name);
            sample(&mut all_failed, labels, u64::from(failing.contains(key)));
        }
    }
    let mut out_of_reach = gauge(
        "mesh_service_replicas_out_of_reach",
        "Replicas of the service that the mesh cannot reach, as no bridge of their node leads to their container. Absent \
         for services without such replicas.",
    );
    for (key, service, count) in health::out_of_reach(view) {
        let labels = service_labels(key, &service.name);
        sample(&mut out_of_reach, labels, count as u64);
    }
    let mut not_forwarding = gauge(
        "mesh_interfaces_not_forwarding",
        "Interfaces of clients, peers and containers on which the kernel does not forward IPv4: answers to clients are \
         lost.",
    );
    sample(&mut not_forwarding, Vec::new(), view.not_forwarding.len() as u64);
    let mut families = Vec::from(traffic.into_families());
    families.extend([in_state, all_failed, out_of_reach, not_forwarding]);
    families
}

/// How many replicas services should have and how many run, where the source knows it.
fn replicas(view: &View) -> [MetricFamily; 2] {
    let known = "Of all services, with or without published ports; exported by managers.";
    let mut wanted = gauge(
        "mesh_service_replicas_wanted",
        &format!(
            "Replicas that the service should have; of a global service or a job, the tasks that are meant to run. \
             {known}"
        ),
    );
    let mut running = gauge(
        "mesh_service_replicas_running",
        &format!(
            "Replicas of the service that are meant to run and do, healthy where there is a check. {known}"
        ),
    );
    for replicas in view.source.replicas.iter() {
        let labels = || vec![("service", replicas.service.clone())];
        sample(&mut wanted, labels(), replicas.wanted);
        sample(&mut running, labels(), replicas.running);
    }
    [wanted, running]
}

fn backends(view: &View, counters: &Counters) -> Vec<MetricFamily> {
    let mut traffic = TrafficFamilies::new("backend");
    let mut signals = SignalFamilies::new();
    let mut in_state = gauge(
        "mesh_backend_state",
        "1 for the state that the backend is in, 0 for the others.",
    );
    let mut info = gauge(
        "mesh_backend_info",
        "Always 1. Labels: the task of the backend, the host name of its node, and its slot (empty for a global \
         service).",
    );
    let mut unanswered = gauge(
        "mesh_backend_unanswered_opens",
        "TCP connections that the backend was asked to open on this node since it last answered one. From 3 on it is \
         passed over while others answer.",
    );
    let mut failed = gauge(
        "mesh_backend_check_failed",
        "1 while the replica fails the check that its service's label mesh.health asks for, as its node found. Absent \
         for services without the label.",
    );
    for (key, backend) in &view.desired.backends {
        let Some(service) = view.desired.services.get(&key.service) else {
            continue;
        };
        let mut labels = service_labels(key.service, &service.name);
        labels.push(("backend", backend_address(key, backend)));
        let counted = counters.backends.get(key).copied().unwrap_or_default();
        traffic.add(&labels, &counted, u64::from(backend.weight));
        if let Some(counted) = counters.signals.get(key) {
            signals.add(&labels, counted);
        }
        let asked = counters.unanswered.get(key).copied().unwrap_or(0);
        sample(&mut unanswered, labels.clone(), asked);
        let checked = view.source.cluster.services.get(&service.id);
        if checked.is_some_and(|service| service.health.is_some()) {
            let fails = view.checks().failure(&backend.task).is_some();
            sample(&mut failed, labels.clone(), u64::from(fails));
        }
        for state in BackendState::ALL {
            let value = u64::from(state == backend.state);
            sample(&mut in_state, with(&labels, "state", state.name()), value);
        }
        labels.push(("task", backend.task_name.clone()));
        labels.push(("node", backend.node_name.clone()));
        let slot = backend.slot.map(|slot| slot.to_string()).unwrap_or_default();
        labels.push(("slot", slot));
        sample(&mut info, labels, 1);
    }
    let mut families = Vec::from(traffic.into_families());
    families.extend(signals.into_families());
    families.extend([in_state, info, unanswered, failed]);
    families
}

fn datapath(view: &View, counters: &Counters) -> Vec<MetricFamily> {
    let mut drops = counter(
        "mesh_drops_total",
        "Packets that the mesh dropped, by hook and reason.",
    );
    for drop in &counters.drops {
        let labels = vec![("reason", drop.reason.clone()), ("hook", drop.hook.clone())];
        sample(&mut drops, labels, drop.packets);
    }
    let mut entries = gauge("mesh_map_entries", "Entries in use in a BPF map.");
    let mut capacity = gauge("mesh_map_max_entries", "Capacity of a BPF map in entries.");
    for usage in &counters.maps {
        let labels = vec![("map", usage.map.clone())];
        sample(&mut entries, labels.clone(), usage.entries);
        sample(&mut capacity, labels, usage.max_entries);
    }
    let mut evictions = counter(
        "mesh_flow_evictions_total",
        "Flows that had to make room for others. Of open ones, this breaks connections: raise --flow-capacity. Of \
         half-open ones, someone asks for more connections than are answered.",
    );
    for (state, flows) in [
        ("open", counters.flow_evictions),
        ("half_open", counters.half_open_evictions),
    ] {
        sample(&mut evictions, vec![("state", state.to_owned())], flows);
    }
    let mut not_opened = counter(
        "mesh_flows_not_opened_total",
        "Packets of connections that found no room in the full table of open flows, and go on in that of half-open \
         ones, where new connections may push them out: raise --flow-capacity.",
    );
    sample(&mut not_opened, Vec::new(), counters.flows_not_opened);
    let mut unknown = counter(
        "mesh_unknown_flow_packets_total",
        "TCP packets in mid-connection to published ports whose connection this node does not know. They are left \
         to the kernel, which refuses them unless the connection is older than the mesh.",
    );
    sample(&mut unknown, Vec::new(), counters.unknown_flows);
    let mut adopted = counter(
        "mesh_flows_adopted_total",
        "Connections that this node did not know and went on with, as their service is balanced by a hash (mh, sh): \
         an address that has moved here brings them along.",
    );
    sample(&mut adopted, Vec::new(), counters.flows_adopted);
    let mut others = counter(
        "mesh_frames_for_other_machines_total",
        "Frames from the network that would have opened a connection to a published port, but have the MAC address \
         of another machine, as on a bridge, or while a switch sends them to every port. Left to the kernel.",
    );
    sample(&mut others, Vec::new(), counters.frames_for_others);
    let mut suppressed = counter(
        "mesh_answers_suppressed_total",
        "RST and ICMP errors that the mesh did not send, as it had sent thousands in that second.",
    );
    sample(&mut suppressed, Vec::new(), counters.answers_suppressed);
    let mut untracked = counter(
        "mesh_untracked_packets_total",
        "Packets of new connections that were forwarded without flow entries, because their service had more of \
         them in that second than --flood-limit or its label mesh.flood-limit.",
    );
    sample(&mut untracked, Vec::new(), counters.untracked_packets);
    let mut sent_back = counter(
        "mesh_packets_sent_back_total",
        "Packets of other nodes for backends that this node could not deliver to (mesh_drops_total says why), and \
         sent back. Those nodes do not know yet what runs here.",
    );
    sample(&mut sent_back, Vec::new(), counters.packets_sent_back);
    let mut moved = counter(
        "mesh_flows_moved_total",
        "New flows that got another backend, because the first one's node could not deliver to it and sent their \
         packet back.",
    );
    sample(&mut moved, Vec::new(), counters.flows_moved);
    let mut modes = gauge(
        "mesh_datapath_mode",
        "Always 1. Labels: the mode of an interface (xdp-native, xdp-generic, tc or ipvs; none where packets arrive \
         unseen), and why not a faster one.",
    );
    for mode in &view.modes {
        let labels = vec![
            ("interface", mode.interface.clone()),
            ("mode", mode.mode.name().to_owned()),
            ("reason", mode.reason.clone()),
        ];
        sample(&mut modes, labels, 1);
    }
    let status = &view.datapath_status;
    let mut info = gauge(
        "mesh_datapath_info",
        "Always 1. Labels: the data path of this node (ebpf or ipvs), its rung (xdp-native-tcx, \
         xdp-native-clsact, xdp-generic, tc or ipvs), and why not a better one.",
    );
    let labels = vec![
        ("datapath", status.kind.name().to_owned()),
        ("rung", status.rung_name().to_owned()),
        ("reason", status.reason.clone()),
    ];
    sample(&mut info, labels, 1);
    let mut steps = counter(
        "mesh_datapath_steps_down_total",
        "How often a refusal led to a worse rung of the data path. `meshctl datapath retry` tries the better ones \
         again.",
    );
    sample(&mut steps, Vec::new(), status.steps_down);
    let mut refused = gauge(
        "mesh_service_refused",
        "1 while the service is left to Docker's own mesh on this node: the kernel refuses it (a full table, for \
         instance), or it publishes a port that the mesh, Swarm or the orchestrator needs. `meshctl status` has the \
         reason.",
    );
    for (key, service) in &view.desired.services {
        let is_refused = view.refused_services.contains_key(key) || view.desired.left.contains_key(key);
        sample(
            &mut refused,
            service_labels(*key, &service.name),
            u64::from(is_refused),
        );
    }
    let mut occupied = gauge(
        "mesh_published_port_in_use",
        "1 while a process or another container of this node serves the port that the service publishes as well: \
         clients of this node reach the service, not that one.",
    );
    for port in &view.occupied_ports {
        let name = view
            .desired
            .services
            .get(&port.service)
            .map(|service| service.name.as_str());
        let mut labels = service_labels(port.service, name.unwrap_or_default());
        labels.push(("owner", port.owner.clone()));
        sample(&mut occupied, labels, 1);
    }
    let mut inexpressible = gauge(
        "mesh_service_inexpressible_rule",
        "1 while the service is left to Docker's own mesh on this node, because the mesh cannot express a rule of \
         the host's firewall (DOCKER-USER) or, on IPVS, a label on who may come in. `meshctl status` has which.",
    );
    for (key, service) in &view.desired.services {
        let is_left = view.desired.inexpressible.contains_key(key);
        sample(
            &mut inexpressible,
            service_labels(*key, &service.name),
            u64::from(is_left),
        );
    }
    vec![
        drops,
        entries,
        capacity,
        evictions,
        not_opened,
        unknown,
        adopted,
        others,
        suppressed,
        untracked,
        sent_back,
        moved,
        modes,
        info,
        steps,
        refused,
        occupied,
        inexpressible,
    ]
}

fn probes(view: &View) -> Vec<MetricFamily> {
    let mut silent = gauge(
        "mesh_peer_silent",
        "1 while the peer's data path no longer answers this node's probes: new connections go to other nodes where \
         they can. Absent for peers that have not answered since the agent started.",
    );
    let mut round_trip = gauge(
        "mesh_peer_round_trip_seconds",
        "Smoothed round-trip time of this node's probes of the peer's data path.",
    );
    let mut path_mtu = gauge(
        "mesh_peer_path_mtu_bytes",
        "Largest packet that this node's probes have found to reach the peer, from the outer IP header on.",
    );
    for node in view.source.cluster.nodes.values() {
        let Some(peer) = view.probes.peers.get(&node.address) else {
            continue;
        };
        let labels = vec![("peer", node.hostname.clone())];
        if let Some(answers) = peer.answers {
            sample(&mut silent, labels.clone(), u64::from(!answers));
        }
        if let Some(bytes) = peer.path_mtu {
            sample(&mut path_mtu, labels.clone(), u64::from(bytes));
        }
        if let Some(time) = peer.round_trip {
            round_trip
                .mut_metric()
                .push(gauge_metric(labels, time.as_secs_f64()));
        }
    }
    let mut agents = gauge(
        "mesh_peer_agent_connected",
        "1 if the agent of the peer is connected to the manager that this node follows, 0 if it has not been for some \
         seconds. Absent while that is not known.",
    );
    for (id, node) in &view.source.cluster.nodes {
        let connected = match node.agent {
            AgentConnection::Connected | AgentConnection::Unsteady => 1,
            AgentConnection::Lost => 0,
            AgentConnection::Unknown => continue,
        };
        if *id != view.node {
            sample(&mut agents, vec![("peer", node.hostname.clone())], connected);
        }
    }
    vec![silent, round_trip, path_mtu, agents]
}

fn model(view: &View, now: SystemTime) -> Vec<MetricFamily> {
    let mut revision = gauge(
        "mesh_model_revision",
        "Revision of the cluster's snapshot that is in force in this node's data path. The manager that the snapshot \
         comes from counts it up.",
    );
    sample(&mut revision, Vec::new(), view.applied_revision);
    let mut age = gauge(
        "mesh_model_age_seconds",
        "Seconds since the cluster's snapshot was last confirmed to be current.",
    );
    if let Some(confirmed) = view.source.confirmed {
        age.mut_metric()
            .push(gauge_metric(Vec::new(), seconds_between(confirmed, now)));
    }
    let mut peers = gauge("mesh_peers", "Number of other nodes in the cluster.");
    sample(&mut peers, Vec::new(), view.desired.peers.len() as u64);
    let mut invalid = gauge(
        "mesh_invalid_labels",
        "Number of the mesh's labels on services and nodes that have an invalid value, or that this node's data path \
         does not apply; `meshctl status` lists them.",
    );
    sample(&mut invalid, Vec::new(), ignored_labels(view).len() as u64);
    let mut build = gauge("mesh_build_info", "Always 1. Label: the version of the agent.");
    sample(
        &mut build,
        vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
        1,
    );
    vec![revision, age, peers, invalid, build]
}
