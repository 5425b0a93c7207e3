//! The running agent: reacts to what its parts report, until it drains and stops. What it does for an event
//! is in [`act`], how it brings the data path up to date in [`converge`].

mod act;
mod converge;
mod ipv6;
mod settings;
mod targets;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_support::watched::Watched as _;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::act::Event;
use super::{
    AgentError,
    announcement::OwnAnnouncement,
    drains::Drains,
    introspect::{Introspection, SharedLadder},
    local_device::LocalDevice,
    membership::Membership,
    parts::Parts,
    signals::{Request, Signals},
    supervisor::Supervisor,
};
use crate::{
    config::{OnStop, Reloader, RunOptions},
    metrics::Metrics,
    model::{Desired, DrainTimes, NoHook, NodeId, NodePolicy, ServiceKey, SlowStart},
    process::Ended,
};

/// How often the data path is maintained.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the agent's parts may take to stop before the data path is removed regardless.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The agent's state.
pub(super) struct Agent {
    options: RunOptions,
    /// Its setting `policy`.
    policy: Arc<NodePolicy>,
    reloader: Reloader,
    started: SystemTime,

    parts: Parts,
    membership: Membership,
    announcement: OwnAnnouncement,
    drains: Drains,
    /// Whether the data path has been brought up.
    is_up: watch::Sender<bool>,
    device: LocalDevice,
    ladder: SharedLadder,
    /// When a replaced data path is to be removed.
    retire_at: Option<Instant>,
    desired: Option<Arc<Desired>>,
    /// The peers that there is no hook towards.
    without_hook: BTreeMap<Ipv4Addr, NoHook>,
    /// The interfaces on which the kernel does not forward, as last seen.
    not_forwarding: BTreeSet<String>,
    applied_revision: u64,
    logged_waiting: Option<&'static str>,
    /// Whether it counted as ready without a snapshot of the cluster when it was last asked.
    ready_without_snapshot: bool,
    logged_failures: Vec<String>,
    slow_start: SlowStart,
    drain_times: DrainTimes,
    /// When the share of a replica that starts slowly next grows, or a drain has taken as long as it may.
    due_at: Option<Instant>,
    /// The services all of whose replicas fail their check.
    failing_services: BTreeSet<ServiceKey>,
    /// Since when the managers report that these nodes' agents are not connected.
    lost_agents: BTreeMap<NodeId, SystemTime>,

    introspection: Arc<Introspection>,
    metrics: Metrics,
    refused_seen: u64,
    maintenance: tokio::time::Interval,
    maintenances: u32,
}

impl Agent {
    #[expect(clippy::too_many_arguments, reason = "called once, by the start of the agent")]
    pub(super) fn new(
        options: RunOptions,
        reloader: Reloader,
        parts: Parts,
        announcement: OwnAnnouncement,
        drains: Drains,
        is_up: watch::Sender<bool>,
        ladder: SharedLadder,
        device: LocalDevice,
        introspection: Arc<Introspection>,
        metrics: Metrics,
    ) -> Self {
        let mut maintenance = interval(MAINTENANCE_INTERVAL);
        maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut agent = Self {
            policy: Arc::new(NodePolicy::new(options.policy.clone())),
            options,
            reloader,
            started: introspection.started(),
            parts,
            membership: Membership::Unknown,
            announcement,
            drains,
            is_up,
            device,
            ladder,
            retire_at: None,
            desired: None,
            without_hook: BTreeMap::new(),
            not_forwarding: BTreeSet::new(),
            applied_revision: 0,
            logged_waiting: None,
            ready_without_snapshot: false,
            logged_failures: Vec::new(),
            slow_start: SlowStart::default(),
            drain_times: DrainTimes::default(),
            due_at: None,
            failing_services: BTreeSet::new(),
            lost_agents: BTreeMap::new(),
            introspection,
            metrics,
            refused_seen: 0,
            maintenance,
            maintenances: 0,
        };
        agent.publish();
        agent
    }

    /// Handles events until the agent is asked to stop or to be replaced.
    ///
    /// # Errors
    /// When a part ends unexpectedly.
    pub(super) async fn work(
        &mut self,
        signals: &mut Signals,
        supervisor: &mut Supervisor,
    ) -> Result<Ended, AgentError> {
        loop {
            tokio::select! {
                request = signals.next() => match request {
                    Request::Stop => return Ok(Ended::Stopped),
                    Request::Reload => {
                        self.reload();
                        self.handle(Event::Changed).await;
                    }
                },
                ended = supervisor.ended() => return ended,
                event = self.event() => self.handle(event).await,
            }
        }
    }

    /// Announces to the other nodes that the data path is about to be removed, unless it stays, and waits
    /// until they send no new connections here. The mesh keeps working meanwhile.
    ///
    /// # Errors
    /// When a part ends unexpectedly.
    pub(super) async fn drain(
        &mut self,
        ended: Ended,
        supervisor: &mut Supervisor,
    ) -> Result<(), AgentError> {
        if ended == Ended::Replaced {
            // The next program adopts it.
            self.options.on_stop = OnStop::Keep;
        }
        if self.options.on_stop == OnStop::Keep {
            return Ok(());
        }
        let own = match &self.membership {
            Membership::Member(member) => member.node.clone(),
            Membership::Unknown | Membership::Outside => return Ok(()),
        };
        let cluster = self.parts.source.current().cluster;
        let left = self.announcement.leave(&cluster, &own);
        tokio::pin!(left);
        // From now on new connections go to what answers without the mesh; open ones go on.
        self.handle(Event::Changed).await;
        loop {
            tokio::select! {
                () = &mut left => return Ok(()),
                ended = supervisor.ended() => match ended? {
                    // It is too late to be replaced: the agent stops.
                    Ended::Stopped | Ended::Replaced => {}
                },
                event = self.event() => self.handle(event).await,
            }
        }
    }

    /// Stops every part, then removes the data path from the kernel unless it is to stay.
    ///
    /// # Errors
    /// When the kernel refuses to remove something.
    pub(super) async fn stop(
        mut self,
        mut supervisor: Supervisor,
        shutdown: &CancellationToken,
    ) -> Result<(), AgentError> {
        info!("stopping");
        shutdown.cancel();
        drop(self.parts.interest);
        if timeout(STOP_LIMIT, supervisor.finish()).await.is_err() {
            warn!("a part of the agent did not stop in time; continuing without it");
        }
        if self.options.on_stop == OnStop::Keep {
            info!("the data path stays in the kernel; the next agent adopts it");
            return Ok(());
        }
        let detached = self.ladder.lock().detach();
        let removed = self.device.remove().await;
        detached.map_err(AgentError::Detach)?;
        removed?;
        info!("the data path was removed from the kernel");
        Ok(())
    }
}
