//! A machine: its containers, its clock and its agent, which can be killed at any step and started again.
//! The containers outlive the agent, and not the machine's power.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_orchestrator::{
    cluster::{Clock, Cluster, LeaderConfig, Member},
    commands::worker_id,
    objects::{Node, NodeId, NodeRole, Task, TaskId, TaskState, TaskStatus, Timestamp},
    store::{Heartbeat, Store, remote::RemoteStore},
};
use mesh_orchestrator_testing::agent::{description, registration};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    desk::Desk,
    line::Line,
    link::{Link, World},
    weather::Dice,
};

/// The start of a history: any time will do.
const START: Timestamp = Timestamp(1_700_000_000_000);

const HEARTBEAT: Heartbeat = Heartbeat {
    interval: Duration::from_secs(1),
    missed: 4,
};

/// A machine's clock, which may be ahead of the others.
#[derive(Debug)]
struct SkewedClock {
    dice: Dice,
    began: Instant,
    ahead: Duration,
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        START + self.began.elapsed() + self.ahead
    }

    fn seed(&self) -> u128 {
        let mut random = self.dice.random();
        u128::from(random.number()) << 64 | u128::from(random.number())
    }
}

/// What the machine's engine knows.
#[derive(Debug, Default)]
struct Engine {
    /// How each container ended, or `Running`.
    containers: BTreeMap<TaskId, TaskState>,
}

/// A machine of the cluster.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    role: NodeRole,
    /// Its name and address, if it reaches the store through managers only.
    remote: Option<(String, String)>,
    world: Arc<World>,
    clock: Arc<SkewedClock>,
    engine: Arc<Mutex<Engine>>,
    is_cut: Arc<AtomicBool>,
    agent: Option<Agent>,
}

/// One run of an agent.
#[derive(Debug)]
struct Agent {
    link: Link,
    cluster: Arc<Mutex<Option<Cluster>>>,
    stop: CancellationToken,
    work: JoinHandle<()>,
}

impl Machine {
    pub(crate) fn new(world: &Arc<World>, name: &str, role: NodeRole, began: Instant) -> Self {
        let ahead = world.dice.up_to(world.weather().clocks);
        Self {
            node: NodeId::from(name),
            role,
            remote: None,
            world: Arc::clone(world),
            clock: Arc::new(SkewedClock {
                dice: world.dice.clone(),
                began,
                ahead,
            }),
            engine: Arc::default(),
            is_cut: Arc::default(),
            agent: None,
        }
    }

    /// A node without access to the store.
    pub(crate) fn remote(world: &Arc<World>, number: u64, began: Instant) -> Self {
        let name = format!("remote{number}");
        Self {
            node: worker_id(&name),
            remote: Some((name.clone(), format!("192.0.2.{}", 100 + number))),
            ..Self::new(world, &name, NodeRole::Worker, began)
        }
    }

    /// The name of a node without access to the store.
    pub(crate) fn remote_name(&self) -> Option<&str> {
        self.remote.as_ref().map(|(name, _)| name.as_str())
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.agent.is_some()
    }

    /// The agent's view of the cluster, once it has one.
    pub(crate) fn cluster(&self) -> Option<Cluster> {
        let agent = self.agent.as_ref()?;
        agent
            .cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The tasks with a running container.
    pub(crate) fn running(&self) -> Vec<TaskId> {
        let engine = lock(&self.engine);
        let running = engine
            .containers
            .iter()
            .filter(|(_, state)| **state == TaskState::Running);
        running.map(|(task, _)| task.clone()).collect()
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        let link = Link::new(&self.world, &self.is_cut);
        let stop = CancellationToken::new();
        let store: Arc<dyn Store> = match self.remote_name() {
            None => Arc::new(link.clone()),
            Some(name) => {
                let line = Line::new(&self.world, name, &self.is_cut, link.death());
                Arc::new(RemoteStore::new(Arc::new(line)))
            }
        };
        let run = Run {
            store,
            node: self.node.clone(),
            role: self.role,
            remote: self.remote.clone(),
            is_cut: Arc::clone(&self.is_cut),
            world: Arc::clone(&self.world),
            clock: Arc::clone(&self.clock),
            engine: Arc::clone(&self.engine),
            stop: stop.clone(),
        };
        let cluster = Arc::default();
        let work = tokio::spawn(run.run(Arc::clone(&cluster)));
        self.agent = Some(Agent {
            link,
            cluster,
            stop,
            work,
        });
    }

    /// Kills the agent wherever it is; its containers keep running.
    pub(crate) fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.link.kill();
            agent.work.abort();
            self.world.desks().remove(&self.node);
        }
    }

    /// Stops the agent, which announces its return if it has the time.
    pub(crate) async fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop.cancel();
            let _ = tokio::time::timeout(Duration::from_secs(6), agent.work).await;
            agent.link.kill();
            self.world.desks().remove(&self.node);
        }
    }

    /// The machine loses its power, and its containers with it.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        for task in std::mem::take(&mut lock(&self.engine).containers).into_keys() {
            self.world.server().oracle.container_ends(&task);
        }
    }

    /// Whether the agent ended by itself, which it never should.
    pub(crate) fn has_failed(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.work.is_finished())
    }

    /// A container dies.
    pub(crate) fn crash_container(&self) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let index = self.world.dice.random().below(running.len() as u64);
        if let Some(task) = usize::try_from(index).ok().and_then(|index| running.get(index)) {
            lock(&self.engine)
                .containers
                .insert(task.clone(), TaskState::Failed);
            self.world.server().oracle.container_ends(task);
        }
    }
}

fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a running agent has.
struct Run {
    store: Arc<dyn Store>,
    node: NodeId,
    role: NodeRole,
    remote: Option<(String, String)>,
    is_cut: Arc<AtomicBool>,
    world: Arc<World>,
    clock: Arc<SkewedClock>,
    engine: Arc<Mutex<Engine>>,
    stop: CancellationToken,
}

impl Run {
    async fn run(self, handle: Arc<Mutex<Option<Cluster>>>) {
        let (cluster, upkeep) = loop {
            match Cluster::open(Arc::clone(&self.store), self.clock.clone()).await {
                Ok(opened) => break opened,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        };
        *handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster.clone());
        let mut registration = registration();
        if let Some((_, address)) = &self.remote {
            registration.address.clone_from(address);
        }
        let Ok(member) = Member::start(&cluster, self.describe(), registration, HEARTBEAT) else {
            return;
        };
        let working = CancellationToken::new();
        let campaign = async {
            if self.role == NodeRole::Manager {
                let config = LeaderConfig {
                    heartbeat: HEARTBEAT,
                    remember: Duration::from_secs(60),
                    ..LeaderConfig::new(self.node.clone())
                };
                cluster.run_candidate(config, self.stop.clone()).await;
            }
        };
        let end = async {
            self.stop.cancelled().await;
            member.announce_leaving(false);
            member.leave().await;
            working.cancel();
        };
        let work = working.run_until_cancelled(async {
            match self.serve(&cluster) {
                Some(desk) => drop(tokio::join!(self.work(&cluster), desk.keep())),
                None => self.work(&cluster).await,
            }
        });
        tokio::join!(upkeep.run(working.clone()), campaign, work, end);
    }

    /// Managers serve the nodes without access to the store, if there are any.
    fn serve(&self, cluster: &Cluster) -> Option<Desk> {
        if self.role != NodeRole::Manager || self.world.remote == 0 {
            return None;
        }
        let desk = Desk::new(cluster, &self.is_cut);
        self.world.desks().insert(self.node.clone(), desk.clone());
        Some(desk)
    }

    fn describe(&self) -> Node {
        let described = description(self.node.as_str(), self.role);
        match &self.remote {
            None => described,
            Some((name, address)) => Node {
                hostname: name.clone(),
                address: address.clone(),
                ..described
            },
        }
    }

    /// Takes the node's tasks through their states.
    async fn work(&self, cluster: &Cluster) {
        let mut changes = cluster.changes();
        let mut known = BTreeMap::new();
        loop {
            changes.mark_unchanged();
            let tasks: Vec<Task> = cluster.read(|state| {
                let ours = state
                    .tasks_on(&self.node)
                    .into_iter()
                    .flat_map(|index| &index.tasks);
                ours.filter_map(|id| state.tasks().get(id)).cloned().collect()
            });
            let wake_at = self.advance(cluster, &tasks, &mut known);
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Does what is due, and returns when something is due again.
    fn advance(&self, cluster: &Cluster, tasks: &[Task], known: &mut BTreeMap<TaskId, Step>) -> Instant {
        let now = Instant::now();
        let mut wake_at = now + Duration::from_secs(2);
        known.retain(|id, _| tasks.iter().any(|task| task.id == *id));
        for task in tasks
            .iter()
            .filter(|task| task.status.state >= TaskState::Assigned)
        {
            let found = lock(&self.engine).containers.get(&task.id).copied();
            let step = known.entry(task.id.clone()).or_insert_with(|| Step {
                state: task.status.state,
                due: None,
            });
            // What the store knows from an earlier run of the agent.
            step.state = step.state.max(task.status.state);
            loop {
                let Some(next) = next(task, step.state, found_now(&self.engine, &task.id, found)) else {
                    step.due = None;
                    break;
                };
                let (_, due) = *step.due.insert(match step.due {
                    Some((planned, due)) if planned == next => (planned, due),
                    _ => (next, now + self.world.dice.up_to(self.world.weather().work)),
                });
                if due > now {
                    wake_at = wake_at.min(due);
                    break;
                }
                step.due = None;
                step.state = next;
                self.make(cluster, task, next);
            }
        }
        self.remove_left_over(cluster, tasks);
        wake_at
    }

    /// A task moves on: its container follows, then its report.
    fn make(&self, cluster: &Cluster, task: &Task, next: TaskState) {
        if next == TaskState::Running {
            let mut server = self.world.server();
            let started = server.oracle.container_starts(task);
            if let Err(text) = started
                && server.violation.is_none()
            {
                server.violation = Some(text);
            }
            lock(&self.engine)
                .containers
                .insert(task.id.clone(), TaskState::Running);
        } else if next.is_terminal() {
            lock(&self.engine).containers.insert(task.id.clone(), next);
            self.world.server().oracle.container_ends(&task.id);
        }
        let mut status = TaskStatus::new(next, cluster.clock().now(), "simulated");
        if next == TaskState::Failed {
            status.exit_code = Some(1);
        }
        cluster.report(task.id.clone(), status);
    }

    /// Removes the containers of tasks that are no longer this node's.
    fn remove_left_over(&self, cluster: &Cluster, tasks: &[Task]) {
        let mut engine = lock(&self.engine);
        let left: Vec<TaskId> = engine
            .containers
            .keys()
            .filter(|id| !tasks.iter().any(|task| task.id == **id))
            .cloned()
            .collect();
        for id in left {
            // A mirror that is behind has not seen the task yet, or not any more.
            if cluster.read(|state| !state.tasks().contains_key(&id)) {
                engine.containers.remove(&id);
                self.world.server().oracle.container_ends(&id);
            }
        }
    }
}

/// What a task does next, and when.
struct Step {
    state: TaskState,
    due: Option<(TaskState, Instant)>,
}

fn found_now(engine: &Mutex<Engine>, task: &TaskId, before: Option<TaskState>) -> Option<TaskState> {
    lock(engine).containers.get(task).copied().or(before)
}

/// The next state of a task with this container, if it does not wait.
fn next(task: &Task, state: TaskState, container: Option<TaskState>) -> Option<TaskState> {
    let image = task.spec.container_spec.image.as_str();
    if task.status.state.is_terminal() {
        // A container that runs although its task has ended is stopped; its end is no news.
        return (container == Some(TaskState::Running)).then_some(TaskState::Shutdown);
    }
    if state.is_terminal() {
        return None;
    }
    match container {
        // It has ended by itself, or while no agent watched.
        Some(ended) if ended.is_terminal() => return Some(ended),
        None if state >= TaskState::Running => return Some(TaskState::Failed),
        _ => {}
    }
    if !task.desired.is_wanted() {
        return Some(TaskState::Shutdown);
    }
    match state {
        TaskState::Assigned => Some(TaskState::Accepted),
        TaskState::Accepted => Some(TaskState::Preparing),
        TaskState::Preparing => Some(TaskState::Ready),
        TaskState::Ready if task.desired == TaskState::Ready => None,
        TaskState::Ready => Some(TaskState::Starting),
        TaskState::Starting => Some(TaskState::Running),
        TaskState::Running if image.starts_with("job") => Some(TaskState::Complete),
        _ => None,
    }
}
