//! Opens everything that the orchestrator needs on this node: an engine outside any Swarm, the store, the key
//! of the secrets, and the node's identity.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use mesh_orchestrator::{
    api::{Access, Api, Peers},
    cluster::{Clock, Cluster, OpenError, SystemClock, Upkeep},
    commands,
    objects::{Availability, Node, NodeId, NodeRole, NodeStatus, Timestamp},
    secrets::{Secrets, Vault, VaultError},
    store::{
        Store, StoreError,
        etcd::{EtcdConfig, EtcdStore, EtcdTls, EtcdTlsFile},
        redb::RedbStore,
        remote::RemoteStore,
    },
};
use mesh_support::error_chain;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    OrchestratorOptions, api,
    certificates::{Files, Followed, follow_files},
    identity::{self, IdentityError, Kept},
    listener::TlsListener,
    managers::{Attempts, TlsManagers},
    options::{MISSED_HEARTBEATS, Role},
    peers::{NoPeers, NotFromHere, TlsPeers},
    program::{ProgramError, Programs},
    runtime::{DockerRuntime, EngineDescription, Runtime},
    tls::{Client, Credentials, Server, TlsError, own_name},
    worker::AddressBlock,
    workers::Workers,
};

use crate::docker::Docker;

/// Pause between attempts to reach the engine or the store.
const RETRY: Duration = Duration::from_secs(1);
/// A documentation address to "connect" a UDP socket to, which shows the address that the node sends from.
/// Nothing is sent.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The orchestrator cannot run on this node.
#[derive(Debug, thiserror::Error)]
pub enum OrchestratorError {
    /// The node is in a Swarm, which schedules tasks itself.
    #[error(
        "--orchestrator is for nodes outside Swarm, but this node is in one (its state is {state:?}): start the agent \
         without --orchestrator, or run 'docker swarm leave' first"
    )]
    InSwarm {
        /// The state as Docker names it.
        state: String,
    },
    /// It has no address that other nodes could use.
    #[error("cannot find the address at which other nodes reach this one: set --node-address")]
    Address(#[source] Option<io::Error>),
    /// A folder cannot be created.
    #[error("cannot create the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store of the cluster's objects")]
    Store(#[from] StoreError),
    /// A certificate for etcd cannot be used.
    #[error("cannot set up TLS for etcd")]
    Etcd(#[from] EtcdTlsFile),
    /// The objects cannot be read.
    #[error("cannot open the cluster")]
    Open(#[from] OpenError),
    /// The secrets cannot be read.
    #[error("cannot open the vault of secrets (--secrets-key)")]
    Vault(#[from] VaultError),
    /// A certificate or port cannot be used; it says which.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Flags that a worker without access to the store has no use for.
    #[error(
        "--managers makes this node a worker without access to the store, on which {} {} no effect: leave {} out, or \
         --managers", .0.join(", "), if .0.len() == 1 { "has" } else { "have" }, if .0.len() == 1 { "it" } else { "them" }
    )]
    WithoutEffect(Vec<&'static str>),
    /// The record of agent programs cannot be read.
    #[error("cannot read which agent program this node runs")]
    Programs(#[from] ProgramError),
    /// The node has no usable identity.
    #[error("this node could not join the cluster")]
    Identity(#[from] IdentityError),
    /// A manager cannot serve workers without certificates.
    #[error(
        "--workers-ca needs a certificate that the agent shows workers: set --agents-ca, --agents-certificate and \
         --agents-key, or etcd's"
    )]
    NoCertificates,
}

/// How this node reaches the cluster's objects.
#[derive(Debug)]
pub(super) enum Reach {
    /// It has access to the store, and the key of the secrets.
    Store(Arc<Vault>),
    /// Through managers.
    Managers(Arc<RemoteStore>, Attempts),
}

impl Reach {
    /// Where the values for this node's tasks are read.
    pub(super) fn secrets(&self) -> Arc<dyn Secrets> {
        match self {
            Self::Store(vault) => Arc::clone(vault) as Arc<dyn Secrets>,
            Self::Managers(store, _) => Arc::clone(store) as Arc<dyn Secrets>,
        }
    }

    /// The node's block of addresses.
    pub(super) async fn block(
        &self,
        cluster: &Cluster,
        node: &NodeId,
    ) -> Result<AddressBlock, IdentityError> {
        match self {
            Self::Store(_) => identity::claim_block(cluster.store().as_ref(), node).await,
            Self::Managers(store, _) => AddressBlock::new(store.block().await?).ok_or(IdentityError::Full),
        }
    }
}

/// Everything that the orchestrator needs to run.
#[derive(Debug)]
pub struct Opened {
    pub(super) options: OrchestratorOptions,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) cluster: Cluster,
    pub(super) upkeep: Upkeep,
    pub(super) reach: Reach,
    pub(super) node: Node,
    pub(super) engine_version: String,
    pub(super) address: Ipv4Addr,
    pub(super) block: AddressBlock,
    pub(super) api: Api,
    /// What workers are served, on a manager that serves some.
    pub(super) workers: Option<Workers>,
    /// The API's ports apart from the admin socket, with the access that each gives.
    pub(super) listeners: Vec<(TlsListener, Access)>,
    /// The address at which other agents ask this one.
    pub(super) logs: Option<SocketAddr>,
    /// The other agents, if this one may ask them.
    pub(super) peers: Result<Arc<TlsPeers>, NotFromHere>,
    pub(super) programs: Arc<Programs>,
}

/// Opens everything; agents of other nodes are served on `peer_port`. Waits for an engine or a store that
/// does not answer yet, and says in `waits` what for. Call it inside a tokio runtime.
///
/// # Errors
/// Every failure that waiting cannot cure.
pub async fn open(
    options: &OrchestratorOptions,
    peer_port: u16,
    docker: Docker,
    waits: &watch::Sender<Option<String>>,
) -> Result<Opened, OrchestratorError> {
    let without_effect = options.without_effect();
    if !without_effect.is_empty() {
        return Err(OrchestratorError::WithoutEffect(without_effect));
    }
    // Read the files first, so that their errors show before the engine and the store answer.
    let peer_configs = peer_configs(options)?;
    let api_server = api_server(options)?;
    let runtime = DockerRuntime::new(docker);
    let engine = describe(&runtime, waits).await;
    if engine.swarm != "inactive" {
        return Err(OrchestratorError::InSwarm { state: engine.swarm });
    }
    let address = match options.node_address {
        Some(address) => address,
        None => own_address()?,
    };
    std::fs::create_dir_all(&options.state_dir).map_err(|source| OrchestratorError::Folder {
        path: options.state_dir.clone(),
        source,
    })?;
    let programs = Arc::new(Programs::open(options.programs_path())?);
    let clock = SystemClock;
    let (id, name) = match (options.is_worker(), options.agents_tls()) {
        (true, Some(paths)) => {
            let name = own_name(paths.certificate)?;
            (commands::worker_id(&name), Some(name))
        }
        _ => (identity::identity(&options.state_dir, clock.seed())?, None),
    };
    let remote = match &peer_configs {
        Some((_, client)) if options.is_worker() => {
            let managers = TlsManagers::new(options.managers.clone(), client.clone());
            let attempts = managers.attempts();
            Some((Arc::new(RemoteStore::new(Arc::new(managers))), attempts))
        }
        _ => None,
    };
    let patient = Patient {
        waits,
        attempts: remote.as_ref().map(|(_, attempts)| attempts.clone()),
    };
    let store = match &remote {
        Some((remote, _)) => Arc::clone(remote) as Arc<dyn Store>,
        None => patient.retry("the store", || open_store(options)).await?,
    };
    let patience = options.heartbeat * (MISSED_HEARTBEATS + 1);
    let waits_for = match remote {
        Some(_) => "the managers",
        None => "the store",
    };
    let kept_in = match &name {
        Some(name) => Kept::Certificate(name.clone()),
        None => Kept::File(options.state_dir.clone()),
    };
    let unique = patient.retry(waits_for, || async {
        Ok(identity::ensure_unique(store.as_ref(), &id, address, &kept_in, patience).await?)
    });
    unique.await?;
    let objects = patient.retry("the cluster's objects", || async {
        Ok(Cluster::open(Arc::clone(&store), Arc::new(clock)).await?)
    });
    let (cluster, upkeep) = objects.await?;
    let reach = match remote {
        Some((remote, attempts)) => Reach::Managers(remote, attempts),
        None => {
            let vault = patient.retry("the vault", || async {
                let path = options.secrets_key_path();
                Ok(Vault::open(Arc::clone(&store), &path, clock.now()).await?)
            });
            Reach::Store(Arc::new(vault.await?))
        }
    };
    let block = patient.retry("a block of addresses", || async {
        Ok(reach.block(&cluster, &id).await?)
    });
    let block = block.await?;
    waits.send_replace(None);
    let engine_version = engine.version.clone();
    let node = describe_node(options, id, name, address, engine);
    let vault = match &reach {
        Reach::Store(vault) => Arc::clone(vault),
        Reach::Managers(..) => Arc::new(Vault::without_keys(Arc::clone(&store))),
    };
    let workers = options
        .workers_ca
        .is_some()
        .then(|| Workers::new(&cluster, &vault));
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    let mut listeners = Vec::new();
    let mut logs = None;
    let mut peers = Err(match options.is_worker() {
        true => NotFromHere::Worker,
        false => NotFromHere::NoCertificates,
    });
    if let Some((server, client)) = peer_configs {
        let at = SocketAddr::from((address, peer_port));
        let listener = TlsListener::bind(at, server).await?;
        listeners.push((listener, Access::Trusted));
        logs = Some(at);
        if !options.is_worker() {
            peers = Ok(Arc::new(TlsPeers {
                cluster: cluster.clone(),
                config: client,
            }));
        }
    }
    if let Some((at, config)) = api_server {
        listeners.push((TlsListener::bind(at, config).await?, Access::Tokens));
    }
    let log_sources: Arc<dyn Peers> = match &peers {
        Ok(peers) => Arc::clone(peers) as Arc<dyn Peers>,
        Err(why) => Arc::new(NoPeers(*why)),
    };
    let api = Api::new(api::parts(
        options.backups_path(),
        options.public_url(address),
        node.id.clone(),
        &cluster,
        &vault,
        &runtime,
        log_sources,
    ));
    info!(
        node = %node.id,
        name = node.hostname,
        %address,
        store = store.describe(),
        "the orchestrator is ready"
    );
    Ok(Opened {
        options: options.clone(),
        runtime,
        cluster,
        upkeep,
        reach,
        node,
        engine_version,
        address,
        block,
        api,
        workers,
        listeners,
        logs,
        peers,
        programs,
    })
}

impl Opened {
    /// The orchestrator's API with full access. A worker says where it is.
    pub fn api(&self) -> Router {
        match self.options.is_worker() {
            true => Api::elsewhere(&self.options.managers.join(", ")),
            false => self.api.routes(Access::Trusted),
        }
    }

    /// This node's id.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node.id
    }

    /// Whether it may become the leader.
    #[must_use]
    pub fn is_manager(&self) -> bool {
        self.node.role == NodeRole::Manager
    }

    /// The address at which other nodes reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// The certificates for the store.
fn etcd_files(options: &OrchestratorOptions) -> Option<Files> {
    let paths = options.etcd_tls()?;
    Some(Files {
        authority: Some(paths.authority.to_owned()),
        workers: None,
        certificate: paths.certificate.to_owned(),
        key: paths.key.to_owned(),
    })
}

type PeerConfigs = (Followed<Server>, Followed<Client>);

/// The certificates by which agents recognise each other: the same as those for the store, if there are no
/// others.
fn peer_configs(options: &OrchestratorOptions) -> Result<Option<PeerConfigs>, OrchestratorError> {
    let Some(paths) = options.agents_tls() else {
        return match options.workers_ca {
            Some(_) => Err(OrchestratorError::NoCertificates),
            None => Ok(None),
        };
    };
    let files = Files {
        authority: Some(paths.authority.to_owned()),
        workers: options.workers_ca.clone(),
        certificate: paths.certificate.to_owned(),
        key: paths.key.to_owned(),
    };
    if let (Some(workers), Some(etcd)) = (&options.workers_ca, options.etcd_tls()) {
        // What opens etcd must not be a worker's, whichever certificates agents use.
        Credentials::load(Some(etcd.authority), Some(workers), etcd.certificate, etcd.key)?;
    }
    let server = Followed::start(files.clone(), |credentials| credentials.server(true))?;
    Ok(Some((server, Followed::start(files, Credentials::client)?)))
}

/// The address and TLS configuration of the API for external tools.
fn api_server(options: &OrchestratorOptions) -> Result<Option<(SocketAddr, Followed<Server>)>, TlsError> {
    match (options.api_listen, &options.api_certificate, &options.api_key) {
        (Some(at), Some(certificate), Some(key)) => {
            let files = Files {
                authority: None,
                workers: None,
                certificate: certificate.clone(),
                key: key.clone(),
            };
            let config = Followed::start(files, |credentials| credentials.server(false))?;
            Ok(Some((at, config)))
        }
        _ => Ok(None),
    }
}

async fn describe(runtime: &dyn Runtime, waits: &watch::Sender<Option<String>>) -> EngineDescription {
    let mut warned = false;
    loop {
        match runtime.describe().await {
            Ok(engine) => return engine,
            Err(error) => {
                waits.send_replace(Some(format!("Docker: {}", error_chain(&error))));
                if !std::mem::replace(&mut warned, true) {
                    warn!(error = error_chain(&error), "waiting for Docker");
                }
                sleep(RETRY).await;
            }
        }
    }
}

async fn open_store(options: &OrchestratorOptions) -> Result<Arc<dyn Store>, OrchestratorError> {
    if options.etcd.is_empty() {
        return Ok(Arc::new(RedbStore::open(options.store_path())?));
    }
    let tls = options
        .etcd_tls()
        .map(|paths| EtcdTls::from_files(paths.authority, paths.certificate, paths.key))
        .transpose()?;
    let config = EtcdConfig::new(options.etcd.clone(), tls);
    let store = Arc::new(EtcdStore::open(config).await?);
    if let Some(files) = etcd_files(options) {
        let weak = Arc::downgrade(&store);
        follow_files(files, move |files| {
            let weak = weak.clone();
            Box::pin(async move {
                let (Some(store), Some(authority)) = (weak.upgrade(), &files.authority) else {
                    return Ok(());
                };
                files.load()?;
                let tls = EtcdTls::from_files(authority, &files.certificate, &files.key)?;
                Ok(store.renew(tls).await?)
            })
        });
    }
    Ok(store)
}

/// Tries again, and says what it waits for.
struct Patient<'a> {
    waits: &'a watch::Sender<Option<String>>,
    /// What a worker knows of its managers.
    attempts: Option<Attempts>,
}

impl Patient<'_> {
    /// Tries until it succeeds, or fails in a way that waiting cannot cure.
    async fn retry<T, F>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T, OrchestratorError>
    where
        F: Future<Output = Result<T, OrchestratorError>>,
    {
        let mut logged = String::new();
        loop {
            match attempt().await {
                Err(error) if is_temporary(&error) => {
                    let reason = self.reason(&error);
                    self.waits.send_replace(Some(format!("{what}: {reason}")));
                    if is_new(&mut logged, reason) {
                        warn!(error = logged, "waiting for {what}");
                    }
                    sleep(RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// Of a worker, why each manager does not serve it.
    fn reason(&self, error: &OrchestratorError) -> String {
        let tried = self.attempts.as_ref().map(Attempts::describe);
        tried
            .filter(|tried| !tried.is_empty())
            .unwrap_or_else(|| error_chain(error))
    }
}

/// Whether an error is another one than the last that was logged: it may need another remedy.
fn is_new(logged: &mut String, text: String) -> bool {
    let is_new = text != *logged;
    *logged = text;
    is_new
}

fn is_temporary(error: &OrchestratorError) -> bool {
    match error {
        OrchestratorError::Store(error)
        | OrchestratorError::Open(OpenError::Store(error))
        | OrchestratorError::Vault(VaultError::Store(error))
        | OrchestratorError::Identity(IdentityError::Store(error)) => error.is_unavailable(),
        _ => false,
    }
}

fn own_address() -> Result<Ipv4Addr, OrchestratorError> {
    let find = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(ANYWHERE)?;
        socket.local_addr()
    };
    let found = find().map_err(|error| OrchestratorError::Address(Some(error)))?;
    match found.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => Ok(address),
        IpAddr::V4(_) | IpAddr::V6(_) => Err(OrchestratorError::Address(None)),
    }
}

fn describe_node(
    options: &OrchestratorOptions,
    id: NodeId,
    worker: Option<String>,
    address: Ipv4Addr,
    engine: EngineDescription,
) -> Node {
    Node {
        id,
        role: match options.node_role.unwrap_or_default() {
            Role::Manager if worker.is_none() => NodeRole::Manager,
            Role::Manager | Role::Worker => NodeRole::Worker,
        },
        // The name in a worker's certificate is its name.
        hostname: worker
            .or_else(|| options.node_name.clone())
            .unwrap_or(engine.hostname),
        address: address.to_string(),
        labels: options.node_labels.iter().cloned().collect(),
        engine_labels: engine.labels,
        platform: engine.platform,
        resources: engine.resources,
        availability: Availability::Active,
        status: NodeStatus::Unknown,
        status_since: Timestamp::default(),
        returned_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_node_waits_each_new_reason_is_logged_once() {
        let mut logged = String::new();
        let reasons = ["refused", "refused", "not admitted", "not admitted", "refused"];
        let new = reasons.map(|reason| is_new(&mut logged, reason.to_owned()));
        assert_eq!(new, [true, false, true, false, true]);
    }
}
