//! Runs this node's tasks: brings the engine's containers to the desired state in the store, and reports
//! their state. `machine` and `agent` make every decision. What the engine takes long for runs beside the
//! loop.
//!
//! Invariants: nothing is reported while the engine does not answer; a container that this node did not
//! create is never touched.

mod act;
mod addresses;
mod agent;
mod connections;
mod files;
mod inspections;
mod machine;
mod prepare;
mod prepare_agent;
mod probe;
mod step;
mod task_memory;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use mesh_orchestrator::{
    cluster::Cluster,
    objects::{NodeId, TaskId},
    secrets::Secrets,
};
use mesh_support::error_chain;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::addresses::AddressBlock;
pub(super) use self::prepare::credential;
use self::{
    files::TaskFiles,
    inspections::{Inspected, Inspections},
    machine::Work,
    prepare::{Preparation, WorkError},
    task_memory::TaskMemory,
};
use super::{
    program::Programs,
    runtime::{ContainerFacts, Health, Runtime, RuntimeError, now},
};
use crate::{backoff::Backoff, discovery::ContainerState};

/// How often all containers are listed, in addition to the engine's events.
const RELIST: Duration = Duration::from_secs(15);
/// Pause after a request that the engine failed to carry out.
const RETRY: Duration = Duration::from_secs(2);
/// Capacity of the channel for probe results.
const PROBE_RESULTS: usize = 64;

/// A worker's dependencies and settings.
#[derive(Debug)]
pub(crate) struct WorkerOptions {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cluster: Cluster,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) node: NodeId,
    pub(crate) block: AddressBlock,
    /// The containers that the mesh found on this node.
    pub(crate) found: watch::Receiver<ContainerState>,
    /// Folder for secrets and configs, in memory.
    pub(crate) files: PathBuf,
    /// How long a stopping replica keeps its open connections.
    pub(crate) drain_time: Duration,
    /// Set to whether the engine answers.
    pub(crate) engine: watch::Sender<bool>,
    /// The agent's own programs.
    pub(crate) programs: Arc<Programs>,
    /// Whether the running program is past its trial.
    pub(crate) proven: watch::Receiver<bool>,
    /// Cancelled to replace the agent by another program.
    pub(crate) replace: CancellationToken,
}

/// Runs this node's tasks.
#[derive(Debug)]
pub(crate) struct Worker {
    options: WorkerOptions,
    files: TaskFiles,
    memories: BTreeMap<TaskId, TaskMemory>,
    /// Containers by task, as the engine last reported them.
    containers: BTreeMap<TaskId, ContainerFacts>,
    works: JoinSet<Done>,
    inspections: Inspections,
    probe_results: (mpsc::Sender<ProbeResult>, mpsc::Receiver<ProbeResult>),
    last_address: Option<Ipv4Addr>,
}

/// A probe's result for a task's container.
type ProbeResult = (TaskId, Health);

/// The end of one piece of work.
#[derive(Debug)]
struct Done {
    task: TaskId,
    work: Work,
    /// The container as it is now; `None` if it is gone.
    result: Result<Preparation, WorkError>,
}

impl Worker {
    pub(crate) fn new(options: WorkerOptions) -> Self {
        Self {
            files: TaskFiles::new(options.files.clone()),
            options,
            memories: BTreeMap::new(),
            containers: BTreeMap::new(),
            works: JoinSet::new(),
            inspections: Inspections::default(),
            probe_results: mpsc::channel(PROBE_RESULTS),
            last_address: None,
        }
    }

    /// Runs until cancelled; survives every failure of the engine. Containers keep running afterwards.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut warned = false;
        loop {
            let Some(error) = shutdown
                .run_until_cancelled(self.follow(&mut backoff, &mut warned))
                .await
            else {
                return;
            };
            self.options.engine.send_replace(false);
            if !warned {
                warn!(
                    error = error_chain(&error),
                    "Docker does not answer; the state of this node's tasks is unknown until it does"
                );
                warned = true;
            }
            let pause = tokio::time::sleep(backoff.next());
            if shutdown.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff, warned: &mut bool) -> RuntimeError {
        match self.try_follow(backoff, warned).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_follow(
        &mut self,
        backoff: &mut Backoff,
        warned: &mut bool,
    ) -> Result<std::convert::Infallible, RuntimeError> {
        let runtime = Arc::clone(&self.options.runtime);
        // Subscribe first, list afterwards: changes in between are seen twice, not never.
        let mut events = runtime.changes(&self.options.node).await?;
        self.relist().await?;
        backoff.reset();
        self.options.engine.send_replace(true);
        if std::mem::take(warned) {
            info!("Docker answers again");
        }
        let mut changes = self.options.cluster.changes();
        let mut relist_at = Instant::now() + RELIST;
        loop {
            changes.mark_unchanged();
            self.options.found.mark_unchanged();
            let wake = self
                .step()
                .map_or(relist_at, |at| relist_at.min(Instant::now() + at.since(now())));
            tokio::select! {
                Ok(()) = changes.changed() => {}
                Ok(()) = self.options.found.changed() => {}
                Ok(()) = self.options.proven.changed() => {}
                event = events.next() => match event {
                    Some(id) => self.inspections.begin(&runtime, id),
                    None => return Err(RuntimeError::Gone("event stream".to_owned())),
                },
                Some(inspected) = self.inspections.next(&runtime) => self.inspected(inspected),
                Some(done) = self.works.join_next() => if let Ok(done) = done {
                    self.done(done).await?;
                },
                Some((task, health)) = self.probe_results.1.recv() => {
                    if let Some(probe) = self.memories.get_mut(&task).and_then(|memory| memory.probe.as_mut()) {
                        probe.health = health;
                    }
                }
                () = sleep_until(wake) => if Instant::now() >= relist_at {
                    self.relist().await?;
                    relist_at = Instant::now() + RELIST;
                },
            }
        }
    }

    async fn relist(&mut self) -> Result<(), RuntimeError> {
        let runtime = Arc::clone(&self.options.runtime);
        let listed = runtime.containers(&self.options.node).await?;
        let ids: BTreeSet<&str> = listed.iter().map(|listed| listed.id.as_str()).collect();
        self.containers.retain(|_, facts| ids.contains(facts.id.as_str()));
        for id in ids {
            self.inspections.begin(&runtime, id.to_owned());
        }
        self.inspections.list(listed, &self.containers);
        Ok(())
    }

    /// One that the engine does not describe stays as it was: the list and the events show whether the engine
    /// answers at all.
    fn inspected(&mut self, inspected: Inspected) {
        let Inspected { id, result } = inspected;
        match result {
            Ok(Some(facts)) => drop(self.containers.insert(facts.task.clone(), facts)),
            Ok(None) => self.containers.retain(|_, facts| facts.id != id),
            Err(_) => {}
        }
    }

    async fn done(&mut self, done: Done) -> Result<(), RuntimeError> {
        let Done { task, work, result } = done;
        if let Some(memory) = self.memories.get_mut(&task) {
            memory.in_progress = None;
        }
        let error = match result {
            Ok(Preparation {
                container,
                warning,
                programs,
            }) => {
                if let Some(memory) = self.memories.get_mut(&task) {
                    memory.programs = programs;
                    memory.warning = memory.warning.take().or(warning);
                }
                self.inspections.is_known(&task);
                let before = self.containers.get(&task);
                for facts in before.into_iter().chain(&container) {
                    self.inspections.outdate(&facts.id);
                }
                match container {
                    Some(facts) => drop(self.containers.insert(task, facts)),
                    None => drop(self.containers.remove(&task)),
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let text = error_chain(&error);
        let memory = self.memories.entry(task.clone()).or_default();
        match work {
            Work::Prepare | Work::Start if error.is_final() => {
                debug!(%task, ?work, error = text, "Docker refused it");
                memory.refused = Some(error.reason());
            }
            _ => {
                warn!(%task, ?work, error = text, "failed; trying again");
                memory.not_before = Some(now() + RETRY);
            }
        }
        // A failed request may still have created or ended a container.
        self.relist().await?;
        let has_container = (self.containers.contains_key(&task)
            || self.inspections.unknown(&task).is_some())
            && !self.is_agent(&task);
        if work == Work::Prepare && has_container {
            self.memories.entry(task).or_default().refused = None;
        }
        Ok(())
    }
}
