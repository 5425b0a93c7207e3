//! This node's tasks: what the store wants of them is done in the engine, and what becomes of them is
//! reported. Depends on the runtime, the cluster's objects and the vault; decides by `machine` alone.
//!
//! Invariants: while the engine does not answer nothing is reported, for nothing is known; a container that
//! this node has not made is never touched.

mod addresses;
mod agent;
mod connections;
mod files;
mod machine;
mod prepare;
mod prepare_agent;
mod probe;
mod step;
mod task_memory;

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::StreamExt;
use mesh_orchestrator::{
    cluster::Cluster,
    objects::{NodeId, TaskId},
    secrets::Vault,
};
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
    machine::Work,
    prepare::{Preparation, WorkError},
    task_memory::TaskMemory,
};
use super::runtime::{ContainerFacts, Health, Runtime, RuntimeError, now};
use crate::{discovery::ContainerState, error::error_chain, program::Programs, source::Backoff};

/// The containers are listed again this often, whatever the engine's events say.
const RELIST: Duration = Duration::from_secs(15);
/// Between attempts at what the engine has failed to do.
const RETRY: Duration = Duration::from_secs(2);
/// Verdicts of probes that may wait.
const VERDICTS: usize = 64;

/// What a worker needs.
#[derive(Debug)]
pub(crate) struct WorkerOptions {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cluster: Cluster,
    pub(crate) vault: Arc<Vault>,
    pub(crate) node: NodeId,
    pub(crate) block: AddressBlock,
    /// What the mesh has found of this node's containers.
    pub(crate) found: watch::Receiver<ContainerState>,
    /// Folder of secrets and configs, in memory.
    pub(crate) files: PathBuf,
    /// How long the connections of a replica that is to stop may go on.
    pub(crate) drain_time: Duration,
    /// Told whether the engine answers.
    pub(crate) engine: watch::Sender<bool>,
    /// The agent's own programs, …
    pub(crate) programs: Arc<Programs>,
    /// … whether this one has proven itself, …
    pub(crate) proven: watch::Receiver<bool>,
    /// … and where to ask for it to give way to another one.
    pub(crate) replace: CancellationToken,
}

/// Runs this node's tasks.
#[derive(Debug)]
pub(crate) struct Worker {
    options: WorkerOptions,
    files: TaskFiles,
    memories: BTreeMap<TaskId, TaskMemory>,
    /// Containers by task, as the engine last told.
    containers: BTreeMap<TaskId, ContainerFacts>,
    works: JoinSet<Done>,
    verdicts: (mpsc::Sender<Verdict>, mpsc::Receiver<Verdict>),
    last_address: Option<Ipv4Addr>,
}

/// What a probe has found of a task's container.
type Verdict = (TaskId, Health);

/// Something that was under way has ended.
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
            verdicts: mpsc::channel(VERDICTS),
            last_address: None,
        }
    }

    /// Runs until cancelled; survives every failure of the engine. Containers run on afterwards.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut said = false;
        loop {
            let Some(error) = shutdown
                .run_until_cancelled(self.follow(&mut backoff, &mut said))
                .await
            else {
                return;
            };
            self.options.engine.send_replace(false);
            if !said {
                warn!(
                    error = error_chain(&error),
                    "the engine does not answer; what becomes of this node's tasks is not known until it does"
                );
                said = true;
            }
            let pause = tokio::time::sleep(backoff.next());
            if shutdown.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self, backoff: &mut Backoff, said: &mut bool) -> RuntimeError {
        match self.try_follow(backoff, said).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_follow(
        &mut self,
        backoff: &mut Backoff,
        said: &mut bool,
    ) -> Result<std::convert::Infallible, RuntimeError> {
        let runtime = Arc::clone(&self.options.runtime);
        // First the events, then the list: what changes in between is then seen twice, not never.
        let mut events = runtime.changes(&self.options.node).await?;
        self.relist().await?;
        backoff.reset();
        self.options.engine.send_replace(true);
        if std::mem::take(said) {
            info!("the engine answers again");
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
                    Some(id) => self.refresh(&id).await?,
                    None => return Err(RuntimeError::Gone("event stream".to_owned())),
                },
                Some(done) = self.works.join_next() => if let Ok(done) = done {
                    self.done(done).await?;
                },
                Some((task, health)) = self.verdicts.1.recv() => {
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
        let containers = self.options.runtime.containers(&self.options.node).await?;
        self.containers = containers
            .into_iter()
            .map(|facts| (facts.task.clone(), facts))
            .collect();
        Ok(())
    }

    async fn refresh(&mut self, id: &str) -> Result<(), RuntimeError> {
        match self.options.runtime.container(id).await? {
            Some(facts) => drop(self.containers.insert(facts.task.clone(), facts)),
            None => self.containers.retain(|_, facts| facts.id != id),
        }
        Ok(())
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
                debug!(%task, ?work, error = text, "refused");
                memory.refused = Some(text);
            }
            _ => {
                warn!(%task, ?work, error = text, "the engine has not done it; trying again");
                memory.not_before = Some(now() + RETRY);
            }
        }
        // Whatever has come of it counts; a container may have been made, or have ended, all the same.
        self.relist().await?;
        let has_container = self.containers.contains_key(&task) && !self.is_agent(&task);
        if work == Work::Prepare && has_container {
            self.memories.entry(task).or_default().refused = None;
        }
        Ok(())
    }
}
