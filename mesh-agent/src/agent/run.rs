//! The agent's life, from start-up to the end. What it does in between is in [`act`] and [`converge`].

mod act;
mod converge;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::act::Reason;
use super::{
    AgentError,
    announcement::OwnAnnouncement,
    datapath_factory::NodeDatapathFactory,
    introspect::{Introspection, SharedLadder},
    ladder::Ladder,
    local_device::LocalDevice,
    membership::Membership,
    parts::{Parts, SourceEnds},
    preflight::preflight,
    signals::{Request, Signals},
    supervisor::Supervisor,
};
use crate::{
    admin::View,
    config::{OnStop, RunOptions},
    docker::Docker,
    metrics::Metrics,
    model::{Desired, NodeDatapath},
    orchestrator,
    source::{Acknowledged, SourceState},
};

/// Between two rounds of the data path's upkeep.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the agent's parts may take to stop before the data path is taken out all the same.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Why the agent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
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
        Opening::Stopped => return Ok(Ended::Stopped),
        Opening::NotWanted => None,
        Opening::Opened(opened) => Some(*opened),
    };
    let factory = NodeDatapathFactory::new(options.clone());
    let ladder = SharedLadder::new(Ladder::start(options.datapath, Box::new(factory))?);
    let mut supervisor = Supervisor::default();
    let replace = CancellationToken::new();
    let mut agent = Agent::start(options, ladder, orchestrator, replace.clone(), &mut supervisor).await?;
    notify(&[sd_notify::NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "the mesh agent is running");
    let ended = loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => break Ok(Ended::Stopped),
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
        Ended::Stopped => {
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

/// Everything that the loop looks at and acts on.
struct Agent {
    options: RunOptions,
    started: SystemTime,
    shutdown: CancellationToken,

    parts: Parts,
    membership: Membership,
    announcement: OwnAnnouncement,
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

    introspection: Arc<Introspection>,
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
        let (state, snapshot) = watch::channel(SourceState::default());
        let introspection = Arc::new(Introspection::new(
            empty_view(&options, started),
            ladder.clone(),
            snapshot.clone(),
        ));
        let metrics = Metrics::new(options.backend_metrics)?;
        let (acknowledged, acknowledgements) = watch::channel(Acknowledged::default());
        let announcement = OwnAnnouncement::new(ladder.lock().adopted(), acknowledgements);
        let (stands, standing) = watch::channel(false);
        let parts = Parts::start(
            &options,
            Arc::clone(&introspection),
            SourceEnds {
                state,
                snapshot,
                announcement: announcement.subscribe(),
                acknowledged,
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
            membership: Membership::Unknown,
            announcement,
            stands,
            ladder,
            retire_at: None,
            desired: None,
            applied_revision: 0,
            said_waiting: None,
            said_failures: Vec::new(),
            introspection,
            metrics,
            refused_seen: 0,
            maintenance,
            maintenances: 0,
        };
        agent.publish();
        Ok(agent)
    }

    /// Tells the others before the data path goes, so that nobody sends here any more when it does. The
    /// mesh works on meanwhile.
    async fn take_leave(&mut self, supervisor: &mut Supervisor) -> Result<(), AgentError> {
        if self.options.on_stop == OnStop::Keep {
            return Ok(());
        }
        let own = match &self.membership {
            Membership::Member(member) => member.node.clone(),
            Membership::Unknown | Membership::Outside => return Ok(()),
        };
        let cluster = Arc::clone(&self.parts.source.borrow().cluster);
        let left = self.announcement.leave(&cluster, &own);
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
