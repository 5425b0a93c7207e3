//! The agent's parts and how they are put together: windows, watchers and sources, each a task of its
//! own that speaks to the loop through a channel.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AgentError,
    introspect::Introspection,
    membership::{self, EngineReport, Member},
    preflight::find_cgroup,
    sources::{SourceHints, Sources},
    supervisor::Supervisor,
};
use crate::{
    admin::{AdminServer, Introspect, control},
    config::{MetricsListen, RunOptions},
    discovery::{
        ContainerState, ContainerWatcher, NetworkState, Scheduler,
        network::{Interest, NetworkOptions, watch_network},
    },
    docker::Docker,
    doctor,
    metrics::{Metrics, MetricsServer},
    model::NodeDatapath,
    orchestrator,
    source::{Acknowledged, FeedServerStatus, HintHandle, SourceState},
};

/// The ends of the parts' channels that the loop holds.
pub(super) struct Parts {
    pub(super) engine: watch::Receiver<EngineReport>,
    pub(super) source: watch::Receiver<SourceState>,
    pub(super) workers: watch::Receiver<FeedServerStatus>,
    pub(super) containers: watch::Receiver<ContainerState>,
    pub(super) network: watch::Receiver<Option<NetworkState>>,
    pub(super) interest: watch::Sender<Interest>,
    pub(super) hints: SourceHints,
    pub(super) ask_docker: HintHandle,
    pub(super) commands: mpsc::Receiver<control::Command>,
}

/// The ends of the source's channels, whatever the source is.
pub(super) struct SourceEnds {
    /// Where the snapshot goes, …
    pub(super) state: watch::Sender<SourceState>,
    /// … and where it is read.
    pub(super) snapshot: watch::Receiver<SourceState>,
    /// What balances on this node.
    pub(super) announcement: watch::Receiver<NodeDatapath>,
    /// Who has heard it.
    pub(super) acknowledged: watch::Sender<Acknowledged>,
    /// Whether the data path stands.
    pub(super) stands: watch::Receiver<bool>,
    /// To ask the agent to give way to another program of it.
    pub(super) replace: CancellationToken,
}

impl Parts {
    /// Opens the windows first, so that what follows can be watched, then starts every part. Where there
    /// is an orchestrator, it is the source, and Swarm is not asked.
    pub(super) async fn start(
        options: &RunOptions,
        introspection: Arc<Introspection>,
        ends: SourceEnds,
        orchestrator: Option<orchestrator::Opened>,
        metrics: &Metrics,
        shutdown: &CancellationToken,
        supervisor: &mut Supervisor,
    ) -> Result<Self, AgentError> {
        let paths = orchestrator.as_ref().map(orchestrator::Opened::api);
        let commands = open_listeners(options, introspection, paths, metrics, shutdown, supervisor).await?;

        let (interest, interest_receiver) = watch::channel(Interest::default());
        let network_options = NetworkOptions {
            uplinks: options.uplinks.clone(),
            service_address: options.service_address,
        };
        let (watcher, network) = watch_network(network_options, interest_receiver)?;
        supervisor.spawn_fallible("network watcher", watcher.run());

        let docker = Docker::new(&options.docker_socket);
        let place = orchestrator.as_ref().map(|opened| {
            EngineReport::orchestrated(Member {
                node: opened.node().to_string(),
                manager: opened.is_manager(),
                address: opened.address(),
                certificates: PathBuf::new(),
            })
        });
        let (engine_sender, engine) = watch::channel(place.unwrap_or_default());
        let ask_docker = HintHandle::new();
        let follow = membership::follow(
            docker.clone(),
            engine_sender,
            ask_docker.clone(),
            shutdown.clone(),
        );
        supervisor.spawn("watch on Docker", follow);

        let hints = SourceHints::default();
        let on_event = {
            let hints = hints.clone();
            move || hints.hint()
        };
        let scheduler = match orchestrator {
            Some(_) => Scheduler::Orchestrator,
            None => Scheduler::Swarm,
        };
        let (watcher, containers) = ContainerWatcher::new(docker.clone(), scheduler, on_event);
        supervisor.spawn("container watcher", watcher.run(shutdown.clone()));

        let SourceEnds {
            state,
            snapshot: source,
            announcement,
            acknowledged,
            stands,
            replace,
        } = ends;
        let (workers_sender, workers) = watch::channel(FeedServerStatus::default());
        if let Some(opened) = orchestrator {
            let mesh = orchestrator::Mesh {
                state,
                announcement,
                acknowledged,
                found: containers.clone(),
                is_up: stands,
                replace,
            };
            let run = orchestrator::run(opened, mesh, shutdown.clone());
            supervisor.spawn_fallible("orchestrator", run);
        } else {
            let sources = Sources {
                docker,
                options: options.clone(),
                engine: engine.clone(),
                state,
                workers: workers_sender,
                hints: hints.clone(),
                announcement,
                acknowledged,
            };
            supervisor.spawn("source", sources.run(shutdown.clone()));
        }
        Ok(Self {
            engine,
            source,
            workers,
            containers,
            network,
            interest,
            hints,
            ask_docker,
            commands,
        })
    }
}

async fn open_listeners(
    options: &RunOptions,
    introspection: Arc<Introspection>,
    orchestrator: Option<axum::Router>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
    supervisor: &mut Supervisor,
) -> Result<mpsc::Receiver<control::Command>, AgentError> {
    let doctor = doctor::Options {
        docker_socket: options.docker_socket.clone(),
        docker_root: options.docker_root.clone(),
        bpffs: options.bpffs.clone(),
        // The doctor says what is wrong where there is none.
        cgroup: find_cgroup(options).ok().or_else(|| options.cgroup.clone()),
        orchestrator: options.orchestrator.orchestrator,
    };
    let agent: Arc<dyn Introspect> = introspection;
    let (control, commands) = control::channel();
    let mut admin = AdminServer::bind(&options.admin_socket, Arc::clone(&agent), control, doctor).await?;
    if let Some(paths) = orchestrator {
        admin = admin.with(paths);
    }
    supervisor.spawn("admin socket", admin.run(shutdown.clone()));
    if let MetricsListen::At(address) = options.metrics_listen {
        let server = MetricsServer::bind(address).await?;
        supervisor.spawn("metrics", server.run(agent, metrics.clone(), shutdown.clone()));
    }
    Ok(commands)
}
