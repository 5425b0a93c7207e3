//! The agent's parts and how they are put together: windows, watchers and sources, each a task of its
//! own that speaks to the loop through a channel.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AgentError,
    introspect::Window,
    membership::{self, Membership},
    preflight::find_cgroup,
    sources::{SourceHints, Sources},
    supervisor::Supervisor,
};
use crate::{
    admin::{AdminServer, Introspect, control},
    config::{MetricsListen, RunOptions},
    discovery::{
        ContainerState, ContainerWatcher, NetworkState,
        network::{Interest, NetworkOptions, watch_network},
    },
    doctor,
    metrics::{Metrics, MetricsServer},
    model::NodeDatapath,
    source::{Docker, FeedServerStatus, HintHandle, SourceState, Told},
};

/// The ends of the parts' channels that the loop holds.
pub(super) struct Parts {
    pub(super) membership: watch::Receiver<Membership>,
    pub(super) source: watch::Receiver<SourceState>,
    pub(super) workers: watch::Receiver<FeedServerStatus>,
    pub(super) containers: watch::Receiver<ContainerState>,
    pub(super) network: watch::Receiver<Option<NetworkState>>,
    pub(super) interest: watch::Sender<Interest>,
    pub(super) hints: SourceHints,
    pub(super) ask_docker: HintHandle,
    pub(super) commands: mpsc::Receiver<control::Command>,
}

impl Parts {
    /// Opens the windows first, so that what follows can be watched, then starts every part.
    pub(super) async fn start(
        options: &RunOptions,
        window: Arc<Window>,
        source: (watch::Sender<SourceState>, watch::Receiver<SourceState>),
        presence: (watch::Receiver<NodeDatapath>, watch::Sender<Told>),
        metrics: &Metrics,
        shutdown: &CancellationToken,
        supervisor: &mut Supervisor,
    ) -> Result<Self, AgentError> {
        let commands = open_windows(options, window, metrics, shutdown, supervisor).await?;

        let (interest, interest_receiver) = watch::channel(Interest::default());
        let network_options = NetworkOptions {
            uplinks: options.uplinks.clone(),
            service_address: options.service_address,
        };
        let (watcher, network) = watch_network(network_options, interest_receiver)?;
        supervisor.spawn_fallible("network watcher", watcher.run());

        let docker = Docker::new(&options.docker_socket);
        let (membership_sender, membership) = watch::channel(Membership::default());
        let ask_docker = HintHandle::new();
        let follow = membership::follow(
            docker.clone(),
            membership_sender,
            ask_docker.clone(),
            shutdown.clone(),
        );
        supervisor.spawn("watch on Docker", follow);

        let hints = SourceHints::default();
        let on_event = {
            let hints = hints.clone();
            move || hints.hint()
        };
        let (watcher, containers) = ContainerWatcher::new(docker.clone(), on_event);
        supervisor.spawn("container watcher", watcher.run(shutdown.clone()));

        let (state, source) = source;
        let (workers_sender, workers) = watch::channel(FeedServerStatus::default());
        let sources = Sources {
            docker,
            options: options.clone(),
            membership: membership.clone(),
            state,
            workers: workers_sender,
            hints: hints.clone(),
            word: presence.0,
            told: presence.1,
        };
        supervisor.spawn("source", sources.run(shutdown.clone()));
        Ok(Self {
            membership,
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

async fn open_windows(
    options: &RunOptions,
    window: Arc<Window>,
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
    };
    let agent: Arc<dyn Introspect> = window;
    let (control, commands) = control::channel();
    let admin = AdminServer::bind(&options.admin_socket, Arc::clone(&agent), control, doctor).await?;
    supervisor.spawn("admin socket", admin.run(shutdown.clone()));
    if let MetricsListen::At(address) = options.metrics_listen {
        let server = MetricsServer::bind(address).await?;
        supervisor.spawn("metrics", server.run(agent, metrics.clone(), shutdown.clone()));
    }
    Ok(commands)
}
