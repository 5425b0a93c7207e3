//! A simulated agent: takes its node's tasks through their states as a real one would, without containers.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use mesh_orchestrator::{
    cluster::{Cluster, LeaderConfig, Member, Registration},
    objects::{Node, NodeId, NodeRole, Task, TaskId, TaskState, TaskStatus},
    spec::{Platform, Resources},
};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    QUICK,
    lab::{Handle, Lab, open},
};

/// A machine of the cluster, with a runtime of its own so that it can be switched off.
#[derive(Debug)]
pub struct Machine {
    /// Its handle on the cluster.
    pub handle: Handle,
    /// Its identifier.
    pub node: NodeId,
    member: Option<Member>,
    /// The tasks that have a container.
    running: Arc<Mutex<BTreeSet<TaskId>>>,
    _stop: DropGuard,
    runtime: Option<Runtime>,
    has_leases: bool,
}

impl Machine {
    /// Starts a node with an agent; a manager also campaigns for leadership.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn start(lab: &Lab, name: &str, role: NodeRole) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let store = lab.store_on(&runtime).await?;
        let handle = runtime.spawn(open(store)).await??;
        let stop = CancellationToken::new();
        let running = Arc::new(Mutex::default());
        let member = {
            let _inside = runtime.enter();
            Member::start(&handle.cluster, description(name, role), registration(), QUICK)?
        };
        let node = NodeId::from(name);
        runtime.spawn(work(
            handle.cluster.clone(),
            node.clone(),
            Arc::clone(&running),
            stop.clone(),
        ));
        if role == NodeRole::Manager {
            let config = LeaderConfig {
                heartbeat: QUICK,
                ..LeaderConfig::new(node.clone())
            };
            let (cluster, stop) = (handle.cluster.clone(), stop.clone());
            runtime.spawn(async move { cluster.run_candidate(config, stop).await });
        }
        Ok(Self {
            handle,
            node,
            member: Some(member),
            running,
            _stop: stop.drop_guard(),
            runtime: Some(runtime),
            has_leases: lab.has_leases(),
        })
    }

    /// Its membership of the cluster.
    ///
    /// # Errors
    /// When it has left.
    pub fn member(&self) -> Result<&Member> {
        self.member.as_ref().context("the node has left the cluster")
    }

    /// Lets a task's container die.
    pub fn fail(&self, task: &TaskId) {
        let mut status = TaskStatus::new(
            TaskState::Failed,
            self.handle.cluster.clock().now(),
            "the container died",
        );
        status.exit_code = Some(1);
        // Report first: otherwise the agent would find the container gone without a reason.
        self.handle.cluster.report(task.clone(), status);
        self.containers().remove(task);
    }

    fn containers(&self) -> std::sync::MutexGuard<'_, BTreeSet<TaskId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the agent, which announces that it will be back.
    pub async fn leave(mut self) {
        if let (Some(member), Some(runtime)) = (self.member.take(), &self.runtime) {
            let _ = runtime.spawn(member.leave()).await;
        }
    }

    /// Cuts the machine's power: nothing is released.
    pub fn crash(mut self) {
        if self.has_leases
            && let Some(runtime) = self.runtime.take()
        {
            // Its tasks are dropped wherever they are and cannot reach the store any more.
            let ending = std::thread::spawn(move || {
                runtime.shutdown_timeout(std::time::Duration::from_millis(1));
            });
            let _ = ending.join();
        }
        // The embedded store is in this process, so dropping the agent's objects is all that a crash does.
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            if let Some(member) = self.member.take() {
                drop(member);
            }
            if self.has_leases {
                runtime.shutdown_background();
            } else {
                // Tasks of this runtime release the embedded store's leases.
                std::thread::spawn(move || {
                    runtime.block_on(async {
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    });
                });
            }
        }
    }
}

/// What a healthy agent registers.
#[must_use]
pub fn registration() -> Registration {
    Registration {
        engine: true,
        datapath: "ebpf".to_owned(),
        ..Registration::default()
    }
}

/// A node of 8 CPUs and 16 GiB.
#[must_use]
pub fn description(name: &str, role: NodeRole) -> Node {
    Node {
        id: NodeId::from(name),
        hostname: format!("{name}-host"),
        address: "192.0.2.1".to_owned(),
        role,
        labels: Default::default(),
        engine_labels: Default::default(),
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
        },
        resources: Resources {
            nano_cpus: 8_000_000_000,
            memory_bytes: 16 << 30,
        },
        availability: Default::default(),
        status: Default::default(),
        status_since: Default::default(),
        returned_at: None,
    }
}

/// Advances the node's tasks whenever anything has changed.
async fn work(
    cluster: Cluster,
    node: NodeId,
    running: Arc<Mutex<BTreeSet<TaskId>>>,
    stop: CancellationToken,
) {
    let mut changes = cluster.changes();
    loop {
        changes.mark_unchanged();
        let tasks: Vec<Task> = cluster.read(|state| {
            let ours = state.tasks_on(&node).into_iter().flat_map(|index| &index.tasks);
            ours.filter_map(|id| state.tasks().get(id)).cloned().collect()
        });
        for task in tasks
            .iter()
            .filter(|task| task.status.state >= TaskState::Assigned)
        {
            let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
            advance(&cluster, task, &mut running);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

fn advance(cluster: &Cluster, task: &Task, running: &mut BTreeSet<TaskId>) {
    let now = cluster.clock().now();
    let report = |state: TaskState| {
        let status = TaskStatus::new(state, now, "simulated");
        cluster.report(task.id.clone(), status);
    };
    if !task.desired.is_wanted() {
        running.remove(&task.id);
        report(TaskState::Shutdown);
        return;
    }
    if task.status.state == TaskState::Running && !running.contains(&task.id) {
        // As after a power loss: the store has it as running, the engine has no container for it.
        let status = TaskStatus::new(TaskState::Failed, now, "its container is gone");
        cluster.report(task.id.clone(), status);
        return;
    }
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Ready] {
        report(state);
    }
    if task.desired == TaskState::Ready || task.status.state >= TaskState::Running {
        return;
    }
    running.insert(task.id.clone());
    report(TaskState::Starting);
    report(TaskState::Running);
    if task.desired == TaskState::Complete {
        report(TaskState::Complete);
    }
}
