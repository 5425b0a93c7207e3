//! What the stories run on: a store of either kind, and handles on the cluster in it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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

use crate::{PATIENCE, etcd};

/// A store of a story's own.
#[derive(Debug)]
pub struct Lab {
    path: PathBuf,
    _folder: Option<TempDir>,
    etcd: Option<(Arc<etcd::Cluster>, String)>,
    redb: OnceCell<Arc<RedbStore>>,
}

/// A handle on the cluster, kept up to date until it is dropped.
#[derive(Debug)]
pub struct Handle {
    /// The cluster.
    pub cluster: Cluster,
    _stop: DropGuard,
    _upkeep: JoinHandle<()>,
}

impl Lab {
    /// An embedded store in a temporary folder.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn redb() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self {
            path: folder.path().join("store.redb"),
            _folder: Some(folder),
            etcd: None,
            redb: OnceCell::new(),
        })
    }

    /// An embedded store in a folder that outlives it.
    #[must_use]
    pub fn redb_in(folder: &Path) -> Self {
        Self {
            path: folder.join("store.redb"),
            _folder: None,
            etcd: None,
            redb: OnceCell::new(),
        }
    }

    /// Another store of the same kind.
    ///
    /// # Errors
    /// As [`Self::redb`].
    pub fn another(&self) -> Result<Self> {
        match &self.etcd {
            Some((cluster, _)) => Ok(Self::etcd(Arc::clone(cluster))),
            None => Self::redb(),
        }
    }

    /// A root of its own in an etcd cluster.
    #[must_use]
    pub fn etcd(cluster: Arc<etcd::Cluster>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let root = format!("/cluster-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Self {
            path: PathBuf::new(),
            _folder: None,
            etcd: Some((cluster, root)),
            redb: OnceCell::new(),
        }
    }

    /// A new connection to etcd, or the one store that can have redb's file open.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn store(&self) -> Result<Arc<dyn Store>> {
        match &self.etcd {
            Some((cluster, root)) => Ok(Arc::new(EtcdStore::open(cluster.config(root)).await?)),
            None => {
                let open = || async { Ok::<_, anyhow::Error>(Arc::new(RedbStore::open(&self.path)?)) };
                Ok(self.redb.get_or_try_init(open).await?.clone())
            }
        }
    }

    /// The same for a machine with a runtime of its own: the connection ends with the runtime.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub async fn store_on(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        match &self.etcd {
            Some((cluster, root)) => {
                let config = cluster.config(root);
                let opened = runtime.spawn(async move { EtcdStore::open(config).await });
                Ok(Arc::new(opened.await??))
            }
            None => self.store().await,
        }
    }

    /// Whether a machine that dies is noticed only after its heartbeats.
    #[must_use]
    pub fn has_leases(&self) -> bool {
        self.etcd.is_some()
    }

    /// A handle that is configured with one member of etcd only.
    ///
    /// # Errors
    /// When the store is not on etcd, or cannot be opened.
    pub async fn open_on_member(&self, number: usize) -> Result<Handle> {
        let (cluster, root) = self.etcd.as_ref().context("there are no members")?;
        let mut config = cluster.config(root);
        config.endpoints = vec![config.endpoints.remove(number)];
        open(Arc::new(EtcdStore::open(config).await?)).await
    }

    /// Another handle, as another node would have it.
    ///
    /// # Errors
    /// When the store cannot be opened or read.
    pub async fn open(&self) -> Result<Handle> {
        open(self.store().await?).await
    }
}

/// A handle on the cluster in a store.
///
/// # Errors
/// When the store cannot be read.
pub async fn open(store: Arc<dyn Store>) -> Result<Handle> {
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
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub async fn create(&self, spec: ServiceSpec) -> Result<ServiceId> {
        let id = self.cluster.new_service_id();
        let author = self.cluster.author("someone", "create");
        let plan = |state: &State, now| commands::create_service(state, id.clone(), spec.clone(), now);
        self.cluster.change(author, plan).await?;
        Ok(id)
    }

    /// Changes a service's specification, whatever others do to it at the same time.
    ///
    /// # Errors
    /// When the cluster refuses the change.
    pub async fn update(&self, id: &ServiceId, change: impl Fn(&mut Value)) -> Result<()> {
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

    /// Scales a service.
    ///
    /// # Errors
    /// When the cluster refuses the change.
    pub async fn scale(&self, id: &ServiceId, replicas: u32) -> Result<()> {
        let author = self.cluster.author("someone", "scale");
        let plan = |state: &State, now| commands::scale_service(state, id, replicas, now);
        self.cluster.change(author, plan).await?;
        Ok(())
    }

    /// Waits until exactly this many tasks of a service run, and no others are wanted.
    ///
    /// # Errors
    /// When that takes longer than [`PATIENCE`].
    pub async fn until_running(&self, id: &ServiceId, replicas: usize) -> Result<()> {
        self.until(&format!("{replicas} tasks run"), |state| {
            running(state, id).len() == replicas
        })
        .await
    }

    /// Waits until exactly this many nodes accept tasks.
    ///
    /// # Errors
    /// When that takes longer than [`PATIENCE`].
    pub async fn until_ready(&self, nodes: usize) -> Result<()> {
        self.until(&format!("{nodes} nodes are ready"), |state| {
            let ready = state.nodes().values().filter(|node| node.is_schedulable());
            ready.count() == nodes
        })
        .await
    }

    /// Waits until something is true of the state.
    ///
    /// # Errors
    /// When that takes longer than [`PATIENCE`].
    pub async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<()> {
        let mut changes = self.cluster.changes();
        let wait = changes.wait_for(|_| self.cluster.read(&is_so));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(changed) => changed.map(drop).context("the handle was closed"),
            Err(_) => anyhow::bail!("not within {PATIENCE:?}: {what}\n{}", self.describe()),
        }
    }

    /// Checks from now on that no slot ever has two live tasks.
    #[must_use]
    pub fn watch_slots(&self) -> SlotWatch {
        let cluster = self.cluster.clone();
        let (stop, mut stopped) = oneshot::channel();
        let watching = tokio::spawn(async move {
            let mut changes = cluster.changes();
            loop {
                changes.mark_unchanged();
                cluster.read(one_in_each_slot)?;
                tokio::select! {
                    changed = changes.changed() => changed?,
                    _ = &mut stopped => return Ok(()),
                }
            }
        });
        SlotWatch { stop, watching }
    }

    /// The nodes, services and tasks, one a line.
    #[must_use]
    pub fn describe(&self) -> String {
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

/// A check of the slots that runs until [`Self::end`].
#[derive(Debug)]
pub struct SlotWatch {
    stop: oneshot::Sender<()>,
    watching: JoinHandle<Result<()>>,
}

impl SlotWatch {
    /// Stops the check.
    ///
    /// # Errors
    /// When a slot had two live tasks.
    pub async fn end(self) -> Result<()> {
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

/// The running tasks of a service; none while others are wanted too.
#[must_use]
pub fn running(state: &State, id: &ServiceId) -> Vec<TaskId> {
    let tasks = || state.tasks().values().filter(|task| task.service == *id);
    if tasks().any(|task| task.desired.is_wanted() && !task.is_running()) {
        return Vec::new();
    }
    tasks()
        .filter(|task| task.is_running())
        .map(|task| task.id.clone())
        .collect()
}

/// A service with a number of replicas.
///
/// # Errors
/// When the specification is invalid.
pub fn service(name: &str, replicas: u32) -> Result<ServiceSpec> {
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

/// A specification from JSON.
///
/// # Errors
/// When it is invalid.
pub fn spec(json: Value) -> Result<ServiceSpec> {
    Ok(ServiceSpec::from_json(&serde_json::to_vec(&json)?)?)
}
