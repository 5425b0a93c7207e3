//! A read-only view of the running agent: its state, and the counters on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    datapath::{
        Counters, DatapathError, DatapathStatus, InterfaceMode,
        dump::Dump,
        explain::{Explanation, Question},
        flow_list::{FirstFlows, FlowFilter},
        limited::LimitedServices,
        mapped::MappedClient,
        monitor::Observations,
    },
    model::{
        Checks, Desired, Drained, FailedChecks, NoHook, NodeDatapath, NodeId, NodePolicy, NodeRole,
        OccupiedPort, ReturnMode, ServiceKey,
    },
    probes::ProbeReport,
    source::SourceState,
};

/// One consistent copy of the agent's state, replaced as a whole whenever something changes.
#[derive(Clone, Debug)]
pub struct View {
    /// This node's id; empty until Docker answers.
    pub node: String,
    /// This node's role; `None` until Docker answers, and outside any Swarm.
    pub role: Option<NodeRole>,
    /// The source's latest state.
    pub source: SourceState,
    /// The desired data path.
    pub desired: Arc<Desired>,
    /// The revision of the snapshot that `desired` was computed from.
    pub applied_revision: u64,
    /// The node's data path, and why it is not on a better rung.
    pub datapath_status: DatapathStatus,
    /// The announced state of the node's data path.
    pub datapath: NodeDatapath,
    /// The data path of each interface.
    pub modes: Vec<InterfaceMode>,
    /// The peers to which nothing is sent, because there is no hook on the way to them.
    pub without_hook: BTreeMap<Ipv4Addr, NoHook>,
    /// The interfaces on which the kernel does not forward IPv4.
    pub not_forwarding: BTreeSet<String>,
    /// Changes that the kernel refused, one line each; they are tried again.
    pub datapath_errors: Vec<String>,
    /// Services that the kernel refuses, and why: this node does not answer for them.
    pub refused_services: BTreeMap<ServiceKey, String>,
    /// What the limits of new connections do.
    pub limited: LimitedServices,
    /// The published ports that something else of this node serves as well.
    pub occupied_ports: Vec<OccupiedPort>,
    /// Which peers' data paths answer this node.
    pub probes: ProbeReport,
    /// The replicas that an operator drains on this node.
    pub drained: Drained,
    /// The replicas on this node that fail their check.
    pub failed: FailedChecks,
    /// Since when the managers report that these nodes' agents are not connected.
    pub lost_agents: BTreeMap<NodeId, SystemTime>,
    /// The node's own policy on who may come in to published ports.
    pub policy: Arc<NodePolicy>,
    /// Why IPv6 is not served at this node's addresses; `None` if it is.
    pub ipv6_left: Option<String>,
    /// How replies of remote backends travel.
    pub return_mode: ReturnMode,
    /// The local engine's current problem; `None` while it answers.
    pub docker_trouble: Option<String>,
    /// Why the metrics are not served; `None` while they are, or are off.
    pub metrics_trouble: Option<String>,
    /// What the agent is waiting for before its data path is up for the first time; `None` from then on.
    pub not_ready: Option<String>,
    /// Why the agent is ready without a snapshot of the cluster, if it is.
    pub ready_without_snapshot: Option<String>,
    /// When the agent started.
    pub started: SystemTime,
}

impl View {
    /// That of an agent that is starting, and knows nothing yet.
    #[must_use]
    pub fn starting(return_mode: ReturnMode) -> Self {
        Self {
            node: String::new(),
            role: None,
            source: SourceState::default(),
            desired: Arc::default(),
            applied_revision: 0,
            datapath: NodeDatapath::Unknown,
            datapath_status: Default::default(),
            modes: Vec::new(),
            without_hook: Default::default(),
            not_forwarding: Default::default(),
            datapath_errors: Vec::new(),
            refused_services: Default::default(),
            limited: Default::default(),
            occupied_ports: Vec::new(),
            probes: ProbeReport::default(),
            drained: Default::default(),
            failed: Default::default(),
            lost_agents: Default::default(),
            policy: Arc::default(),
            ipv6_left: None,
            return_mode,
            docker_trouble: None,
            metrics_trouble: None,
            not_ready: Some("the agent is starting".to_owned()),
            ready_without_snapshot: None,
            started: SystemTime::now(),
        }
    }

    /// This node's host name; empty until the cluster is known.
    #[must_use]
    pub fn hostname(&self) -> String {
        let own = self.source.cluster.nodes.get(&self.node);
        own.map(|node| node.hostname.clone()).unwrap_or_default()
    }

    /// The checks of all replicas, as this node knows them.
    #[must_use]
    pub fn checks(&self) -> Checks<'_> {
        Checks {
            cluster: &self.source.cluster,
            own: &self.node,
            failed: &self.failed,
        }
    }
}

/// Read access to the agent for the admin API and the metrics.
pub trait Introspect: Send + Sync {
    /// The current view.
    fn view(&self) -> Arc<View>;

    /// Reads the traffic counters from the kernel.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    fn counters(&self) -> Result<Counters, DatapathError>;

    /// Reads the data path's tables from the kernel, with at most `flows` entries of the flow table.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn dump(&self, flows: usize) -> Result<Dump, DatapathError>;

    /// Reads the flows that a filter admits, at most `limit` of them, and counts the others.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn flows(&self, filter: &FlowFilter, limit: usize) -> Result<FirstFlows, DatapathError>;

    /// What the data path would do with a packet, and why.
    ///
    /// # Errors
    /// When it cannot know, or the kernel refuses to read a table.
    fn explain(&self, question: &Question) -> Result<Explanation, DatapathError>;

    /// What became of single packets since an earlier question.
    ///
    /// # Errors
    /// When the data path does not report it, or the kernel refuses to read or write a map.
    fn observe(&self, since: Option<u64>) -> Result<Observations, DatapathError>;

    /// The IPv6 clients that replicas see by an IPv4 address: that with an address, or all.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn mapped_clients(&self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError>;
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A small cluster as its first node sees it, for tests of everything that reads a [`View`].

    use std::{net::SocketAddr, time::Duration};

    use super::*;
    use crate::{
        datapath::{
            AnswerTimes, Datapath as _, DropCount, MapUsage, Mode, Rung, Signals, Traffic,
            flow_list::{FlowState, Ingress, ListedFlow},
            memory::MemoryDatapath,
        },
        model::{
            Balance, Cluster, Container, Local, MacAddress, NextHop, Node, Protocol, PublishedPort, Replicas,
            Service, Task, TaskState, desired::desired,
        },
        probes::PeerLiveness,
    };

    /// `web` (tcp 9200) with a local, a remote, a draining and an unreachable replica; `dns` (udp 53)
    /// with none.
    pub(crate) fn two_nodes() -> (View, Counters) {
        with_peer_of_kind(NodeDatapath::Ebpf)
    }

    /// The same, where the first node's ready peer balances with something else.
    pub(crate) fn with_peer_of_kind(datapath: NodeDatapath) -> (View, Counters) {
        let node = |hostname: &str, last, role, ready| Node {
            ready,
            datapath: if last == 2 { datapath } else { NodeDatapath::Ebpf },
            ..Node::new(hostname.to_owned(), Ipv4Addr::new(192, 168, 0, last), role)
        };
        let service = |name: &str, protocol, published, target| Service {
            name: name.to_owned(),
            ports: vec![PublishedPort {
                protocol,
                published,
                target,
            }],
            balance: Balance::default(),
            health: None,
            clients: crate::model::Clients::default(),
            idle: crate::model::IdleLimits::default(),
            publish_on: crate::model::PublishOn::default(),
            limits: crate::model::Limits::default(),
            weights: crate::model::Weights::default(),
            drain_timeout: None,
            invalid_labels: Vec::new(),
        };
        let task = |slot, node: &str, last, state| Task {
            service: "web-id".to_owned(),
            name: format!("web.{slot}"),
            slot: Some(slot),
            node: node.to_owned(),
            address: Ipv4Addr::new(10, 0, 0, last),
            state,
        };
        let cluster = Cluster {
            cluster_id: "cluster".to_owned(),
            data_path_port: None,
            nodes: BTreeMap::from([
                ("id1".to_owned(), node("n1", 1, NodeRole::Manager, true)),
                ("id2".to_owned(), node("n2", 2, NodeRole::Worker, true)),
                ("id3".to_owned(), node("n3", 3, NodeRole::Worker, false)),
            ]),
            services: BTreeMap::from([
                ("web-id".to_owned(), service("web", Protocol::Tcp, 9200, 80)),
                ("dns-id".to_owned(), service("dns", Protocol::Udp, 53, 5353)),
            ]),
            tasks: BTreeMap::from([
                ("t1".to_owned(), task(1, "id1", 5, TaskState::Active)),
                ("t2".to_owned(), task(2, "id2", 6, TaskState::Active)),
                ("t3".to_owned(), task(3, "id2", 7, TaskState::Draining)),
                ("t4".to_owned(), task(10, "id3", 8, TaskState::Active)),
            ]),
        };
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let local = Local {
            node: "id1".to_owned(),
            datapath: NodeDatapath::Ebpf,
            addresses: BTreeSet::from([Ipv4Addr::new(192, 168, 0, 1)]),
            ipv6_addresses: BTreeSet::from(["2001:db8::1".parse().unwrap()]),
            containers: BTreeMap::from([(
                "t1".to_owned(),
                Container {
                    ingress_address: Ipv4Addr::new(10, 0, 0, 5),
                    address: Ipv4Addr::new(172, 18, 0, 3),
                    mac,
                    host_interface: 9,
                    gateway_mac: mac,
                },
            )]),
            next_hops: BTreeMap::from([(
                Ipv4Addr::new(192, 168, 0, 3),
                NextHop {
                    interface: 2,
                    source_mac: mac,
                    destination_mac: mac,
                    mtu: Some(1400),
                },
            )]),
            ..Local::default()
        };
        let desired = desired(&cluster, &local, Ipv4Addr::new(169, 254, 96, 1));
        let traffic = Traffic {
            connections_total: 7,
            connections_active: 2,
            packets_in: 40,
            packets_out: 30,
            bytes_in: 4_000,
            bytes_out: 300_000,
        };
        let signals = Signals {
            refused: 2,
            unanswered: 1,
            syns_retransmitted: 3,
            reset_by_clients: 4,
            reset_by_backend: 5,
            answers: AnswerTimes {
                sum: 2_000_900_000,
                counts: vec![0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            },
        };
        let tcp = desired
            .backends
            .keys()
            .filter(|key| key.service.protocol == Protocol::Tcp);
        let counters = Counters {
            backends: desired.backends.keys().map(|key| (*key, traffic)).collect(),
            services: desired.services.keys().map(|key| (*key, traffic)).collect(),
            drops: vec![DropCount {
                hook: "xdp".to_owned(),
                reason: "unknown_peer".to_owned(),
                packets: 3,
            }],
            maps: vec![MapUsage {
                map: "flows".to_owned(),
                entries: 14,
                max_entries: 262_144,
            }],
            flow_evictions: 0,
            half_open_evictions: 9,
            flows_not_opened: 3,
            unknown_flows: 11,
            flows_adopted: 12,
            frames_for_others: 19,
            answers_suppressed: 13,
            untracked_packets: 17,
            unanswered: BTreeMap::new(),
            signals: tcp.map(|key| (*key, signals.clone())).collect(),
            open: BTreeMap::new(),
            packets_sent_back: 5,
            flows_moved: 6,
        };
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let view = View {
            node: "id1".to_owned(),
            role: Some(NodeRole::Manager),
            source: SourceState {
                cluster: Arc::new(cluster),
                revision: 5,
                epoch: 0,
                confirmed: Some(started + Duration::from_secs(2)),
                changed: Some(started),
                replicas: Arc::new(vec![Replicas {
                    service: "worker".to_owned(),
                    wanted: 3,
                    running: 2,
                }]),
                key: None,
                origin: "this manager's engine".to_owned(),
                trouble: None,
                no_manager: false,
            },
            desired: Arc::new(desired),
            applied_revision: 4,
            datapath_status: DatapathStatus {
                rung: Some(Rung::Tc),
                reason: "eth0: XDP is off".to_owned(),
                steps_down: 2,
                ..DatapathStatus::default()
            },
            datapath: NodeDatapath::Ebpf,
            modes: vec![InterfaceMode {
                interface: "eth0".to_owned(),
                mode: Mode::Tc,
                reason: "veth: \"generic\" XDP is off\\ here".to_owned(),
            }],
            without_hook: BTreeMap::new(),
            not_forwarding: Default::default(),
            datapath_errors: Vec::new(),
            refused_services: BTreeMap::new(),
            limited: LimitedServices::new(),
            occupied_ports: Vec::new(),
            probes: probes(started),
            drained: Drained::default(),
            failed: FailedChecks::default(),
            lost_agents: Default::default(),
            policy: Arc::default(),
            ipv6_left: None,
            return_mode: ReturnMode::Tunnel,
            docker_trouble: None,
            metrics_trouble: None,
            not_ready: None,
            ready_without_snapshot: None,
            started,
        };
        (view, counters)
    }

    /// The second node answers; the third has been silent for a while.
    fn probes(now: SystemTime) -> ProbeReport {
        let peer = |last, answers, milliseconds, silent_since| {
            let liveness = PeerLiveness {
                answers: Some(answers),
                round_trip: Some(Duration::from_millis(milliseconds)),
                silent_since,
                lost: false,
                path_mtu: answers.then_some(1400),
                answers_again: false,
            };
            (Ipv4Addr::new(192, 168, 0, last), liveness)
        };
        ProbeReport {
            peers: BTreeMap::from([
                peer(2, true, 2, None),
                peer(3, false, 3, Some(now + Duration::from_secs(4))),
            ]),
            trouble: None,
        }
    }

    /// An agent whose view never changes.
    pub(crate) struct Still(pub(crate) Arc<View>, pub(crate) Counters);

    impl Introspect for Still {
        fn view(&self) -> Arc<View> {
            Arc::clone(&self.0)
        }

        fn counters(&self) -> Result<Counters, DatapathError> {
            Ok(self.1.clone())
        }

        fn dump(&self, flows: usize) -> Result<Dump, DatapathError> {
            let state = Desired::clone(&self.0.desired);
            MemoryDatapath { state }.dump(flows)
        }

        fn explain(&self, question: &Question) -> Result<Explanation, DatapathError> {
            let state = Desired::clone(&self.0.desired);
            MemoryDatapath { state }.explain(question)
        }

        fn observe(&self, since: Option<u64>) -> Result<Observations, DatapathError> {
            let state = Desired::clone(&self.0.desired);
            MemoryDatapath { state }.observe(since)
        }

        fn mapped_clients(&self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
            let client = |last| MappedClient {
                address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into(),
                mapped: [248, 1, 2, last as u8].into(),
                interface: "eth0".to_owned(),
            };
            let clients = [9, 5, 7].map(client).into_iter();
            Ok(clients
                .filter(|client| of.is_none_or(|address| client.is(address)))
                .collect())
        }

        fn flows(&self, filter: &FlowFilter, limit: usize) -> Result<FirstFlows, DatapathError> {
            let mut first = FirstFlows::new(limit);
            flows(&self.0)
                .into_iter()
                .filter(|flow| filter.admits(flow))
                .for_each(|flow| first.add(flow));
            Ok(first)
        }
    }

    /// One flow to each backend, from clients 192.0.2.1 and so on, and one to a backend that is gone.
    fn flows(view: &View) -> Vec<ListedFlow> {
        let flow = |last, backend| ListedFlow {
            protocol: Protocol::Tcp,
            client: SocketAddr::from(([192, 0, 2, last], 40_000)),
            frontend: SocketAddr::from(([192, 168, 0, 1], 9200)),
            presented: None,
            backend,
            state: FlowState::Open,
            idle_seconds: Some(last.into()),
            ingress: Ingress::Network,
        };
        let backends = view.desired.backends.keys();
        let gone = ListedFlow {
            state: FlowState::HalfOpen,
            ingress: Ingress::Node(Ipv4Addr::new(192, 168, 0, 2)),
            ..flow(99, None)
        };
        (1..)
            .zip(backends)
            .map(|(last, key)| flow(last, Some(*key)))
            .chain([gone])
            .collect()
    }

    /// The fixture as an agent.
    pub(crate) fn still() -> Arc<dyn Introspect> {
        let (view, counters) = two_nodes();
        Arc::new(Still(Arc::new(view), counters))
    }
}
