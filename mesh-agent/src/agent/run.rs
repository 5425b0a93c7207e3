//! The agent's life from start to end. What it does in between is in [`node`](super::node).

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::interval,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    AgentError,
    announcement::OwnAnnouncement,
    datapath_factory::NodeDatapathFactory,
    drains::Drains,
    introspect::{Introspection, SharedLadder},
    ladder::Ladder,
    local_device::LocalDevice,
    node::Agent,
    parts::{ListenerChannels, Listeners, Parts, SourceChannels, doctor_options},
    preflight::preflight,
    service_manager,
    signals::{Request, Signals},
    sources::{self, Source},
    supervisor::Supervisor,
};
use crate::{
    admin::{self, View},
    config::{Reloader, RunOptions},
    discovery::Scheduler,
    docker::Docker,
    metrics::Metrics,
    probes::ProbeReport,
    process::Ended,
    source::{Acknowledged, Relay, SourceState},
};

/// How often the service manager learns that the agent waits for the engine and the store.
const WAITING_INTERVAL: Duration = Duration::from_secs(1);
/// How many requests of managers may wait; each is carried out by itself.
const RELAYED_WAITING: usize = 4;

/// Runs the agent until it is asked to stop or to be replaced. Start logging before.
///
/// # Errors
/// When the node lacks something, the admin socket is taken, a part of the agent ends unexpectedly (the
/// data path is left in place), or the data path cannot be removed at the end.
pub async fn run(options: RunOptions, reloader: Reloader) -> Result<Ended, AgentError> {
    let mut signals = Signals::catch().map_err(AgentError::Signals)?;
    let _lock = preflight(&options)?;

    // Build: nothing is spawned, and only the listeners are visible from outside.
    let docker = Docker::new(&options.docker_socket);
    let Some(source) = open_source(&options, docker.clone(), &mut signals).await? else {
        return Ok(Ended::Stopped);
    };
    let factory = NodeDatapathFactory::new(options.clone(), source.scheduler());
    let ladder = SharedLadder::new(Ladder::start(options.datapath, Box::new(factory))?);
    let metrics = Metrics::new(options.backend_metrics)?;
    let device = LocalDevice::new(&options.sysctls)?;
    let (state, snapshots) = watch::channel(SourceState::default());
    let (acknowledged, acknowledgements) = watch::channel(Acknowledged::default());
    let (is_up, is_up_receiver) = watch::channel(false);
    let announcement = OwnAnnouncement::new(ladder.lock().adopted(), acknowledgements);
    let drains = Drains::load(&options.admin_socket);
    let (probes, probe_report) = watch::channel(ProbeReport::default());
    let introspection = Arc::new(Introspection::starting(
        &options,
        ladder.clone(),
        snapshots,
        probe_report,
    ));
    let relay = Relay::default();
    let (relayed, asked) = mpsc::channel(RELAYED_WAITING);
    let (listeners, commands) = Listeners::bind(
        &options,
        Arc::clone(&introspection),
        source.as_ref(),
        relay.clone(),
    )
    .await?;
    listeners.log_addresses(&options);

    // Spawn.
    let shutdown = CancellationToken::new();
    let mut supervisor = Supervisor::default();
    listeners.spawn(metrics.clone(), asked, &mut supervisor, &shutdown);
    let channels = SourceChannels {
        state,
        announcement: announcement.subscribe(),
        keys: announcement.subscribe_keys(),
        drained: drains.subscribe(),
        relay,
        relayed,
        acknowledged,
        is_up: is_up_receiver,
    };
    let parts = Parts::spawn(
        &options,
        &docker,
        source,
        channels,
        ListenerChannels { commands, probes },
        &mut supervisor,
        &shutdown,
    )?;
    let mut agent = Agent::new(
        options,
        reloader,
        parts,
        announcement,
        drains,
        is_up,
        ladder,
        device,
        introspection,
        metrics,
    );
    info!(version = env!("CARGO_PKG_VERSION"), "the mesh agent is running");

    // Work. A part that fails ends the agent, but not the traffic.
    let ended = agent.work(&mut signals, &mut supervisor).await?;

    // Drain.
    match ended {
        Ended::Stopped => service_manager::stopping(),
        Ended::Replaced => service_manager::reloading(),
    }
    signals.exit_at_the_next_stop();
    agent.drain(ended, &mut supervisor).await?;
    agent.stop(supervisor, &shutdown).await?;
    Ok(ended)
}

/// Opens the source; `None` if the agent is stopped before the engine and the store answer. An earlier
/// agent's data path carries the traffic meanwhile.
async fn open_source(
    options: &RunOptions,
    docker: Docker,
    signals: &mut Signals,
) -> Result<Option<Box<dyn Source>>, AgentError> {
    let (waits, waiting) = watch::channel(None);
    let opened = CancellationToken::new();
    let source = async {
        let source = sources::open(options, docker, &waits).await;
        opened.cancel();
        source
    };
    // Until then the admin socket says what the agent waits for.
    let socket = async {
        let view = View::starting(options.return_mode);
        let doctor = doctor_options(options, Scheduler::Orchestrator);
        let path = &options.admin_socket;
        Ok(admin::serve_waiting(path, view, waiting, doctor, opened.clone()).await?)
    };
    let opening = async { tokio::try_join!(source, socket).map(|(source, ())| source) };
    tokio::pin!(opening);
    let mut alive = interval(WAITING_INTERVAL);
    loop {
        tokio::select! {
            source = &mut opening => return source.map(Some),
            request = signals.next() => match request {
                Request::Stop => return Ok(None),
                Request::Reload => {}
            },
            // An agent that has executed another program is still watched.
            _ = alive.tick() => service_manager::watchdog(),
        }
    }
}
