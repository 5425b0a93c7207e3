//! The agent's life: start-up, the loop that keeps the data path what it should be, and the end.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    AgentError, MakeDatapath, Prepared, Reconciler, error_chain,
    introspect::{SharedDatapath, Window},
    membership::{self, Membership, Standing},
    preflight::preflight,
    presence::Presence,
    signals::{Request, Signals},
    sources::{SourceHints, Sources},
    supervisor::Supervisor,
};
use crate::{
    admin::{AdminServer, Introspect, View},
    config::{MetricsListen, OnStop, RunOptions},
    discovery::{
        ContainerState, ContainerWatcher, NetworkState,
        network::{Interest, NetworkOptions, watch_network},
    },
    doctor,
    mesh0::{self, Mesh0},
    metrics::{Metrics, MetricsServer},
    model::{Desired, HostInterface, Local, NodeDatapath, NodeRole, desired::desired},
    source::{Docker, FeedServerStatus, HintHandle, SourceState, Told},
};

/// The data path's upkeep, and a look at whether mesh0 is still what it should be.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How many maintenance intervals lie between two looks at mesh0.
const MESH0_EVERY: u32 = 10;
/// How long the agent's parts may take to stop before the data path is taken out all the same.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Runs the agent until it is told to stop. Logging has to be started before.
///
/// # Errors
/// When the node lacks something, a port or socket is taken, a part of the agent ends unexpectedly (the
/// data path is left in place), or the data path cannot be taken out at the end.
pub async fn run(options: RunOptions, make_datapath: MakeDatapath) -> Result<(), AgentError> {
    let mut signals = Signals::catch().map_err(AgentError::Signals)?;
    let (prepared, _lock) = preflight(options)?;
    let datapath = SharedDatapath::new(make_datapath(&prepared).map_err(AgentError::Load)?);
    let mut supervisor = Supervisor::default();
    let mut agent = Agent::start(prepared, datapath, &mut supervisor).await?;
    notify(&[sd_notify::NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "the mesh agent is running");
    let ended = loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => break Ok(()),
                Request::Reload => agent.reload(),
            },
            error = supervisor.ended() => break Err(error),
            reason = agent.reason() => agent.act(reason).await,
        }
    };
    // A part that fails takes the agent with it, but not the traffic.
    ended?;
    notify(&[sd_notify::NotifyState::Stopping]);
    signals.exit_at_the_next_stop();
    agent.take_leave(&mut supervisor).await?;
    agent.stop(supervisor).await
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager could not be notified");
    }
}

/// Why the loop acts.
enum Reason {
    /// Something that the data path depends on has changed, or a refused change is due again.
    News,
    /// A node has connected to the feed or left it, or was refused.
    Workers,
    /// The data path's upkeep is due.
    Maintenance,
}

/// Everything that the loop looks at and acts on.
struct Agent {
    options: RunOptions,
    started: SystemTime,
    shutdown: CancellationToken,

    membership: watch::Receiver<Membership>,
    source: watch::Receiver<SourceState>,
    workers: watch::Receiver<FeedServerStatus>,
    containers: watch::Receiver<ContainerState>,
    network: watch::Receiver<Option<NetworkState>>,
    interest: watch::Sender<Interest>,
    hints: SourceHints,
    ask_docker: HintHandle,

    standing: Standing,
    presence: Presence,
    mesh0: Mesh0,
    mesh0_is: Option<(mesh0::Settings, HostInterface)>,
    mesh0_trouble: Option<String>,
    datapath: SharedDatapath,
    reconciler: Reconciler,
    desired: Option<Arc<Desired>>,
    applied_revision: u64,
    said_waiting: Option<&'static str>,
    said_failures: Vec<String>,

    window: Arc<Window>,
    metrics: Metrics,
    refused_seen: u64,
    maintenance: tokio::time::Interval,
    maintenances: u32,
}

impl Agent {
    /// Opens the windows first, so that what follows can be watched, then starts every part.
    async fn start(
        prepared: Prepared,
        datapath: SharedDatapath,
        supervisor: &mut Supervisor,
    ) -> Result<Self, AgentError> {
        let options = prepared.options;
        let started = SystemTime::now();
        let shutdown = CancellationToken::new();
        let (state, source) = watch::channel(SourceState::default());
        let window = Arc::new(Window::new(
            empty_view(&options, started),
            datapath.clone(),
            source.clone(),
        ));
        let metrics = Metrics::new(options.backend_metrics)?;

        let doctor = doctor::Options {
            docker_socket: options.docker_socket.clone(),
            docker_root: options.docker_root.clone(),
            bpffs: options.bpffs.clone(),
            cgroup: Some(prepared.cgroup),
        };
        let agent: Arc<dyn Introspect> = Arc::<Window>::clone(&window);
        let admin = AdminServer::bind(&options.admin_socket, Arc::clone(&agent), doctor).await?;
        supervisor.spawn("admin socket", admin.run(shutdown.clone()));
        if let MetricsListen::At(address) = options.metrics_listen {
            let server = MetricsServer::bind(address).await?;
            supervisor.spawn("metrics", server.run(agent, metrics.clone(), shutdown.clone()));
        }

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

        let (workers_sender, workers) = watch::channel(FeedServerStatus::default());
        let (told_sender, told) = watch::channel(Told::default());
        let adopted = {
            let datapath = datapath.lock();
            datapath.adopted().then(|| datapath.kind())
        };
        let presence = Presence::new(adopted, told);
        let sources = Sources {
            docker,
            options: options.clone(),
            membership: membership.clone(),
            state,
            workers: workers_sender,
            hints: hints.clone(),
            word: presence.word(),
            told: told_sender,
        };
        supervisor.spawn("source", sources.run(shutdown.clone()));

        let mut maintenance = interval(MAINTENANCE_INTERVAL);
        maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            mesh0: Mesh0::new()?,
            options,
            started,
            shutdown,
            membership,
            source,
            workers,
            containers,
            network,
            interest,
            hints,
            ask_docker,
            standing: Standing::Unknown,
            presence,
            mesh0_is: None,
            mesh0_trouble: None,
            datapath,
            reconciler: Reconciler::default(),
            desired: None,
            applied_revision: 0,
            said_waiting: None,
            said_failures: Vec::new(),
            window,
            metrics,
            refused_seen: 0,
            maintenance,
            maintenances: 0,
        })
    }

    /// Waits for the next reason to act. Cancel safe.
    async fn reason(&mut self) -> Reason {
        let retry_at = self.reconciler.retry_at().map(tokio::time::Instant::from);
        let retry_at = retry_at.into_iter().chain(self.presence.ask_again_at()).min();
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A sender that is gone belongs to a part that has ended; the supervisor says so.
        tokio::select! {
            Ok(()) = self.membership.changed() => Reason::News,
            Ok(()) = self.source.changed() => Reason::News,
            Ok(()) = self.containers.changed() => Reason::News,
            Ok(()) = self.network.changed() => Reason::News,
            Ok(()) = self.workers.changed() => Reason::Workers,
            () = retry => Reason::News,
            _ = self.maintenance.tick() => Reason::Maintenance,
        }
    }

    async fn act(&mut self, reason: Reason) {
        match reason {
            Reason::News => {}
            Reason::Workers => return self.count_refused(),
            Reason::Maintenance => {
                if !self.maintain() {
                    return;
                }
            }
        }
        self.look_at_standing();
        self.state_interest();
        self.ensure_mesh0().await;
        self.converge();
        self.publish();
    }

    /// Upkeep; true when there is more to look at than the data path.
    fn maintain(&mut self) -> bool {
        if let Err(error) = self.datapath.lock().maintain() {
            warn!(error = error_chain(&error), "the data path's upkeep failed");
        }
        if sd_notify::watchdog_enabled().is_some() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        self.maintenances = self.maintenances.wrapping_add(1);
        let due = self.maintenances.is_multiple_of(MESH0_EVERY);
        if due {
            // Somebody may have removed or changed it behind the agent's back.
            self.mesh0_is = None;
        }
        due
    }

    /// Where the node stands now, or stood when Docker last could tell.
    fn look_at_standing(&mut self) {
        let now = self
            .membership
            .borrow_and_update()
            .standing(self.options.docker_root.as_ref());
        if now != Standing::Unknown {
            self.standing = now;
        }
    }

    /// Tells the network watcher which peers to find.
    fn state_interest(&self) {
        let source = self.source.borrow();
        let new = match &self.standing {
            Standing::Member(member) => Interest {
                node_address: Some(member.address),
                peers: source
                    .cluster
                    .nodes
                    .iter()
                    .filter(|(id, node)| **id != member.node && !node.address.is_unspecified())
                    .map(|(_, node)| node.address)
                    .collect(),
            },
            Standing::Unknown => return,
            Standing::Away => Interest::default(),
        };
        self.interest.send_if_modified(|interest| {
            let changed = *interest != new;
            *interest = new;
            changed
        });
    }

    async fn ensure_mesh0(&mut self) {
        let Some(node_address) = self.interest.borrow().node_address else {
            return;
        };
        let uplink_mtu = self
            .network
            .borrow()
            .as_ref()
            .and_then(|network| network.uplinks.values().map(|uplink| uplink.mtu).min());
        let Some(uplink_mtu) = uplink_mtu else {
            return;
        };
        let settings = mesh0::Settings {
            service_address: self.options.service_address,
            node_address,
            uplink_mtu,
        };
        if self.mesh0_is.is_some_and(|(known, _)| known == settings) {
            return;
        }
        match self.mesh0.ensure(settings).await {
            Ok(interface) => {
                self.mesh0_is = Some((settings, interface));
                self.mesh0_trouble = None;
            }
            Err(error) => {
                let trouble = error_chain(&error);
                if self.mesh0_trouble.as_ref() != Some(&trouble) {
                    warn!("{trouble}; local processes do not reach published ports until this succeeds");
                }
                self.mesh0_is = None;
                self.mesh0_trouble = Some(trouble);
            }
        }
    }

    /// Computes what the data path should be and brings it there. Nothing is done before every part has
    /// spoken once: an adopted data path is worth more than half a picture.
    fn converge(&mut self) {
        let source = self.source.borrow_and_update().clone();
        let desired = match self.desired(&source) {
            Ok(desired) => desired,
            Err(waiting_for) => {
                if self.said_waiting != Some(waiting_for) {
                    info!("waiting for {waiting_for}");
                    self.said_waiting = Some(waiting_for);
                }
                return;
            }
        };
        self.said_waiting = None;
        let first = self.desired.is_none();
        let round = {
            let mut datapath = self.datapath.lock();
            self.reconciler
                .reconcile(&desired, datapath.as_mut(), Instant::now())
        };
        if round.applied > 0 {
            debug!(
                changes = round.applied,
                revision = source.revision,
                "data path brought up to date"
            );
        }
        if first {
            info!(
                services = desired.services.len(),
                backends = desired.backends.len(),
                peers = desired.peers.len(),
                uplinks = ?desired.uplinks.keys().collect::<Vec<_>>(),
                revision = source.revision,
                "the data path stands"
            );
        }
        self.say_failures();
        if round.failed == 0 && source.revision != self.applied_revision {
            // The first picture may be old news; what it took the origin is not what it took the mesh.
            if !first
                && round.applied > 0
                && let Some(changed) = source.changed
                && let Ok(duration) = SystemTime::now().duration_since(changed)
            {
                self.metrics.observe_programming(duration);
            }
            self.applied_revision = source.revision;
        }
        if round.failed == 0 {
            self.presence.announce(match self.standing {
                Standing::Member(_) => self.datapath.lock().kind(),
                Standing::Unknown | Standing::Away => NodeDatapath::None,
            });
        }
        self.desired = Some(Arc::new(desired));
    }

    /// What the data path should be, or what is still missing to tell.
    fn desired(&mut self, source: &SourceState) -> Result<Desired, &'static str> {
        let member = match &self.standing {
            Standing::Unknown => return Err("Docker to tell this node's place in the Swarm"),
            Standing::Away => return Ok(Desired::default()),
            Standing::Member(member) => member,
        };
        if source.confirmed.is_none() {
            return Err("the first picture of the cluster");
        }
        let containers = self.containers.borrow();
        if !containers.listed {
            return Err("the first list of this node's containers");
        }
        let network = self.network.borrow();
        let Some(network) = network.as_ref() else {
            return Err("the first look at this node's network");
        };
        if !self.presence.may_plan(&source.cluster, &member.node) {
            return Err("the agents of the other nodes to say what balances there");
        }
        let local = Local {
            node: member.node.clone(),
            datapath: self.datapath.lock().kind(),
            leaving: self.presence.is_leaving(),
            addresses: network.addresses.clone(),
            containers: containers.containers.clone(),
            uplinks: network.uplinks.clone(),
            container_interfaces: network.container_interfaces.clone(),
            mesh0: self.mesh0_is.map(|(_, interface)| interface),
            next_hops: network.next_hops.clone(),
            return_mode: self.options.return_mode,
        };
        Ok(desired(&source.cluster, &local, self.options.service_address))
    }

    /// Each refusal once, and once that there is none any more.
    fn say_failures(&mut self) {
        let failures = self.reconciler.failures();
        for failure in failures {
            if !self.said_failures.contains(failure) {
                error!("{failure}; trying again");
            }
        }
        if failures.is_empty() && !self.said_failures.is_empty() {
            info!("the data path has taken what it refused before");
        }
        self.said_failures = failures.to_vec();
    }

    fn count_refused(&mut self) {
        let total: u64 = self.workers.borrow_and_update().refused.values().sum();
        // A new server, after a change of role, counts from zero.
        let more = total.checked_sub(self.refused_seen).unwrap_or(total);
        self.metrics.feed_refused().inc_by(more);
        self.refused_seen = total;
    }

    fn publish(&self) {
        let membership = self.membership.borrow();
        let (node, role) = match &self.standing {
            Standing::Member(member) => (
                member.node.clone(),
                Some(if member.manager {
                    NodeRole::Manager
                } else {
                    NodeRole::Worker
                }),
            ),
            Standing::Unknown | Standing::Away => (String::new(), None),
        };
        let mut datapath_errors = self.reconciler.failures().to_vec();
        datapath_errors.extend(self.mesh0_trouble.clone());
        self.window.publish(View {
            node,
            role,
            source: self.source.borrow().clone(),
            desired: self.desired.clone().unwrap_or_default(),
            applied_revision: self.applied_revision,
            datapath: self.datapath.lock().kind(),
            modes: self.datapath.lock().modes(),
            datapath_errors,
            return_mode: self.options.return_mode,
            docker_trouble: membership
                .trouble
                .clone()
                .or_else(|| self.containers.borrow().trouble.clone()),
            started: self.started,
        });
    }

    /// SIGHUP: certificates, cluster and network are read anew.
    fn reload(&self) {
        info!("reloading");
        match sd_notify::NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[sd_notify::NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "the clock could not be read for the service manager"),
        }
        self.hints.reload();
        self.ask_docker.hint();
        // Asked anew, routes and neighbours are read anew.
        self.interest.send_modify(|_| {});
        notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Tells the others before the data path goes, so that nobody sends here any more when it does. The
    /// mesh works on meanwhile.
    async fn take_leave(&mut self, supervisor: &mut Supervisor) -> Result<(), AgentError> {
        if self.options.on_stop == OnStop::Keep {
            return Ok(());
        }
        let own = match &self.standing {
            Standing::Member(member) => member.node.clone(),
            Standing::Unknown | Standing::Away => return Ok(()),
        };
        let cluster = Arc::clone(&self.source.borrow().cluster);
        let left = self.presence.leave(&cluster, &own);
        tokio::pin!(left);
        // New connections are left to whatever answers next, while those that are open go on.
        self.act(Reason::News).await;
        loop {
            tokio::select! {
                () = &mut left => return Ok(()),
                error = supervisor.ended() => return Err(error),
                reason = self.reason() => self.act(reason).await,
            }
        }
    }

    /// Stops every part, then takes the data path out of the kernel unless it is to stay.
    async fn stop(self, mut supervisor: Supervisor) -> Result<(), AgentError> {
        info!("stopping");
        self.shutdown.cancel();
        drop(self.interest);
        if timeout(STOP_LIMIT, supervisor.finish()).await.is_err() {
            warn!("some part of the agent does not stop; going on without it");
        }
        if self.options.on_stop == OnStop::Keep {
            info!("the data path stays in the kernel (--on-stop keep); the next agent adopts it");
            return Ok(());
        }
        let detached = self.datapath.lock().detach();
        let removed = self.mesh0.remove().await;
        detached.map_err(AgentError::Detach)?;
        removed?;
        info!("the data path is out of the kernel");
        Ok(())
    }
}

fn empty_view(options: &RunOptions, started: SystemTime) -> View {
    View {
        node: String::new(),
        role: None,
        source: SourceState::default(),
        desired: Arc::default(),
        applied_revision: 0,
        datapath: NodeDatapath::Unknown,
        modes: Vec::new(),
        datapath_errors: Vec::new(),
        return_mode: options.return_mode,
        docker_trouble: None,
        started,
    }
}
