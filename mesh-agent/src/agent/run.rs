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
    AgentError, error_chain,
    introspect::{SharedLadder, Window},
    ladder::Ladder,
    local_device::LocalDevice,
    membership::Standing,
    parts::{Parts, SourceEnds},
    picture::Picture,
    preflight::preflight,
    presence::Presence,
    signals::{Request, Signals},
    supervisor::Supervisor,
    workshop::NodeWorkshop,
};
use crate::{
    admin::{View, control},
    config::{OnStop, RunOptions},
    datapath::{DatapathChoice, DatapathKind},
    discovery::network::Interest,
    mesh0,
    metrics::Metrics,
    model::{Desired, Local, NodeDatapath, NodeRole},
    orchestrator,
    source::{Docker, SourceState, Told},
};

/// The data path's upkeep, and a look at whether mesh0 is still what it should be.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How many maintenance intervals lie between two looks at mesh0.
const MESH0_EVERY: u32 = 10;
/// How long the other nodes may take to learn that this one has changed its kind of data path, for which
/// both are in the kernel: managers tell the others within some 10 ms when they have been told.
const FOLLOWING_LIMIT: Duration = Duration::from_secs(1);
/// How long the agent's parts may take to stop before the data path is taken out all the same.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Why the agent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Told,
    /// Another program of it is to take its place: the data path is left to that one.
    Replaced,
}

/// Runs the agent until it is told to stop, or gives way to another program of it. Logging has to be started before.
///
/// # Errors
/// When the node lacks something, a port or socket is taken, a part of the agent ends unexpectedly (the
/// data path is left in place), or the data path cannot be taken out at the end.
pub async fn run(options: RunOptions) -> Result<Ended, AgentError> {
    let mut signals = Signals::catch().map_err(AgentError::Signals)?;
    let _lock = preflight(&options)?;
    let orchestrator = match open_orchestrator(&options, &mut signals).await? {
        Opening::Stopped => return Ok(Ended::Told),
        Opening::NotWanted => None,
        Opening::Opened(opened) => Some(*opened),
    };
    let workshop = NodeWorkshop::new(options.clone());
    let ladder = SharedLadder::new(Ladder::start(options.datapath, Box::new(workshop))?);
    let mut supervisor = Supervisor::default();
    let replace = CancellationToken::new();
    let mut agent = Agent::start(options, ladder, orchestrator, replace.clone(), &mut supervisor).await?;
    notify(&[sd_notify::NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "the mesh agent is running");
    let ended = loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => break Ok(Ended::Told),
                Request::Reload => agent.reload(),
            },
            error = supervisor.ended() => break Err(error),
            () = replace.cancelled() => break Ok(Ended::Replaced),
            reason = agent.reason() => agent.act(reason).await,
        }
    };
    // A part that fails takes the agent with it, but not the traffic.
    let ended = ended?;
    match ended {
        Ended::Told => {
            notify(&[sd_notify::NotifyState::Stopping]);
            signals.exit_at_the_next_stop();
            agent.take_leave(&mut supervisor).await?;
        }
        Ended::Replaced => {
            notify_reloading();
            signals.exit_at_the_next_stop();
            agent.options.on_stop = OnStop::Keep;
        }
    }
    agent.stop(supervisor).await?;
    Ok(ended)
}

/// What came of opening the orchestrator.
enum Opening {
    NotWanted,
    Opened(Box<orchestrator::Opened>),
    /// The agent was told to stop before the engine and the store answered.
    Stopped,
}

/// Opens the orchestrator where it is wanted. The engine or the store may take its time; an earlier agent's data
/// path carries the traffic meanwhile.
async fn open_orchestrator(options: &RunOptions, signals: &mut Signals) -> Result<Opening, AgentError> {
    if !options.orchestrator.orchestrator {
        return Ok(Opening::NotWanted);
    }
    let docker = Docker::new(&options.docker_socket);
    let opening = orchestrator::open(&options.orchestrator, options.feed_port, docker);
    tokio::pin!(opening);
    loop {
        tokio::select! {
            opened = &mut opening => return Ok(Opening::Opened(Box::new(opened?))),
            request = signals.next() => match request {
                Request::Stop => return Ok(Opening::Stopped),
                Request::Reload => {}
            },
        }
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager could not be notified");
    }
}

/// The service manager hears of READY again afterwards.
fn notify_reloading() {
    match sd_notify::NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[sd_notify::NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "the clock could not be read for the service manager"),
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
    /// The admin socket asks for something.
    Command(control::Command),
}

/// Everything that the loop looks at and acts on.
struct Agent {
    options: RunOptions,
    started: SystemTime,
    shutdown: CancellationToken,

    parts: Parts,
    standing: Standing,
    presence: Presence,
    /// Whether the data path was what it should be, once.
    stands: watch::Sender<bool>,
    device: LocalDevice,
    ladder: SharedLadder,
    /// When a data path that has been replaced may go.
    retire_at: Option<Instant>,
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
    async fn start(
        options: RunOptions,
        ladder: SharedLadder,
        orchestrator: Option<orchestrator::Opened>,
        replace: CancellationToken,
        supervisor: &mut Supervisor,
    ) -> Result<Self, AgentError> {
        let started = SystemTime::now();
        let shutdown = CancellationToken::new();
        let (state, picture) = watch::channel(SourceState::default());
        let window = Arc::new(Window::new(
            empty_view(&options, started),
            ladder.clone(),
            picture.clone(),
        ));
        let metrics = Metrics::new(options.backend_metrics)?;
        let (told, heard) = watch::channel(Told::default());
        let presence = Presence::new(ladder.lock().adopted(), heard);
        let (stands, standing) = watch::channel(false);
        let parts = Parts::start(
            &options,
            Arc::clone(&window),
            SourceEnds {
                state,
                picture,
                word: presence.word(),
                told,
                stands: standing,
                replace,
            },
            orchestrator,
            &metrics,
            &shutdown,
            supervisor,
        )
        .await?;
        let mut maintenance = interval(MAINTENANCE_INTERVAL);
        maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let agent = Self {
            device: LocalDevice::new()?,
            options,
            started,
            shutdown,
            parts,
            standing: Standing::Unknown,
            presence,
            stands,
            ladder,
            retire_at: None,
            desired: None,
            applied_revision: 0,
            said_waiting: None,
            said_failures: Vec::new(),
            window,
            metrics,
            refused_seen: 0,
            maintenance,
            maintenances: 0,
        };
        agent.publish();
        Ok(agent)
    }

    /// Waits for the next reason to act. Cancel safe.
    async fn reason(&mut self) -> Reason {
        let retry_at = self.ladder.lock().retry_at();
        let retry_at = retry_at.into_iter().chain(self.retire_at);
        let retry_at = retry_at.map(tokio::time::Instant::from);
        let retry_at = retry_at.chain(self.presence.ask_again_at()).min();
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A sender that is gone belongs to a part that has ended; the supervisor says so.
        tokio::select! {
            Ok(()) = self.parts.membership.changed() => Reason::News,
            Ok(()) = self.parts.source.changed() => Reason::News,
            Ok(()) = self.parts.containers.changed() => Reason::News,
            Ok(()) = self.parts.network.changed() => Reason::News,
            Ok(()) = self.parts.workers.changed() => Reason::Workers,
            Some(command) = self.parts.commands.recv() => Reason::Command(command),
            () = retry => Reason::News,
            _ = self.maintenance.tick() => Reason::Maintenance,
        }
    }

    async fn act(&mut self, reason: Reason) {
        let command = match reason {
            Reason::News => None,
            Reason::Workers => return self.count_refused(),
            Reason::Maintenance => {
                if !self.maintain() {
                    return;
                }
                None
            }
            Reason::Command(command) => Some(command),
        };
        self.look_at_standing();
        self.state_interest();
        let kind = self.ladder.lock().kind();
        if kind == DatapathKind::Ebpf || command.as_ref().is_some_and(may_lead_to_ebpf) {
            self.ensure_device().await;
        }
        let answer = command.map(|command| (self.obey(command.request), command.answer));
        self.converge();
        self.change_over().await;
        self.publish();
        if let Some((result, answer)) = answer {
            // Whoever asked may have gone.
            let _ = answer.send(result.map(|()| self.ladder.lock().status()));
        }
    }

    /// Changes the data path as somebody asks.
    fn obey(&mut self, request: control::Request) -> Result<(), String> {
        let source = self.parts.source.borrow().clone();
        let plan = self.picture(&source).map_err(|missing| {
            format!("the agent is still waiting for {missing}: ask again when it has it")
        })?;
        self.ladder
            .lock()
            .obey(request, &|kind| plan.desired(kind), Instant::now())
    }

    /// Ends a change from one data path to another: the new one is whole, and the old one goes when the
    /// other nodes have had the time to follow.
    async fn change_over(&mut self) {
        let (kind, retiring) = {
            let mut ladder = self.ladder.lock();
            let now = Instant::now();
            if !ladder.is_retiring() {
                self.retire_at = None;
            } else if *self.retire_at.get_or_insert(now + FOLLOWING_LIMIT) <= now {
                ladder.retire();
                self.retire_at = None;
            }
            (ladder.kind(), ladder.is_retiring())
        };
        // Before the first state stands, an earlier agent's eBPF may still be carrying traffic.
        if kind != DatapathKind::Ebpf && !retiring && self.desired.is_some() {
            self.device.release().await;
        }
    }

    /// Upkeep; true when there is more to look at than the data path.
    fn maintain(&mut self) -> bool {
        if let Err(error) = self.ladder.lock().maintain() {
            warn!(error = error_chain(&error), "the data path's upkeep failed");
        }
        if sd_notify::watchdog_enabled().is_some() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        self.maintenances = self.maintenances.wrapping_add(1);
        let due = self.maintenances.is_multiple_of(MESH0_EVERY);
        if due {
            // Somebody may have removed or changed it behind the agent's back.
            self.device.doubt();
        }
        due
    }

    /// Where the node stands now, or stood when Docker last could tell.
    fn look_at_standing(&mut self) {
        let now = self
            .parts
            .membership
            .borrow_and_update()
            .standing(self.options.docker_root.as_ref());
        if now != Standing::Unknown {
            self.standing = now;
        }
    }

    /// Tells the network watcher which peers to find.
    fn state_interest(&self) {
        let source = self.parts.source.borrow();
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
        self.parts.interest.send_if_modified(|interest| {
            let changed = *interest != new;
            *interest = new;
            changed
        });
    }

    async fn ensure_device(&mut self) {
        let Some(node_address) = self.parts.interest.borrow().node_address else {
            return;
        };
        let uplink_mtu = self
            .parts
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
        self.device.ensure(settings).await;
    }

    /// Computes what the data path should be and brings it there. Nothing is done before every part has
    /// spoken once: an adopted data path is worth more than half a picture.
    fn converge(&mut self) {
        let source = self.parts.source.borrow_and_update().clone();
        let picture = match self.picture(&source) {
            Ok(picture) => picture,
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
        let (round, desired, kind) = {
            let mut ladder = self.ladder.lock();
            let (round, desired) = ladder.reconcile(&|kind| picture.desired(kind), Instant::now());
            (round, desired, ladder.kind())
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
                Standing::Member(_) => kind.into(),
                Standing::Unknown | Standing::Away => NodeDatapath::None,
            });
            self.stands
                .send_if_modified(|stands| !std::mem::replace(stands, true));
        }
        self.desired = Some(Arc::new(desired));
    }

    /// What the data path follows from, or what is still missing to tell.
    fn picture(&mut self, source: &SourceState) -> Result<Picture, &'static str> {
        let member = match &self.standing {
            Standing::Unknown => return Err("Docker to tell this node's place in the Swarm"),
            Standing::Away => return Ok(Picture::Away),
            Standing::Member(member) => member,
        };
        if source.confirmed.is_none() {
            return Err("the first picture of the cluster");
        }
        let containers = self.parts.containers.borrow();
        if !containers.listed {
            return Err("the first list of this node's containers");
        }
        let network = self.parts.network.borrow();
        let Some(network) = network.as_ref() else {
            return Err("the first look at this node's network");
        };
        if !self.presence.may_plan(&source.cluster, &member.node) {
            return Err("the agents of the other nodes to say what balances there");
        }
        let local = Local {
            node: member.node.clone(),
            // Each kind of data path is its own: see `Picture::desired`.
            datapath: NodeDatapath::Unknown,
            leaving: self.presence.is_leaving(),
            addresses: network.addresses.clone(),
            containers: containers.containers.clone(),
            uplinks: network.uplinks.clone(),
            container_interfaces: network.container_interfaces.clone(),
            mesh0: self.device.interface(),
            next_hops: network.next_hops.clone(),
            return_mode: self.options.return_mode,
        };
        Ok(Picture::Member {
            cluster: Arc::clone(&source.cluster),
            local: Box::new(local),
            service_address: self.options.service_address,
        })
    }

    /// Each refusal once, and once that there is none any more.
    fn say_failures(&mut self) {
        let failures = self.ladder.lock().failures();
        for failure in &failures {
            if !self.said_failures.contains(failure) {
                error!("{failure}; trying again");
            }
        }
        if failures.is_empty() && !self.said_failures.is_empty() {
            info!("the data path has taken what it refused before");
        }
        self.said_failures = failures;
    }

    fn count_refused(&mut self) {
        let total: u64 = self.parts.workers.borrow_and_update().refused.values().sum();
        // A new server, after a change of role, counts from zero.
        let more = total.checked_sub(self.refused_seen).unwrap_or(total);
        self.metrics.feed_refused().inc_by(more);
        self.refused_seen = total;
    }

    fn publish(&self) {
        let membership = self.parts.membership.borrow();
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
        let (kind, status, modes, mut datapath_errors) = {
            let ladder = self.ladder.lock();
            (ladder.kind(), ladder.status(), ladder.modes(), ladder.failures())
        };
        datapath_errors.extend(self.device.trouble());
        self.window.publish(View {
            node,
            role,
            source: self.parts.source.borrow().clone(),
            desired: self.desired.clone().unwrap_or_default(),
            applied_revision: self.applied_revision,
            datapath: kind.into(),
            datapath_status: status,
            modes,
            datapath_errors,
            return_mode: self.options.return_mode,
            docker_trouble: membership
                .trouble
                .clone()
                .or_else(|| self.parts.containers.borrow().trouble.clone()),
            started: self.started,
        });
    }

    /// SIGHUP: certificates, cluster and network are read anew.
    fn reload(&self) {
        info!("reloading");
        notify_reloading();
        self.parts.hints.reload();
        self.parts.ask_docker.hint();
        // Asked anew, routes and neighbours are read anew.
        self.parts.interest.send_modify(|_| {});
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
        let cluster = Arc::clone(&self.parts.source.borrow().cluster);
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
    async fn stop(mut self, mut supervisor: Supervisor) -> Result<(), AgentError> {
        info!("stopping");
        self.shutdown.cancel();
        drop(self.parts.interest);
        if timeout(STOP_LIMIT, supervisor.finish()).await.is_err() {
            warn!("some part of the agent does not stop; going on without it");
        }
        if self.options.on_stop == OnStop::Keep {
            info!("the data path stays in the kernel; the next agent adopts it");
            return Ok(());
        }
        let detached = self.ladder.lock().detach();
        let removed = self.device.remove().await;
        detached.map_err(AgentError::Detach)?;
        removed?;
        info!("the data path is out of the kernel");
        Ok(())
    }
}

/// Whether the data path may be eBPF after a command though it is not now.
fn may_lead_to_ebpf(command: &control::Command) -> bool {
    match command.request {
        control::Request::Retry => true,
        control::Request::Use(choice) => choice != DatapathChoice::Ipvs,
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
        datapath_status: Default::default(),
        modes: Vec::new(),
        datapath_errors: Vec::new(),
        return_mode: options.return_mode,
        docker_trouble: None,
        started,
    }
}
