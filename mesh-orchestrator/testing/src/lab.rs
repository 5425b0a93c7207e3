//! What the stories run on: handles on one store, and what all of them need.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_orchestrator::{
    cluster::{Cluster, SystemClock},
    commands::{self, CommandError},
    objects::{ServiceId, State, TaskId},
    spec::ServiceSpec,
    store::{Store, etcd::EtcdStore, redb::RedbStore},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::{OnceCell, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "../store/disk.rs"]
#[expect(dead_code, reason = "the store's own stories need all of it")]
pub(crate) mod disk;
#[path = "../store/etcd/cluster.rs"]
#[expect(dead_code, reason = "the store's own stories need all of it")]
pub(crate) mod etcd;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A store that nobody else uses.
pub(crate) struct Lab {
    path: PathBuf,
    _folder: Option<TempDir>,
    etcd: Option<(Arc<etcd::Cluster>, String)>,
    redb: OnceCell<Arc<RedbStore>>,
}

/// A handle on the cluster, kept up until it is dropped.
pub(crate) struct Handle {
    pub(crate) cluster: Cluster,
    _stop: DropGuard,
    _upkeep: JoinHandle<()>,
}

impl Lab {
    pub(crate) fn redb() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self {
            path: folder.path().join("store.redb"),
            _folder: Some(folder),
            etcd: None,
            redb: OnceCell::new(),
        })
    }

    /// In a folder that somebody else looks after.
    pub(crate) fn redb_in(folder: &Path) -> Result<Self> {
        Ok(Self {
            path: folder.join("store.redb"),
            _folder: None,
            etcd: None,
            redb: OnceCell::new(),
        })
    }

    /// Another store of the same kind.
    pub(crate) fn another(&self) -> Result<Self> {
        match &self.etcd {
            Some((cluster, _)) => Self::etcd(Arc::clone(cluster)),
            None => Self::redb(),
        }
    }

    pub(crate) fn etcd(cluster: Arc<etcd::Cluster>) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let root = format!("/cluster-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            path: PathBuf::new(),
            _folder: None,
            etcd: Some((cluster, root)),
            redb: OnceCell::new(),
        })
    }

    /// A connection of its own on etcd; the one that there can be on redb.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Store>> {
        match &self.etcd {
            Some((cluster, root)) => Ok(Arc::new(EtcdStore::open(cluster.config(root)).await?)),
            None => {
                let open = || async { Ok::<_, anyhow::Error>(Arc::new(RedbStore::open(&self.path)?)) };
                Ok(self.redb.get_or_try_init(open).await?.clone())
            }
        }
    }

    /// The same for a machine with a runtime of its own, which dies with it.
    pub(crate) async fn store_on(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        match &self.etcd {
            Some((cluster, root)) => {
                let config = cluster.config(root);
                let opened = runtime.spawn(async move { EtcdStore::open(config).await });
                Ok(Arc::new(opened.await??))
            }
            None => self.store().await,
        }
    }

    /// Whether a machine that dies is missed only after its heartbeats.
    pub(crate) fn has_leases(&self) -> bool {
        self.etcd.is_some()
    }

    /// A handle that knows one member of etcd only.
    pub(crate) async fn open_on_member(&self, number: usize) -> Result<Handle> {
        let (cluster, root) = self.etcd.as_ref().context("there are no members")?;
        let mut config = cluster.config(root);
        config.endpoints = vec![config.endpoints.remove(number)];
        open(Arc::new(EtcdStore::open(config).await?)).await
    }

    /// Another handle, as another node would have it.
    pub(crate) async fn open(&self) -> Result<Handle> {
        open(self.store().await?).await
    }
}

pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Handle> {
    let (cluster, upkeep) = Cluster::open(store, Arc::new(SystemClock)).await?;
    let stop = CancellationToken::new();
    Ok(Handle {
        cluster,
        _upkeep: tokio::spawn(upkeep.run(stop.clone())),
        _stop: stop.drop_guard(),
    })
}

impl Handle {
    /// Creates a service.
    pub(crate) async fn create(&self, spec: ServiceSpec) -> Result<ServiceId> {
        let id = self.cluster.new_service_id();
        let author = self.cluster.author("someone", "create");
        let plan = |state: &State, now| commands::create_service(state, id.clone(), spec.clone(), now);
        self.cluster.change(author, plan).await?;
        Ok(id)
    }

    /// Changes a service's specification, whatever others do to it meanwhile.
    pub(crate) async fn update(&self, id: &ServiceId, change: impl Fn(&mut Value)) -> Result<()> {
        let author = self.cluster.author("someone", "update");
        let plan = |state: &State, now| {
            let unknown = || CommandError::UnknownService(id.clone());
            let service = state.service(id).ok_or_else(unknown)?;
            let mut json = serde_json::to_value(&*service.spec).unwrap_or_default();
            change(&mut json);
            let spec = ServiceSpec::from_json(json.to_string().as_bytes())?;
            commands::update_service(state, id, service.version, spec, now)
        };
        self.cluster.change(author, plan).await?;
        Ok(())
    }

    pub(crate) async fn scale(&self, id: &ServiceId, replicas: u32) -> Result<()> {
        let author = self.cluster.author("someone", "scale");
        let plan = |state: &State, now| commands::scale_service(state, id, replicas, now);
        self.cluster.change(author, plan).await?;
        Ok(())
    }

    /// Waits until so many tasks of a service run, and no others are meant to.
    pub(crate) async fn until_running(&self, id: &ServiceId, replicas: usize) -> Result<()> {
        self.until(&format!("{replicas} tasks run"), |state| {
            running(state, id).len() == replicas
        })
        .await
    }

    /// Waits until so many nodes can be given tasks.
    pub(crate) async fn until_ready(&self, nodes: usize) -> Result<()> {
        self.until(&format!("{nodes} nodes are ready"), |state| {
            let ready = state.nodes().values().filter(|node| node.is_schedulable());
            ready.count() == nodes
        })
        .await
    }

    /// Waits until something is true of the state.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<()> {
        let mut changes = self.cluster.changes();
        let wait = changes.wait_for(|_| self.cluster.read(&is_so));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(changed) => changed.map(drop).context("the handle was closed"),
            Err(_) => anyhow::bail!("not within {PATIENCE:?}: {what}\n{}", self.describe()),
        }
    }

    /// Looks from now on whether a slot ever has two tasks that are meant to run.
    pub(crate) fn watch_slots(&self) -> SlotWatch {
        let cluster = self.cluster.clone();
        let (stop, mut stopped) = oneshot::channel();
        let watching = tokio::spawn(async move {
            let mut changes = cluster.changes();
            loop {
                changes.borrow_and_update();
                cluster.read(one_in_each_slot)?;
                tokio::select! {
                    changed = changes.changed() => changed?,
                    _ = &mut stopped => return Ok(()),
                }
            }
        });
        SlotWatch { stop, watching }
    }

    pub(crate) fn describe(&self) -> String {
        self.cluster.read(|state| {
            let mut text = String::new();
            for node in state.nodes().values() {
                text += &format!("node {} {} {}\n", node.id, node.status, node.availability);
            }
            for service in state.services().values() {
                text += &format!("service {} version {}\n", service.spec.name, service.version);
            }
            for task in state.tasks().values() {
                text += &format!(
                    "task {} {} on {:?}: {} (desired {}): {}\n",
                    task.name(),
                    task.id,
                    task.node,
                    task.status.state,
                    task.desired,
                    task.status.message
                );
            }
            text
        })
    }
}

/// A look at the slots that goes on until it is asked.
pub(crate) struct SlotWatch {
    stop: oneshot::Sender<()>,
    watching: JoinHandle<Result<()>>,
}

impl SlotWatch {
    /// What it has found.
    pub(crate) async fn end(self) -> Result<()> {
        let _ = self.stop.send(());
        self.watching.await?
    }
}

fn one_in_each_slot(state: &State) -> Result<()> {
    let mut taken = BTreeMap::new();
    for task in state.tasks().values().filter(|task| task.is_live()) {
        if let Some(other) = taken.insert((&task.service, &task.slot), &task.id) {
            anyhow::bail!("{} has two tasks: {other} and {}", task.name(), task.id);
        }
    }
    Ok(())
}

/// The tasks of a service that run, if no others are meant to.
pub(crate) fn running(state: &State, id: &ServiceId) -> Vec<TaskId> {
    let tasks = || state.tasks().values().filter(|task| task.service == *id);
    if tasks().any(|task| task.desired.is_wanted() && !task.is_running()) {
        return Vec::new();
    }
    tasks()
        .filter(|task| task.is_running())
        .map(|task| task.id.clone())
        .collect()
}

/// A runtime with a bound, so that a fault of ours does not hang the suite.
pub(crate) fn run<F: Future<Output = Result<()>>>(story: F) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            tokio::time::timeout(PATIENCE * 6, story)
                .await
                .context("the story hangs")?
        })
}

/// A service of so many replicas.
pub(crate) fn service(name: &str, replicas: u32) -> Result<ServiceSpec> {
    spec(json!({
        "name": name,
        "task_template": {
            "container_spec": {"image": format!("{name}:1")},
            "restart_policy": {"delay": "100ms"},
        },
        "update_config": {"monitor": "100ms", "parallelism": 0},
        "rollback_config": {"monitor": "100ms", "parallelism": 0},
        "mode": {"replicated": {"replicas": replicas}},
    }))
}

pub(crate) fn spec(json: Value) -> Result<ServiceSpec> {
    Ok(ServiceSpec::from_json(&serde_json::to_vec(&json)?)?)
}
