//! The leader's own picture of the cluster: what the control loops decide is applied to it, stored under the
//! lead, and whatever others do is taken over from the mirror. Imports `loops`, `mirror` and `draft`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::{
    ChangeError, Cluster, LeaderConfig, Registration, draft,
    mirror::{Mirror, News},
    silence::Silence,
    stored::Name,
};
use crate::{
    commands,
    loops::Controller,
    objects::{NodeId, ObjectChange, Refused, State, Timestamp},
    store::{Revision, membership::Leadership},
};

/// The control loops at work for one term.
#[derive(Debug)]
pub(super) struct Control {
    cluster: Cluster,
    controller: Controller,
    registrations: BTreeMap<NodeId, Registration>,
    /// The mirror's revision that the controller was last like.
    synced: Revision,
    news: broadcast::Receiver<Arc<News>>,
    /// Objects that may be other in the mirror than here.
    touched: BTreeSet<Name>,
    /// All of them may be.
    anew: bool,
    silence: Silence,
}

/// Whether the loops may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// What they look at is what the store has.
    Consistent,
    /// What the store has is half a backup, or cannot be read.
    Inconsistent,
}

impl Control {
    /// Begins with what the mirror has.
    pub(super) fn new(cluster: &Cluster, config: &LeaderConfig) -> Self {
        let patience = config.heartbeat.time_to_live();
        let silence = Silence::new(patience, config.settle, cluster.clock().now());
        let mirror = cluster.mirror();
        Self {
            cluster: cluster.clone(),
            controller: Controller::new(mirror.state().clone()),
            registrations: mirror.registrations().clone(),
            synced: mirror.revision(),
            news: cluster.inner.news.subscribe(),
            touched: BTreeSet::new(),
            anew: false,
            silence,
        }
    }

    /// Takes over what the mirror has learned, and what of our own doing has not become true.
    pub(super) fn sync(&mut self) -> Consistency {
        let cluster = self.cluster.clone();
        // Nothing is told while it is held: what is drained now is all that the mirror has.
        let mirror = cluster.mirror();
        let mut anew = std::mem::take(&mut self.anew);
        loop {
            match self.news.try_recv() {
                Ok(news) => {
                    anew |= news.anew;
                    self.touched.extend(news.touched.iter().cloned());
                }
                Err(TryRecvError::Lagged(_)) => anew = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let touched = std::mem::take(&mut self.touched);
        if !anew {
            if touched.iter().any(|name| matches!(name, Name::Registration(_))) {
                self.registrations = mirror.registrations().clone();
            }
            let differences = differences(self.controller.state(), &mirror, &touched);
            anew = differences
                .iter()
                .any(|change| self.controller.apply(change).is_err());
        }
        if anew {
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

    /// Lets the loops decide, and stores what they have decided. Answers when to do so again if nothing
    /// happens before; at once, if it is in the past.
    ///
    /// # Errors
    /// As [`Cluster::commit`]. What was not stored is undone by the next [`Self::sync`].
    pub(super) async fn step(&mut self, leadership: &Leadership) -> Result<Option<Timestamp>, ChangeError> {
        let stepped = self.decide_and_store(leadership).await;
        if stepped.is_err() {
            self.controller.undo();
        }
        stepped
    }

    async fn decide_and_store(&mut self, leadership: &Leadership) -> Result<Option<Timestamp>, ChangeError> {
        let now = self.cluster.clock().now();
        let mut changes = Vec::new();
        let found = self
            .silence
            .look(self.controller.state(), &self.registrations, now);
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
        if changes.is_empty() {
            return Ok(wake_at);
        }
        self.touched.extend(changes.iter().map(name));
        let drafted = {
            let author = self.cluster.author("orchestrator", "rollback");
            let mirror = self.cluster.mirror();
            draft::draft_since(&mirror, &author, &changes, self.synced)?
        };
        let (revision, committed) = self.cluster.commit(&drafted.batches, Some(leadership)).await;
        // Before all of it is in the mirror, a loop would find that nothing was done and do it again, with
        // other tasks.
        self.cluster.reach_surely(revision).await;
        committed.map(|()| wake_at)
    }

    /// Runs the loops where they hold up nobody: tens of thousands of tasks take seconds.
    async fn decide(&mut self, now: Timestamp) -> Result<Vec<ObjectChange>, Refused> {
        let seed = self.cluster.clock().seed();
        let mut controller = std::mem::take(&mut self.controller);
        let decided = tokio::task::spawn_blocking(move || {
            let decided = controller.step(now, seed);
            (controller, decided)
        });
        match decided.await {
            Ok((controller, decided)) => {
                self.controller = controller;
                // A fault of ours. What was applied until then is in no list: everything is to be looked
                // at again.
                self.anew |= decided.is_err();
                decided
            }
            Err(error) => {
                tracing::error!(%error, "the control loops have failed; they begin anew");
                self.anew = true;
                Ok(Vec::new())
            }
        }
    }

    /// Waits until there is news.
    pub(super) async fn news(&mut self) {
        match self.news.recv().await {
            Ok(news) => {
                self.anew |= news.anew;
                self.touched.extend(news.touched.iter().cloned());
            }
            Err(RecvError::Lagged(_)) => self.anew = true,
            // The cluster's handle is ours: it cannot be closed.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// What has to be done to a state so that some objects are as the mirror has them.
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
            Name::Guard | Name::Registration(_) | Name::Leader | Name::Restore | Name::Other => {}
        }
    }
    gone.append(&mut put);
    gone
}

/// The object that a change is about.
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
