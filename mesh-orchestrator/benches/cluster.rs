//! `cargo xtask bench orchestrator`, the whole: three managers on a real etcd of three members, simulated
//! nodes and tasks; services are created, then all of them are updated. The nodes have no view of their own:
//! they learn of their tasks and report them through a manager, as agents without the store would.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use mesh_orchestrator::{
    cluster::{Cluster, EventAction, EventKind, LeaderConfig, Member},
    commands::{self, CommandError},
    objects::{NodeId, NodeRole, ServiceId, State, Task, TaskId, TaskState, TaskStatus},
    spec::ServiceSpec,
    store::{Event, Heartbeat, Prefix, Store, remote::wire::Frame},
};
use mesh_orchestrator_testing::{
    agent::{description, registration},
    etcd,
    lab::{Handle, Lab, open},
};
use serde::Serialize;
use tokio::{runtime::Runtime, sync::broadcast::error::RecvError, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

/// Managers; the first one leads.
const MANAGERS: usize = 3;
/// Replicas of each service.
const REPLICAS: usize = 100;
/// How long a simulated container takes to start and to stop.
const STARTS: Duration = Duration::from_millis(500);
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(900);

fn main() -> Result<()> {
    let arguments = Arguments::read()?;
    let etcd = Arc::new(etcd::Cluster::start()?);
    let lab = Lab::etcd(Arc::clone(&etcd));
    let rows = measure(&lab, &etcd, &arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("{} nodes, {} tasks", arguments.nodes, arguments.tasks);
    for row in &rows {
        println!("  {:<48} {:>12.2} {}", row.name, row.value, row.unit);
    }
    Ok(())
}

/// What was asked for.
struct Arguments {
    nodes: usize,
    tasks: usize,
    json: bool,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut read = Self {
            nodes: 200,
            tasks: 10_000,
            json: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--nodes" => read.nodes = value()?.parse()?,
                "--tasks" => read.tasks = value()?.parse()?,
                "--format" => read.json = value()? == "json",
                // Of cargo.
                "--bench" => {}
                other => bail!("unknown argument {other}"),
            }
        }
        Ok(read)
    }
}

/// One figure.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    nodes: usize,
    tasks: usize,
    value: f64,
    unit: &'static str,
}

/// A manager with a runtime of its own, so that its processor time is not mixed with the others'.
struct Manager {
    handle: Handle,
    runtime: Runtime,
}

/// The bytes of changes since the start of a phase.
#[derive(Default)]
struct Sent {
    all: AtomicU64,
    /// To one worker without access to the store.
    worker: AtomicU64,
    tasks: Mutex<BTreeMap<TaskId, u64>>,
}

#[expect(clippy::cast_precision_loss, reason = "the figures are far smaller")]
fn measure(lab: &Lab, etcd: &etcd::Cluster, arguments: &Arguments) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut row = |name: String, value: f64, unit| {
        rows.push(Row {
            name,
            nodes: arguments.nodes,
            tasks: arguments.tasks,
            value,
            unit,
        });
    };
    let main = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("nodes")
        .enable_all()
        .build()?;
    let managers = main.block_on(managers(lab))?;
    let sent = Arc::new(Sent::default());
    main.block_on(async {
        let store = lab.store().await?;
        let revision = store.list(&Prefix::everything(), 1).await?.revision;
        let watch = store.watch(&Prefix::everything(), revision).await?;
        tokio::spawn(count(watch, store, Arc::clone(&sent)));
        anyhow::Ok(())
    })?;
    let members = main.block_on(nodes(&managers, arguments.nodes))?;
    let shown = main.spawn(show(
        managers[1].handle.cluster.clone(),
        node(0),
        Arc::clone(&sent),
    ));
    let leader = &managers[0].handle.cluster;
    let size = main.block_on(size(leader))?;
    row("stored at the beginning".to_owned(), size, "bytes");

    let services = arguments.tasks.div_ceil(REPLICAS);
    let mut phase = |name, reached, changed: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let (begin, processor) = (Instant::now(), processor("manager0")?);
        changed()?;
        let (elapsed, busy) = (begin.elapsed(), self::processor("manager0")? - processor);
        let size = main.block_on(self::size(leader))?;
        let all = sent.all.swap(0, Ordering::Relaxed) as f64;
        let worker = sent.worker.swap(0, Ordering::Relaxed) as f64;
        for (figure, value, unit) in [
            (reached, elapsed.as_secs_f64(), "s"),
            ("the leader's processor time", busy.as_secs_f64(), "s"),
            ("stored at its end", size, "bytes"),
            ("etcd's file", etcd.database_bytes()? as f64, "bytes"),
            ("sent to a client that watches everything", all, "bytes"),
            (
                "changes of one node's own tasks",
                sent.own(leader, arguments.nodes),
                "bytes",
            ),
            ("sent to a node without access to the store", worker, "bytes"),
        ] {
            row(format!("{name}: {figure}"), value, unit);
        }
        Ok(())
    };
    phase("start", "all tasks run after", &mut || {
        main.block_on(async {
            for number in 0..services {
                create(leader, number).await?;
            }
            until(leader, |state| running(state, None) == services * REPLICAS).await
        })
    })?;
    phase("rollout", "all tasks are new after", &mut || {
        main.block_on(async {
            for number in 0..services {
                update(leader, number).await?;
            }
            until(leader, |state| {
                running(state, Some(2)) == services * REPLICAS && all_over(state)
            })
            .await
        })
    })?;

    let (begin, processor) = (Instant::now(), self::processor("manager0")?);
    std::thread::sleep(Duration::from_secs(20));
    let idle = self::processor("manager0")? - processor;
    row(
        "idle: the leader's processor time".to_owned(),
        100.0 * idle.as_secs_f64() / begin.elapsed().as_secs_f64(),
        "% of one",
    );
    let ready = leader.read(|state| {
        state
            .nodes()
            .values()
            .filter(|node| node.is_schedulable())
            .count()
    });
    row("nodes ready at the end".to_owned(), ready as f64, "nodes");
    if shown.is_finished() {
        main.block_on(shown)?.context("a worker was shown nothing more")?;
    }
    drop(members);
    for manager in managers {
        manager.runtime.shutdown_background();
    }
    main.shutdown_background();
    Ok(rows)
}

/// Opens a handle for each manager; the first one leads before the others campaign.
async fn managers(lab: &Lab) -> Result<Vec<Manager>> {
    let mut managers = Vec::new();
    for number in 0..MANAGERS {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(format!("manager{number}"))
            // A thread that ends takes its processor time with it.
            .thread_keep_alive(Duration::from_secs(24 * 3600))
            .enable_all()
            .build()?;
        let store = lab.store_on(&runtime).await?;
        let handle = runtime.spawn(open(store)).await??;
        let config = LeaderConfig::new(NodeId::from(format!("manager{number}").as_str()));
        let cluster = handle.cluster.clone();
        runtime.spawn(async move { cluster.run_candidate(config, CancellationToken::new()).await });
        if number == 0 {
            let mut changes = handle.cluster.changes();
            while handle.cluster.leader().is_none() {
                if tokio::time::timeout(Duration::from_millis(200), changes.changed())
                    .await
                    .is_ok_and(|open| open.is_err())
                {
                    bail!("the handle was closed");
                }
            }
        }
        managers.push(Manager { handle, runtime });
    }
    Ok(managers)
}

/// Registers the nodes, and lets their tasks run.
async fn nodes(managers: &[Manager], count: usize) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for number in 0..count {
        let cluster = &managers[number % MANAGERS].handle.cluster;
        let mut described = description(&format!("node{number}"), NodeRole::Worker);
        (described.id, described.hostname) = (node(number), format!("node{number}"));
        members.push(Member::start(
            cluster,
            described,
            registration(),
            Heartbeat::default(),
        )?);
    }
    for (number, manager) in managers.iter().enumerate() {
        let own: BTreeSet<NodeId> = (0..count)
            .filter(|node| node % MANAGERS == number)
            .map(self::node)
            .collect();
        tokio::spawn(work(manager.handle.cluster.clone(), own));
    }
    until(&managers[0].handle.cluster, |state| {
        state
            .nodes()
            .values()
            .filter(|node| node.is_schedulable())
            .count()
            == count
    })
    .await?;
    Ok(members)
}

/// As a worker without access to the store has it.
fn node(number: usize) -> NodeId {
    commands::worker_id(&format!("node{number}"))
}

/// Takes the tasks of some nodes through their states as they change.
async fn work(cluster: Cluster, nodes: BTreeSet<NodeId>) {
    let mut events = cluster.events();
    let mut going = JoinSet::new();
    loop {
        let ids: Vec<TaskId> = match events.recv().await {
            Ok(event) if event.kind == EventKind::Task && event.action != EventAction::Remove => {
                vec![TaskId::from(event.id.as_str())]
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(_)) => cluster.read(|state| state.tasks().keys().cloned().collect()),
            Err(RecvError::Closed) => return,
        };
        for id in ids {
            let task = cluster.read(|state| state.tasks().get(&id).cloned());
            let is_own = |task: &Task| task.node.as_ref().is_some_and(|node| nodes.contains(node));
            if let Some(task) = task.filter(is_own) {
                advance(&cluster, &task, &mut going);
            }
        }
        while going.try_join_next().is_some() {}
    }
}

fn advance(cluster: &Cluster, task: &Task, going: &mut JoinSet<()>) {
    let state = task.status.state;
    let next = match task.desired {
        _ if state < TaskState::Assigned || state.is_terminal() => return,
        TaskState::Running if state == TaskState::Assigned => TaskState::Preparing,
        TaskState::Ready if state == TaskState::Assigned => TaskState::Ready,
        TaskState::Running if matches!(state, TaskState::Preparing | TaskState::Ready) => TaskState::Running,
        TaskState::Shutdown | TaskState::Remove => TaskState::Shutdown,
        _ => return,
    };
    let (cluster, id) = (cluster.clone(), task.id.clone());
    going.spawn(async move {
        if matches!(next, TaskState::Running | TaskState::Shutdown) {
            sleep(STARTS).await;
        }
        let mut status = TaskStatus::new(next, cluster.clock().now(), "simulated");
        status.address = (next == TaskState::Running).then(|| address(&id));
        cluster.report(id, status);
    });
}

/// Any address in the mesh: the other nodes learn of a task that has one.
fn address(task: &TaskId) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    task.hash(&mut hasher);
    let [_, a, b, c, ..] = hasher.finish().to_be_bytes();
    Ipv4Addr::new(240, a, b, c)
}

/// Counts the bytes of all changes, forever. The store is kept open.
async fn count(mut watch: mesh_orchestrator::store::Watch, store: Arc<dyn Store>, sent: Arc<Sent>) {
    while let Some(Ok(batch)) = watch.next().await {
        for event in &batch.events {
            let bytes = match event {
                Event::Put(entry) => entry.key.as_str().len() + entry.value.len(),
                Event::Delete(key) => key.as_str().len(),
            } as u64;
            sent.all.fetch_add(bytes, Ordering::Relaxed);
            let segments: Vec<&str> = event.key().segments().collect();
            if let ["tasks", id] = segments.as_slice() {
                let mut tasks = sent.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                *tasks.entry(TaskId::from(*id)).or_default() += bytes;
            }
        }
    }
    drop(store);
}

/// Counts the bytes of what a manager shows a worker, forever.
async fn show(cluster: Cluster, worker: NodeId, sent: Arc<Sent>) -> Result<()> {
    let mut feed = cluster.worker_feed(&worker).await?;
    loop {
        let frame = serde_json::to_vec(&Frame::change(feed.next().await?))?;
        sent.worker.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
}

impl Sent {
    /// The mean per node of the bytes of tasks that are on a node.
    #[expect(clippy::cast_precision_loss, reason = "the figures are far smaller")]
    fn own(&self, cluster: &Cluster, nodes: usize) -> f64 {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let placed = cluster.read(|state| {
            let on_node = |id: &TaskId| state.tasks().get(id).is_none_or(|task| task.node.is_some());
            tasks
                .iter()
                .filter(|(id, _)| on_node(id))
                .map(|(_, bytes)| bytes)
                .sum::<u64>()
        });
        placed as f64 / nodes as f64
    }
}

/// The bytes of all entries.
#[expect(clippy::cast_precision_loss, reason = "the figures are far smaller")]
async fn size(cluster: &Cluster) -> Result<f64> {
    let mut listing = cluster.store().snapshot().await?;
    let mut bytes = 0;
    while let Some(page) = listing.next_page().await? {
        bytes += page
            .iter()
            .map(|entry| entry.key.as_str().len() + entry.value.len())
            .sum::<usize>();
    }
    Ok(bytes as f64)
}

/// The processor time of the threads of this name.
fn processor(name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir("/proc/self/task")? {
        let folder = thread?.path();
        // It may have ended meanwhile.
        let (Ok(found), Ok(statistics)) = (
            fs::read_to_string(folder.join("comm")),
            fs::read_to_string(folder.join("schedstat")),
        ) else {
            continue;
        };
        if found.trim() == name {
            let nanoseconds = statistics
                .split_whitespace()
                .next()
                .context("schedstat begins with a number")?;
            sum += Duration::from_nanos(nanoseconds.parse()?);
        }
    }
    Ok(sum)
}

fn spec(number: usize) -> Result<ServiceSpec> {
    let json = serde_json::json!({
        "name": format!("service{number}"),
        "labels": { "com.docker.stack.namespace": "shop" },
        "mode": { "replicated": { "replicas": REPLICAS } },
        "task_template": {
            "container_spec": {
                "image": "registry.example/shop/web:1.27@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                "env": ["DATABASE=postgres://shop@database:5432/shop", "CACHE=cache:6379", "LOG_LEVEL=info"],
                "labels": { "com.docker.stack.namespace": "shop" },
            },
            "resources": { "reservations": { "nano_cpus": 10_000_000, "memory_bytes": 16 << 20 } },
        },
        "update_config": { "parallelism": 10, "monitor": "0" },
        "endpoint_spec": { "ports": [ { "target_port": 80, "published_port": 10_000 + number } ] },
    });
    Ok(ServiceSpec::from_json(json.to_string().as_bytes())?)
}

fn id(number: usize) -> ServiceId {
    ServiceId::from(format!("service{number}").as_str())
}

async fn create(cluster: &Cluster, number: usize) -> Result<()> {
    let spec = spec(number)?;
    let author = cluster.author("someone", "create");
    cluster
        .change(author, |state, now| {
            commands::create_service(state, id(number), spec.clone(), now)
        })
        .await?;
    Ok(())
}

async fn update(cluster: &Cluster, number: usize) -> Result<()> {
    let author = cluster.author("someone", "update");
    cluster
        .change(author, |state, now| {
            let unknown = || CommandError::UnknownService(id(number));
            let service = state.service(&id(number)).ok_or_else(unknown)?;
            let mut spec = (*service.spec).clone();
            let mut task = (*spec.task_template).clone();
            task.force_update += 1;
            spec.task_template = Arc::new(task);
            commands::update_service(state, &id(number), service.version, spec, now)
        })
        .await?;
    Ok(())
}

/// The running tasks, of one version if it is given.
fn running(state: &State, version: Option<u64>) -> usize {
    let is_so =
        |task: &&Task| task.is_running() && version.is_none_or(|version| task.spec_version == version);
    state.tasks().values().filter(is_so).count()
}

fn all_over(state: &State) -> bool {
    state.services().values().all(|service| !service.is_updating())
}

/// Asks twice a second whether something is so: at every change would be most of the work.
async fn until(cluster: &Cluster, is_so: impl Fn(&State) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !cluster.read(&is_so) {
        if Instant::now() > end {
            let running = cluster.read(|state| running(state, None));
            bail!("not within {PATIENCE:?}; {running} tasks run");
        }
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
