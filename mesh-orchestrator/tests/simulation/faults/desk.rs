//! What a manager does for nodes without access to the store. What such a node may read and write is decided
//! in the library; the rest is as the agents do it, without the limits of numbers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use mesh_orchestrator::{
    cluster::{Cluster, WorkerError},
    objects::NodeId,
    store::{
        Heartbeat, Lease,
        remote::wire::{Answer, Failure, Request, Sent, transaction},
    },
};
use tokio::time::{Instant, sleep, timeout};

/// How long a client waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The managers whose agents run, by node.
pub(crate) type Desks = BTreeMap<NodeId, Desk>;

/// One run of a manager's agent, as workers see it.
#[derive(Clone)]
pub(crate) struct Desk {
    cluster: Cluster,
    pub(crate) is_cut: Arc<AtomicBool>,
    leases: Arc<Mutex<Vec<Held>>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// A worker's lease, which the manager renews as long as the worker's heartbeats arrive.
struct Held {
    worker: NodeId,
    lease: Arc<Lease>,
    until: Instant,
    time_to_live: Duration,
}

impl Desk {
    pub(crate) fn new(cluster: &Cluster, is_cut: &Arc<AtomicBool>) -> Self {
        Self {
            cluster: cluster.clone(),
            is_cut: Arc::clone(is_cut),
            leases: Arc::default(),
        }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Ends what workers no longer renew, forever.
    pub(crate) async fn keep(&self) {
        loop {
            sleep(Duration::from_secs(1)).await;
            let now = Instant::now();
            self.leases()
                .retain(|held| held.until > now && !held.lease.is_lost());
        }
    }

    /// Whether it is the same run of the same agent.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.leases, &other.leases)
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Held>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self, worker: &NodeId, id: i64) -> Option<Arc<Lease>> {
        let leases = self.leases();
        let is_it = |held: &&Held| held.worker == *worker && held.lease.id() == id && !held.lease.is_lost();
        leases.iter().find(is_it).map(|held| Arc::clone(&held.lease))
    }

    /// Does what the worker with a certificate of this name asks for.
    pub(crate) async fn answer(&self, name: &str, request: Request) -> Answer {
        let answered = async {
            let worker = self.cluster.worker(name)?;
            self.carry_out(&worker, request).await
        };
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(WorkerError::Store(error))) => Answer::Failed(error.into()),
            Ok(Err(WorkerError::Behind(error))) => Answer::Failed(Failure::Unavailable(error.to_string())),
            Ok(Err(error)) => Answer::Failed(Failure::Refused(error.to_string())),
            Err(_) => Answer::Failed(Failure::OutcomeUnknown("the manager took too long".to_owned())),
        }
    }

    async fn carry_out(&self, worker: &NodeId, request: Request) -> Result<Answer, WorkerError> {
        Ok(match request {
            Request::Get { key } => {
                let entry = self.cluster.worker_get(worker, &key).await?;
                Answer::Entry(entry.map(Sent::from))
            }
            Request::Commit {
                expected,
                writes,
                lease,
            } => {
                let lease = match lease {
                    None => None,
                    Some(id) => match self.lease(worker, id) {
                        Some(lease) => Some(lease),
                        None => return Ok(Answer::Failed(Failure::NoLease)),
                    },
                };
                let transaction = transaction(expected, writes);
                let committed = self
                    .cluster
                    .worker_commit(worker, &transaction, None, lease.as_deref());
                Answer::Revision(committed.await?)
            }
            Request::Lease { interval, missed } => {
                let heartbeat = Heartbeat {
                    interval: Duration::from_millis(interval),
                    missed,
                };
                let lease = self.cluster.store().lease(heartbeat).await?;
                let id = lease.id();
                self.leases().push(Held {
                    worker: worker.clone(),
                    lease: Arc::new(lease),
                    until: Instant::now() + heartbeat.time_to_live(),
                    time_to_live: heartbeat.time_to_live(),
                });
                Answer::Lease(id)
            }
            Request::Renew { lease } => {
                let mut leases = self.leases();
                let is_it = |held: &&mut Held| {
                    held.worker == *worker && held.lease.id() == lease && !held.lease.is_lost()
                };
                match leases.iter_mut().find(is_it) {
                    Some(held) => {
                        held.until = Instant::now() + held.time_to_live;
                        Answer::Done
                    }
                    None => Answer::Failed(Failure::NoLease),
                }
            }
            Request::Revoke { lease } => {
                self.leases()
                    .retain(|held| held.worker != *worker || held.lease.id() != lease);
                Answer::Done
            }
            Request::Reveal { .. } | Request::Block => {
                Answer::Failed(Failure::Refused("not in this simulation".to_owned()))
            }
        })
    }
}
