//! Inspections of containers beside the worker's loop: one that hangs holds up nothing but its own container.
//! Imports the runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_orchestrator::objects::TaskId;
use mesh_support::error_chain;
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{info, warn};

use super::super::runtime::{ContainerFacts, ContainerId, ListedContainer, Runtime, RuntimeError};

/// How the engine describes one container; `None` if it is gone.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) id: ContainerId,
    pub(super) result: Result<Option<ContainerFacts>, RuntimeError>,
}

/// How many containers the engine is asked about at the same time. A request has a time limit, so those that
/// hang hold up others for no longer.
const SIDE_BY_SIDE: usize = 16;

/// The inspections under way, at most one of each container, and the containers of which nothing is known
/// yet.
#[derive(Debug)]
pub(super) struct Inspections {
    under_way: JoinSet<Inspected>,
    limit: Arc<Semaphore>,
    /// By container: whether to inspect it once more, because it has changed since.
    again: BTreeMap<ContainerId, bool>,
    /// Listed containers that were never inspected. Nothing is decided about their tasks.
    unknown: BTreeMap<TaskId, ListedContainer>,
    /// Containers whose last inspection failed.
    silent: BTreeSet<ContainerId>,
}

impl Default for Inspections {
    fn default() -> Self {
        Self {
            under_way: JoinSet::new(),
            limit: Arc::new(Semaphore::new(SIDE_BY_SIDE)),
            again: BTreeMap::new(),
            unknown: BTreeMap::new(),
            silent: BTreeSet::new(),
        }
    }
}

impl Inspections {
    /// Inspects a container; one that is being inspected is inspected again afterwards.
    pub(super) fn begin(&mut self, runtime: &Arc<dyn Runtime>, id: ContainerId) {
        if let Some(again) = self.again.get_mut(&id) {
            *again = true;
            return;
        }
        self.again.insert(id.clone(), false);
        let (runtime, limit) = (Arc::clone(runtime), Arc::clone(&self.limit));
        self.under_way.spawn(async move {
            // It is never closed.
            let _permit = limit.acquire().await;
            let result = runtime.container(&id).await;
            Inspected { id, result }
        });
    }

    /// Makes the result of an inspection under way count for nothing: the container has changed.
    pub(super) fn outdate(&mut self, id: &str) {
        if let Some(again) = self.again.get_mut(id) {
            *again = true;
        }
    }

    /// Takes note of a complete list of the node's containers, and of those whose facts are known.
    pub(super) fn list(&mut self, listed: Vec<ListedContainer>, known: &BTreeMap<TaskId, ContainerFacts>) {
        self.silent
            .retain(|id| listed.iter().any(|listed| listed.id == *id));
        self.unknown = listed
            .into_iter()
            .filter(|listed| !known.contains_key(&listed.task))
            .map(|listed| (listed.task.clone(), listed))
            .collect();
    }

    /// The next answer of the engine that still counts; `None` while no inspection is under way.
    pub(super) async fn next(&mut self, runtime: &Arc<dyn Runtime>) -> Option<Inspected> {
        loop {
            let Ok(inspected) = self.under_way.join_next().await? else {
                continue;
            };
            let Inspected { id, result } = &inspected;
            if self.again.remove(id) == Some(true) {
                self.begin(runtime, id.clone());
                continue;
            }
            match result {
                Ok(_) => {
                    self.unknown.retain(|_, listed| listed.id != *id);
                    if self.silent.remove(id) {
                        info!(container = id, "Docker describes this container again");
                    }
                }
                Err(error) if self.silent.insert(id.clone()) => warn!(
                    container = id,
                    error = error_chain(error),
                    "Docker does not describe this container; what was known of it stays in force"
                ),
                Err(_) => {}
            }
            return Some(inspected);
        }
    }

    /// Forgets that nothing is known of a task's container: work with it has just shown how it is.
    pub(super) fn is_known(&mut self, task: &TaskId) {
        self.unknown.remove(task);
    }

    /// The container of a task of which nothing is known yet.
    pub(super) fn unknown(&self, task: &TaskId) -> Option<&ListedContainer> {
        self.unknown.get(task)
    }

    /// All containers of which nothing is known yet.
    pub(super) fn all_unknown(&self) -> impl Iterator<Item = &ListedContainer> {
        self.unknown.values()
    }
}
