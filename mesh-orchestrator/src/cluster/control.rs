//! The leader's own copy of the state: the control loops' decisions are applied to it and committed under the
//! leadership fence, and changes of others are copied from the mirror. Imports `loops`, `mirror` and `draft`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::broadcast::{
        self,
        error::{RecvError, TryRecvError},
    },
};

use super::{
    ChangeError, Cluster, Registration,
    draft::{self, Drafted},
    liveness::Liveness,
    mirror::{Mirror, Update},
    stored::{self, Name},
};
use crate::{
    commands,
    loops::Controller,
    objects::{NodeId, ObjectChange, Refused, State, TaskId, Timestamp},
    store::{Revision, membership::Leadership},
};

/// The control loops during one term.
#[derive(Debug)]
pub(super) struct Control {
    cluster: Cluster,
    controller: Controller,
    registrations: BTreeMap<NodeId, Registration>,
    /// The mirror's revision of the last [`Self::sync`].
    synced: Revision,
    updates: broadcast::Receiver<Arc<Update>>,
    /// Objects that may differ from the mirror.
    touched: BTreeSet<Name>,
    /// Services and nodes with an object that the store does not accept. Decisions about them are made
    /// and not stored, so that they hold up nothing else, until someone changes them.
    aside: BTreeSet<Name>,
    /// Whether all objects may differ.
    is_stale: bool,
    liveness: Liveness,
}

/// Whether the loops may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Their state is the store's.
    Consistent,
    /// A backup is being restored, or an object cannot be read.
    Inconsistent,
}

impl Control {
    /// Starts from the mirror's state.
    pub(super) fn new(cluster: &Cluster, liveness: Liveness) -> Self {
        let mirror = cluster.mirror();
        Self {
            cluster: cluster.clone(),
            controller: Controller::new(mirror.state().clone()),
            registrations: mirror.registrations().clone(),
            synced: mirror.revision(),
            updates: cluster.inner.updates.subscribe(),
            touched: BTreeSet::new(),
            aside: BTreeSet::new(),
            is_stale: false,
            liveness,
        }
    }

    /// Copies from the mirror what others have changed, and undoes our own changes that were not committed.
    pub(super) fn sync(&mut self) -> Consistency {
        let cluster = self.cluster.clone();
        // No update is published while the lock is held, so the channel has all that the mirror has.
        let mirror = cluster.mirror();
        let mut is_stale = std::mem::take(&mut self.is_stale);
        loop {
            match self.updates.try_recv() {
                Ok(update) => {
                    is_stale |= update.is_complete;
                    self.touched.extend(update.touched.iter().cloned());
                }
                Err(TryRecvError::Lagged(_)) => is_stale = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let touched = std::mem::take(&mut self.touched);
        // What was decided in the meantime is not in the store.
        let before = self.aside.len();
        self.aside.retain(|name| !touched.contains(name));
        is_stale |= self.aside.len() < before;
        if !is_stale {
            if touched.iter().any(|name| matches!(name, Name::Registration(_))) {
                self.registrations = mirror.registrations().clone();
            }
            let differences = differences(self.controller.state(), &mirror, &touched);
            is_stale = differences
                .iter()
                .any(|change| self.controller.apply(change).is_err());
        }
        if is_stale {
            self.controller = Controller::new(mirror.state().clone());
            self.registrations = mirror.registrations().clone();
        }
        self.synced = mirror.revision();
        if mirror.is_restoring() || !mirror.unreadable().is_empty() {
            Consistency::Inconsistent
        } else {
            Consistency::Consistent
        }
    }

    /// Lets the loops decide, and commits their decisions. Returns when to call this again if nothing changes
    /// before; immediately, if that is in the past.
    ///
    /// # Errors
    /// As [`Cluster::commit`]. The next [`Self::sync`] undoes what was not committed.
    pub(super) async fn step(&mut self, leadership: &Leadership) -> Result<Option<Timestamp>, ChangeError> {
        let stepped = self.decide_and_store(leadership).await;
        if stepped.is_err() {
            self.controller.undo();
        }
        stepped
    }

    async fn decide_and_store(&mut self, leadership: &Leadership) -> Result<Option<Timestamp>, ChangeError> {
        let now = self.cluster.clock().now();
        let held = self.held();
        let mut changes = Vec::new();
        let found = self
            .liveness
            .check(self.controller.state(), &self.registrations, now);
        for (node, status) in found.statuses {
            tracing::info!(%node, %status, "a node's status has changed");
            let planned = commands::set_node_status(self.controller.state(), &node, status, now)?;
            self.touched.extend(planned.iter().map(name));
            for change in &planned {
                self.controller.apply(change)?;
            }
            changes.extend(planned);
        }
        changes.extend(self.decide(now).await?);
        let wake_at = [self.controller.wake_at(), found.wake_at]
            .into_iter()
            .flatten()
            .min();
        let drafted = self.draft(&mut changes, &held);
        // Also if this failed: what is not stored is undone.
        self.touched.extend(changes.iter().map(name));
        let drafted = drafted?;
        if drafted.batches.is_empty() {
            return Ok(wake_at);
        }
        let (revision, committed) = self.cluster.commit(&drafted.batches, Some(leadership)).await;
        // Until the mirror has all of it, a loop would not see its own changes and repeat them with new
        // tasks.
        self.cluster.wait_for(revision).await;
        committed.map(|()| wake_at)
    }

    /// The tasks of services that are set aside. Some may not be in the store.
    fn held(&self) -> BTreeSet<TaskId> {
        let tasks = self.controller.state().tasks().values();
        match self.aside.is_empty() {
            true => BTreeSet::new(),
            false => tasks
                .filter(|task| self.aside.contains(&Name::Service(task.service.clone())))
                .map(|task| task.id.clone())
                .collect(),
        }
    }

    /// Drafts changes, and removes those from the list whose subject is or has to be set aside.
    fn draft(
        &mut self,
        changes: &mut Vec<ObjectChange>,
        held: &BTreeSet<TaskId>,
    ) -> Result<Drafted, ChangeError> {
        let author = self.cluster.author("orchestrator", "rollback");
        let seed = self.cluster.clock().seed();
        loop {
            let mirror = self.cluster.mirror();
            // A task that the loops have just removed is in the mirror.
            let subject = |change: &ObjectChange| subject(&[self.controller.state(), mirror.state()], change);
            changes.retain(|change| match subject(change) {
                Name::Task(id) => !held.contains(&id),
                name => !self.aside.contains(&name),
            });
            let error = match draft::draft_since(&mirror, &author, changes, self.synced, seed) {
                Err(error @ ChangeError::TooLarge { .. }) => error,
                drafted => return drafted,
            };
            let ChangeError::TooLarge { key, .. } = &error else {
                return Err(error);
            };
            let found = match stored::name(key) {
                Name::Spec(service, _) => Some(Name::Service(service)),
                too_large => {
                    let found = changes.iter().find(|change| name(change) == too_large);
                    found.map(subject).filter(|name| !matches!(name, Name::Task(_)))
                }
            };
            drop(mirror);
            let Some(aside) = found else {
                return Err(error);
            };
            let service = match &aside {
                Name::Service(id) => self.controller.state().service(id),
                _ => None,
            };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                service = service.map(|service| service.spec.name.as_str()),
                "the store does not accept an object: it is left as it is until someone changes or removes it"
            );
            self.aside.insert(aside);
        }
    }

    /// Runs the loops on a blocking thread: tens of thousands of tasks take seconds. Not where there is one
    /// thread only, as in a simulation, which would depend on when another one is done.
    async fn decide(&mut self, now: Timestamp) -> Result<Vec<ObjectChange>, Refused> {
        let seed = self.cluster.clock().seed();
        let mut controller = std::mem::take(&mut self.controller);
        let work = move || {
            let decided = controller.step(now, seed);
            (controller, decided)
        };
        let decided = match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => Ok(work()),
            _ => tokio::task::spawn_blocking(work).await,
        };
        match decided {
            Ok((controller, decided)) => {
                self.controller = controller;
                // A bug. What was applied until then is not listed, so compare everything.
                self.is_stale |= decided.is_err();
                decided
            }
            Err(error) => {
                tracing::error!(%error, "the control loops panicked; they start over");
                self.is_stale = true;
                Ok(Vec::new())
            }
        }
    }

    /// Waits until the mirror changes.
    pub(super) async fn changed(&mut self) {
        match self.updates.recv().await {
            Ok(update) => {
                self.is_stale |= update.is_complete;
                self.touched.extend(update.touched.iter().cloned());
            }
            Err(RecvError::Lagged(_)) => self.is_stale = true,
            // The sender is in our handle, so the channel is open.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The changes that make some objects as they are in the mirror.
fn differences(state: &State, mirror: &Mirror, touched: &BTreeSet<Name>) -> Vec<ObjectChange> {
    let target = mirror.state();
    let (mut gone, mut put) = (Vec::new(), Vec::new());
    for name in touched {
        match name {
            Name::Service(id) => match (state.service(id), target.service(id)) {
                (Some(_), None) => gone.push(ObjectChange::RemoveService(id.clone())),
                (before, Some(after)) if before != Some(after) => {
                    put.push(ObjectChange::PutService(after.clone()));
                }
                _ => {}
            },
            Name::Node(id) => match (state.nodes().get(id), target.nodes().get(id)) {
                (Some(_), None) => gone.push(ObjectChange::RemoveNode(id.clone())),
                (before, Some(after)) if before != Some(after) => {
                    put.push(ObjectChange::PutNode(Box::new(after.clone())));
                }
                _ => {}
            },
            Name::Task(id) => match (state.tasks().get(id), target.tasks().get(id)) {
                (Some(_), None) => gone.push(ObjectChange::RemoveTask(id.clone())),
                (before, Some(after)) if before != Some(after) => {
                    put.push(ObjectChange::PutTask(Box::new(after.clone())));
                }
                _ => {}
            },
            Name::Ports => {
                if state.port_ledger() != target.port_ledger() {
                    put.push(ObjectChange::PutPorts(target.port_ledger().clone()));
                }
            }
            Name::Spec(..)
            | Name::Guard
            | Name::Registration(_)
            | Name::Leader
            | Name::Restore
            | Name::Other => {}
        }
    }
    gone.append(&mut put);
    gone
}

/// What is set aside if the store does not accept a change: a task's whole service. Of a task that is in
/// none of the states the service is not known.
fn subject(states: &[&State], change: &ObjectChange) -> Name {
    match change {
        ObjectChange::CreateTask(task) | ObjectChange::PutTask(task) => Name::Service(task.service.clone()),
        _ => match name(change) {
            Name::Task(id) => match states.iter().find_map(|state| state.tasks().get(&id)) {
                Some(task) => Name::Service(task.service.clone()),
                None => Name::Task(id),
            },
            other => other,
        },
    }
}

/// The object that a change affects.
fn name(change: &ObjectChange) -> Name {
    match change {
        ObjectChange::PutService(service) => Name::Service(service.id.clone()),
        ObjectChange::RemoveService(id) => Name::Service(id.clone()),
        ObjectChange::PutNode(node) => Name::Node(node.id.clone()),
        ObjectChange::RemoveNode(id) => Name::Node(id.clone()),
        ObjectChange::PutPorts(_) => Name::Ports,
        ObjectChange::CreateTask(task) | ObjectChange::PutTask(task) => Name::Task(task.id.clone()),
        ObjectChange::Assign { task, .. }
        | ObjectChange::SetDesired { task, .. }
        | ObjectChange::Observe { task, .. } => Name::Task(task.clone()),
        ObjectChange::GiveUp(task) | ObjectChange::RemoveTask(task) => Name::Task(task.clone()),
    }
}
