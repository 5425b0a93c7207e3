//! The agent's parts: listeners, watchers and the source. Each is a task of its own, connected to the agent's
//! loop by channels.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    AgentError,
    introspect::Introspection,
    membership::{self, EngineReport},
    out_of_reach,
    preflight::find_cgroup,
    sources::{self, Channels, Source, SourceHints},
    supervisor::Supervisor,
};
use crate::{
    admin::{AdminServer, Introspect, control},
    config::{MetricsListen, RunOptions},
    discovery::{
        ContainerState, ContainerWatcher, NetworkState, Scheduler,
        host_firewall::{ipv6::watch_ipv6_rules, watch_host_firewall},
        network::{Interest, NetworkOptions, watch_network},
        ports,
    },
    docker::Docker,
    doctor, health,
    metrics::{self, Metrics},
    model::{Drained, FailedChecks, Ipv6Rules, KeyId, NodeDatapath, OccupiedPort, PortPolicies, ServiceKey},
    probes::{self, ProbeReport},
    source::{Acknowledged, FeedServerStatus, HintHandle, Relay, RelayedRequest, SourceState},
};

/// The loop's ends of the parts' channels.
pub(super) struct Parts {
    pub(super) engine: watch::Receiver<EngineReport>,
    pub(super) source: watch::Receiver<SourceState>,
    pub(super) workers: watch::Receiver<FeedServerStatus>,
    pub(super) containers: watch::Receiver<ContainerState>,
    pub(super) network: watch::Receiver<Option<NetworkState>>,
    pub(super) host_firewall: watch::Receiver<Option<Arc<PortPolicies>>>,
    pub(super) ipv6_rules: watch::Receiver<Option<Ipv6Rules>>,
    pub(super) interest: watch::Sender<Interest>,
    pub(super) probes: watch::Receiver<ProbeReport>,
    pub(super) probe_targets: watch::Sender<Option<probes::Targets>>,
    pub(super) failed: watch::Receiver<FailedChecks>,
    pub(super) check_targets: watch::Sender<health::Targets>,
    pub(super) occupied_ports: watch::Receiver<Vec<OccupiedPort>>,
    pub(super) published_ports: watch::Sender<BTreeSet<ServiceKey>>,
    pub(super) hints: SourceHints,
    pub(super) engine_hint: HintHandle,
    pub(super) commands: mpsc::Receiver<control::Command>,
}

/// The ends of channels whose others the listeners have.
pub(super) struct ListenerChannels {
    pub(super) commands: mpsc::Receiver<control::Command>,
    pub(super) probes: watch::Sender<ProbeReport>,
}

/// The source's ends of the channels that exist before it is spawned.
pub(super) struct SourceChannels {
    pub(super) state: watch::Sender<SourceState>,
    pub(super) announcement: watch::Receiver<NodeDatapath>,
    pub(super) keys: watch::Receiver<Vec<KeyId>>,
    pub(super) drained: watch::Receiver<Drained>,
    pub(super) relay: Relay,
    pub(super) relayed: mpsc::Sender<RelayedRequest>,
    pub(super) acknowledged: watch::Sender<Acknowledged>,
    pub(super) is_up: watch::Receiver<bool>,
}

impl Parts {
    /// Spawns every part but the listeners.
    ///
    /// # Errors
    /// When the node's network cannot be followed.
    pub(super) fn spawn(
        options: &RunOptions,
        docker: &Docker,
        source: Box<dyn Source>,
        channels: SourceChannels,
        listeners: ListenerChannels,
        supervisor: &mut Supervisor,
        shutdown: &CancellationToken,
    ) -> Result<Self, AgentError> {
        let (interest, interest_receiver) = watch::channel(Interest::default());
        let network_options = NetworkOptions {
            uplinks: options.uplinks.clone(),
            service_address: options.service_address,
        };
        let (watcher, network) = watch_network(network_options, interest_receiver)?;
        supervisor.spawn_fallible("network watcher", watcher.run());

        let (watcher, host_firewall) = watch_host_firewall(network.clone());
        supervisor.spawn("host firewall watcher", watcher.run(shutdown.clone()));

        let (watcher, ipv6_rules) = watch_ipv6_rules();
        supervisor.spawn("IPv6 rules watcher", watcher.run(shutdown.clone()));

        let (probe_targets, targets) = watch::channel(None);
        let probes = listeners.probes.subscribe();
        supervisor.spawn(
            "prober",
            probes::probe(targets, listeners.probes, shutdown.clone()),
        );

        let (check_targets, targets) = watch::channel(health::Targets::new());
        let (failed_sender, failed) = watch::channel(FailedChecks::default());
        let (checked_sender, checked) = watch::channel(FailedChecks::default());
        let checks = health::check(targets, checked_sender, shutdown.clone());
        supervisor.spawn("health checks", checks);

        let (engine_sender, engine) = watch::channel(EngineReport::new(source.member()));
        let engine_hint = HintHandle::new();
        let follow = membership::follow(
            docker.clone(),
            engine_sender,
            engine_hint.clone(),
            shutdown.clone(),
        );
        supervisor.spawn("engine watcher", follow);

        let (published_ports, published) = watch::channel(BTreeSet::new());
        let (occupied_sender, occupied_ports) = watch::channel(Vec::new());
        let observer = ports::PortObserver::new(docker.clone(), find_cgroup(options).ok());
        supervisor.spawn(
            "port observer",
            observer.run(published, occupied_sender, shutdown.clone()),
        );

        let hints = SourceHints::default();
        let on_event = {
            let hints = hints.clone();
            move || hints.hint()
        };
        let (watcher, containers) =
            ContainerWatcher::new(docker.clone(), source.scheduler(), network.clone(), on_event);
        supervisor.spawn("container watcher", watcher.run(shutdown.clone()));
        supervisor.spawn(
            "replicas out of rotation",
            out_of_reach::combine(checked, containers.clone(), failed_sender, shutdown.clone()),
        );

        let snapshots = channels.state.subscribe();
        let (workers_sender, workers) = watch::channel(FeedServerStatus::default());
        let channels = Channels {
            state: channels.state,
            announcement: channels.announcement,
            keys: channels.keys,
            drained: channels.drained,
            failed: failed.clone(),
            relay: channels.relay,
            relayed: channels.relayed,
            acknowledged: channels.acknowledged,
            is_up: channels.is_up,
            engine: engine.clone(),
            containers: containers.clone(),
            workers: workers_sender,
            hints: hints.clone(),
        };
        supervisor.spawn_source(source.run(channels, shutdown.clone()));
        Ok(Self {
            engine,
            source: snapshots,
            workers,
            containers,
            network,
            host_firewall,
            ipv6_rules,
            interest,
            probes,
            probe_targets,
            failed,
            check_targets,
            occupied_ports,
            published_ports,
            hints,
            engine_hint,
            commands: listeners.commands,
        })
    }
}

/// The bound admin socket, and where metrics are to be served.
pub(super) struct Listeners {
    admin: AdminServer,
    metrics: MetricsListen,
    introspection: Arc<Introspection>,
}

/// What the doctor examines for this agent.
pub(super) fn doctor_options(options: &RunOptions, scheduler: Scheduler) -> doctor::Options {
    doctor::Options {
        docker_socket: options.docker_socket.clone(),
        docker_root: options.docker_root.clone(),
        bpffs: options.bpffs.clone(),
        // The doctor reports a missing one.
        cgroup: find_cgroup(options).ok().or_else(|| options.cgroup.clone()),
        orchestrator: scheduler == Scheduler::Orchestrator,
        feed_port: options.feed_port,
        geneve_port: options.geneve_port,
        worker: sources::worker_checks(options),
    }
}

impl Listeners {
    /// Binds the admin socket, whose commands come by the returned receiver. The metrics' port is bound
    /// later: one that is taken does not keep the agent from working.
    ///
    /// # Errors
    /// When the socket is taken.
    pub(super) async fn bind(
        options: &RunOptions,
        introspection: Arc<Introspection>,
        source: &dyn Source,
        relay: Relay,
    ) -> Result<(Self, mpsc::Receiver<control::Command>), AgentError> {
        let doctor = doctor_options(options, source.scheduler());
        let agent: Arc<dyn Introspect> = introspection.clone();
        let (control, commands) = control::channel();
        let admin = AdminServer::bind(&options.admin_socket, agent, control, relay, doctor).await?;
        let listeners = Self {
            admin: admin.with(source.routes()),
            metrics: options.metrics_listen,
            introspection,
        };
        Ok((listeners, commands))
    }

    pub(super) fn log_addresses(&self, options: &RunOptions) {
        let metrics = match self.metrics {
            MetricsListen::At(address) => Some(address),
            MetricsListen::Off => None,
        };
        info!(
            admin_socket = %options.admin_socket.display(),
            metrics = metrics.map(tracing::field::display),
            "listening"
        );
    }

    /// `asked` brings what managers ask of this node.
    pub(super) fn spawn(
        self,
        metrics: Metrics,
        asked: mpsc::Receiver<RelayedRequest>,
        supervisor: &mut Supervisor,
        shutdown: &CancellationToken,
    ) {
        let relayed = self.admin.relayed();
        supervisor.spawn("admin socket", self.admin.run(shutdown.clone()));
        supervisor.spawn("relayed requests", relayed.serve(asked, shutdown.clone()));
        if let MetricsListen::At(address) = self.metrics {
            let trouble = self.introspection.metrics_trouble();
            supervisor.spawn(
                "metrics",
                metrics::serve(address, self.introspection, metrics, trouble, shutdown.clone()),
            );
        }
    }
}
