//! Checks this node's replicas where their service asks for it (labels `mesh.health…`), by a connection from
//! the node to the container. The result is announced, so that every node sends new connections elsewhere.
//!
//! `state` decides, without clock or sockets; `attempt` makes one check, for the orchestrator as well.

pub(crate) mod attempt;
mod state;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use mesh_support::watched::Newest as _;
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    attempt::{Failure, Prober},
    state::{Change, Health},
};
use crate::model::{Cluster, Container, FailedChecks, HealthCheck, HealthProbe, TaskId, TaskState};

/// So many checks are made at the same time; the others wait, and their time limit begins later.
const AT_ONCE: usize = 32;
/// The first checks of many replicas are spread over so long.
const FIRST_WITHIN: Duration = Duration::from_millis(200);
/// A pause is up to this much shorter than the interval, so that checks do not stay in step.
const JITTER: f64 = 0.1;

/// The replicas to check.
pub type Targets = BTreeMap<TaskId, Target>;

/// A replica to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The task's name, for the log.
    pub name: String,
    /// The container's address on the interface that leads to the host.
    pub address: Ipv4Addr,
    /// How it is checked.
    pub check: HealthCheck,
}

/// This node's replicas whose service asks for checks. Those that are about to end get no new connections
/// anyway.
#[must_use]
pub fn targets(cluster: &Cluster, own: &str, containers: &BTreeMap<TaskId, Container>) -> Targets {
    let tasks = cluster.tasks.iter();
    tasks
        .filter(|(_, task)| task.node == own && task.state == TaskState::Active)
        .filter_map(|(id, task)| {
            let target = Target {
                name: task.name.clone(),
                address: containers.get(id)?.address,
                check: cluster.services.get(&task.service)?.health.clone()?,
            };
            Some((id.clone(), target))
        })
        .collect()
}

/// Checks the replicas until cancelled, and reports which fail.
pub async fn check(
    mut targets: watch::Receiver<Targets>,
    failed: watch::Sender<FailedChecks>,
    shutdown: CancellationToken,
) {
    let prober = match Prober::new() {
        Ok(prober) => prober,
        Err(error) => {
            let error = mesh_support::error_chain(&error);
            error!(error, "replicas cannot be checked: all count as healthy");
            return shutdown.cancelled().await;
        }
    };
    let checks = Checks {
        prober,
        slots: Arc::new(Semaphore::new(AT_ONCE)),
        failed,
        began: Instant::now(),
    };
    let mut tasks = JoinSet::new();
    let mut running = BTreeMap::<TaskId, (Target, AbortHandle)>::new();
    loop {
        let wanted = targets.newest();
        running.retain(|id, (target, handle)| {
            let stays = wanted.get(id) == Some(target);
            if !stays {
                handle.abort();
            }
            stays
        });
        // An aborted one may be about to report: afterwards, what it reported goes with it.
        while tasks.len() > running.len() && tasks.join_next().await.is_some() {}
        checks.forget_others(&running);
        for (id, target) in wanted {
            running.entry(id.clone()).or_insert_with(|| {
                let handle = tasks.spawn(checks.clone().keep_checking(id, target.clone()));
                (target, handle)
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = targets.changed() => if changed.is_err() {
                break;
            },
        }
    }
    tasks.shutdown().await;
}

/// What the checks of all replicas share.
#[derive(Clone)]
struct Checks {
    prober: Prober,
    slots: Arc<Semaphore>,
    failed: watch::Sender<FailedChecks>,
    began: Instant,
}

impl Checks {
    async fn keep_checking(self, id: TaskId, target: Target) {
        let mut health = Health::new();
        let check = &target.check;
        sleep(FIRST_WITHIN.min(check.interval).mul_f64(fastrand::f64())).await;
        loop {
            let (began, result) = self.once(&target).await;
            if let Some(change) = health.add(check, &result, self.began.elapsed()) {
                self.report(&id, &target, change, &result);
            }
            let pause = health.pause(check);
            sleep_until(began + pause.mul_f64(1.0 - JITTER * fastrand::f64())).await;
        }
    }

    async fn once(&self, target: &Target) -> (Instant, Result<(), Failure>) {
        // It is never closed.
        let _slot = self.slots.acquire().await;
        let began = Instant::now();
        let Target { address, check, .. } = target;
        let result = match &check.probe {
            HealthProbe::Tcp => self.prober.tcp(*address, check.port, check.timeout).await,
            HealthProbe::Http { path } => self.prober.http(*address, check.port, path, check.timeout).await,
        };
        (began, result)
    }

    fn report(&self, id: &TaskId, target: &Target, change: Change, result: &Result<(), Failure>) {
        let Target { name, check, .. } = target;
        self.failed.send_if_modified(|failed| match (change, result) {
            (Change::Out, Err(failure)) => {
                let reason = failure.to_string();
                let announced = failed.insert(id.clone(), &reason);
                if announced {
                    warn!(task = name, %check, reason, "a replica fails its check: new connections go to the others");
                } else {
                    let most = FailedChecks::MAX_TASKS;
                    error!(
                        task = name, %check, reason,
                        "a replica fails its check, and stays in rotation: {most} others of this node fail already"
                    );
                }
                announced
            }
            (Change::Back(time), _) => {
                let seconds = time.as_secs();
                info!(task = name, %check, "a replica passes its check again, after {seconds} s");
                failed.remove(id)
            }
            (Change::Out, Ok(())) => false,
        });
    }

    /// Forgets the replicas that are no longer checked.
    fn forget_others(&self, running: &BTreeMap<TaskId, (Target, AbortHandle)>) {
        self.failed.send_if_modified(|failed| {
            let gone: Vec<TaskId> = failed
                .iter()
                .map(|(id, _)| id.to_owned())
                .filter(|id| !running.contains_key(id))
                .collect();
            for id in &gone {
                failed.remove(id);
            }
            !gone.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
