//! Managers and a worker over real TLS, on one store: what the worker can do, what it cannot, and that it
//! goes on when a manager is lost or an operator removes it.

use std::{path::Path, time::Duration};

use mesh_orchestrator::{
    cluster::{LeaderConfig, Member, Registration, SystemClock},
    commands,
    objects::{Node, NodeStatus, Task, TaskId, TaskState, TaskStatus, Timestamp},
    secrets::{Plaintext, Secrets as _},
    spec::{Platform, Resources, ServiceSpec},
    store::{
        Expected, Key, Prefix, Revision, Store, Transaction,
        redb::RedbStore,
        remote::{Managers as _, RemoteStore},
    },
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, runtime::Runtime};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    super::{
        certificates::{Files, Followed},
        exchange::exchange,
        listener::{AGENTS, TlsListener},
        managers::TlsManagers,
        testing::Certificates,
        tls::{Client, Credentials},
    },
    *,
};

const LIMIT: Duration = Duration::from_secs(30);
const QUICK: Heartbeat = Heartbeat {
    interval: Duration::from_millis(500),
    missed: 3,
};
pub(super) const WORKER: &str = "edge1";

/// A manager's agent with a runtime of its own, so that it can be switched off.
pub(super) struct Manager {
    pub(super) cluster: Cluster,
    vault: Arc<Vault>,
    pub(super) workers: Workers,
    pub(super) address: String,
    _stop: DropGuard,
    runtime: Option<Runtime>,
}

impl Manager {
    pub(super) async fn start(
        store: Arc<dyn Store>,
        certificates: &Certificates,
        name: &str,
        key: &Path,
        leads: bool,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (files, key, node) = (
            certificates.files(name, false),
            key.to_owned(),
            NodeId::from(name),
        );
        let stop = CancellationToken::new();
        let opened = runtime.spawn({
            let stop = stop.clone();
            async move {
                let (cluster, upkeep) = Cluster::open(Arc::clone(&store), Arc::new(SystemClock))
                    .await
                    .unwrap();
                tokio::spawn(upkeep.run(stop.clone()));
                let vault = Arc::new(Vault::open(store, &key, Timestamp(1)).await.unwrap());
                let config = LeaderConfig {
                    heartbeat: QUICK,
                    settle: Duration::ZERO,
                    ..LeaderConfig::new(node)
                };
                let cluster_of = cluster.clone();
                if leads {
                    tokio::spawn(async move { cluster_of.run_candidate(config, stop).await });
                }
                let workers = Workers::new(&cluster, &vault);
                let server = Followed::start(files, |credentials| credentials.server(true)).unwrap();
                let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), server)
                    .await
                    .unwrap();
                let address = listener.address().to_string();
                let agents = Router::new().fallback(|| async { "everything" });
                let router = by_peer(agents, Some(routes(&workers)));
                tokio::spawn(listener.serve(AGENTS, router));
                let kept = workers.clone();
                tokio::spawn(async move { kept.keep().await });
                (cluster, vault, workers, address)
            }
        });
        let (cluster, vault, workers, address) = opened.await.unwrap();
        Self {
            cluster,
            vault,
            workers,
            address,
            _stop: stop.drop_guard(),
            runtime: Some(runtime),
        }
    }

    /// As a machine that loses its power.
    fn switch_off(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    pub(super) async fn change<P>(&self, plan: P)
    where
        P: Fn(
            &mesh_orchestrator::objects::State,
            Timestamp,
        ) -> Result<Vec<mesh_orchestrator::objects::ObjectChange>, commands::CommandError>,
    {
        self.cluster
            .change(self.cluster.author("test", "change"), plan)
            .await
            .unwrap();
    }

    pub(super) async fn admit(&self) {
        self.change(|state, now| commands::admit_worker(state, WORKER, &BTreeMap::new(), now))
            .await;
    }

    pub(super) async fn create(&self, name: &str, node: &str, secret: &str) {
        let id = self.cluster.new_service_id();
        let spec = spec(name, node, secret);
        self.change(|state, now| commands::create_service(state, id.clone(), spec.clone(), now))
            .await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn spec(name: &str, node: &str, secret: &str) -> ServiceSpec {
    let spec = json!({
        "name": name,
        "task_template": {
            "container_spec": {
                "image": "registry.example/server:1",
                "env": [format!("PASSWORD={name}")],
                "secrets": [{"source": secret}]
            },
            "restart_policy": {"delay": "100ms"},
            "placement": {"constraints": [format!("node.hostname == {node}")]}
        },
        "endpoint_spec": {"ports": [{"target_port": 80, "published_port": if name == "web" { 8080 } else { 8081 }}]}
    });
    serde_json::from_value(spec).unwrap()
}

fn description(name: &str, address: &str) -> Node {
    Node {
        id: commands::worker_id(name),
        hostname: name.to_owned(),
        address: address.to_owned(),
        role: mesh_orchestrator::objects::NodeRole::Worker,
        labels: BTreeMap::new(),
        engine_labels: BTreeMap::new(),
        platform: Platform {
            os: "linux".into(),
            architecture: "x86_64".into(),
        },
        resources: Resources {
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
        },
        availability: Default::default(),
        status: NodeStatus::Unknown,
        status_since: Timestamp(0),
        returned_at: None,
    }
}

fn registration(address: &str) -> Registration {
    Registration {
        address: address.to_owned(),
        engine: true,
        ..Registration::default()
    }
}

/// Waits until a cluster is as it should be.
async fn until(cluster: &Cluster, what: &str, is_so: impl Fn() -> bool) {
    let mut changes = cluster.changes();
    let waiting = async {
        while !is_so() {
            let _ = timeout(Duration::from_millis(100), changes.changed()).await;
        }
    };
    assert!(timeout(LIMIT, waiting).await.is_ok(), "waited for {what}");
}

fn task_of(cluster: &Cluster, service: &str) -> Option<Task> {
    cluster.read(|state| {
        let mut tasks = state.tasks().values();
        tasks
            .find(|task| &*task.service_name == service && task.node.is_some())
            .cloned()
    })
}

fn status(cluster: &Cluster, name: &str) -> Option<NodeStatus> {
    cluster.read(|state| {
        let mut nodes = state.nodes().values();
        Some(nodes.find(|node| node.hostname == name)?.status)
    })
}

/// The worker's node.
struct Joined {
    store: Arc<RemoteStore>,
    cluster: Cluster,
    member: Member,
    _stop: DropGuard,
}

impl Joined {
    async fn new(managers: &[&Manager], certificates: &Certificates) -> Self {
        let store = remote(managers, certificates, WORKER);
        let (cluster, upkeep) = Cluster::open(Arc::clone(&store) as Arc<dyn Store>, Arc::new(SystemClock))
            .await
            .unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(upkeep.run(stop.clone()));
        let described = description(WORKER, "10.0.0.9");
        let member = Member::start(&cluster, described, registration("10.0.0.9"), QUICK).unwrap();
        Self {
            store,
            cluster,
            member,
            _stop: stop.drop_guard(),
        }
    }

    fn report(&self, task: &TaskId, state: TaskState, address: std::net::Ipv4Addr) {
        let status = TaskStatus {
            address: Some(address),
            ..TaskStatus::new(state, Timestamp(5), "reported")
        };
        self.cluster.report(task.clone(), status);
    }
}

fn remote(managers: &[&Manager], certificates: &Certificates, name: &str) -> Arc<RemoteStore> {
    let addresses = managers.iter().map(|manager| manager.address.clone()).collect();
    let managers = TlsManagers::beginning_with(0, addresses, certificates.client(name, true));
    Arc::new(RemoteStore::new(Arc::new(managers)))
}

/// One store, its folder, and certificates.
pub(super) fn ground() -> (tempfile::TempDir, Arc<dyn Store>, Certificates) {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(folder.path().join("store")).unwrap());
    (folder, store, Certificates::new())
}

async fn two_secrets(manager: &Manager) {
    for name in ["own", "others"] {
        let value = Plaintext::new(format!("value of {name}").into_bytes());
        let created = manager
            .vault
            .create(Kind::Secret, name, BTreeMap::new(), &value, Timestamp(1));
        created.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_unknown_authority_is_named_however_late_the_refusal_is_noticed() {
    let (folder, store, certificates) = ground();
    let manager = Manager::start(store, &certificates, "manager1", &folder.path().join("key"), true).await;
    let unknown = Certificates::new();
    let files = Files {
        authority: certificates.files("manager1", false).authority,
        ..unknown.files(WORKER, true)
    };
    let client = Followed::start(files, Credentials::client).unwrap();
    // So long a request cannot be sent before the manager has ended the connection.
    let long = vec![b' '; 16 << 20];
    let current = client.current();
    let asked = exchange(&current, &manager.address, None, ASK_PATH, Some(&long), LIMIT);
    let refused = error_chain(&asked.await.err().unwrap());
    assert!(
        refused.contains("does not take this node's certificate"),
        "{refused}"
    );

    let managers = TlsManagers::new(vec![manager.address.clone()], client);
    let refused = managers.ask(&Request::Block).await.err().unwrap();
    assert!(
        error_chain(&refused).contains("does not take this node's certificate") && !refused.may_be_done,
        "{}",
        error_chain(&refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_runs_its_tasks_with_their_secrets_and_reaches_nothing_else() {
    let (folder, store, certificates) = ground();
    let key = folder.path().join("key");
    let manager = Manager::start(Arc::clone(&store), &certificates, "manager1", &key, true).await;
    let stranger = remote(&[&manager], &certificates, WORKER);
    let refused = stranger.list(&Prefix::everything(), 10).await.unwrap_err();
    assert!(
        error_chain(&refused).contains("meshctl node admit"),
        "{}",
        error_chain(&refused)
    );
    // It asks again and again, and must not log each time that it follows a manager.
    let managers = TlsManagers::new(vec![manager.address.clone()], certificates.client(WORKER, true));
    assert!(managers.follow(None).await.is_err());

    manager.admit().await;
    // Another node with a task of its own.
    manager
        .change(|state, now| {
            let other = description("host2", "10.0.0.2");
            let other = Node {
                id: "node2".into(),
                status: NodeStatus::Ready,
                ..other
            };
            Ok(commands::put_node(state, other, now))
        })
        .await;
    two_secrets(&manager).await;
    manager.create("web", WORKER, "own").await;
    manager.create("db", "host2", "others").await;
    let joined = Joined::new(&[&manager], &certificates).await;
    until(&manager.cluster, "the worker to be ready", || {
        status(&manager.cluster, WORKER) == Some(NodeStatus::Ready)
    })
    .await;
    until(&joined.cluster, "its task", || {
        task_of(&joined.cluster, "web").is_some()
    })
    .await;
    let task = task_of(&joined.cluster, "web").unwrap();
    assert_eq!(task.spec.container_spec.env, ["PASSWORD=web"]);
    let block = AddressBlock::new(joined.store.block().await.unwrap()).unwrap();
    joined.report(&task.id, TaskState::Running, *block.addresses().end());
    until(&manager.cluster, "the report", || {
        task_of(&manager.cluster, "web").is_some_and(|task| task.status.state == TaskState::Running)
    })
    .await;

    // Its own secret, and no other.
    let own = joined.store.reveal(Kind::Secret, "own").await.unwrap();
    assert_eq!(own.expose(), b"value of own");
    for (kind, name) in [
        (Kind::Secret, "others"),
        (Kind::Config, "own"),
        (Kind::RegistryCredential, "docker.io"),
    ] {
        let refused = joined.store.reveal(kind, name).await.unwrap_err();
        assert!(
            error_chain(&refused).contains("no task of this node"),
            "{}",
            error_chain(&refused)
        );
    }
    let registry = joined.store.reveal(Kind::RegistryCredential, "registry.example");
    assert!(matches!(registry.await, Err(VaultError::Missing { .. })));
    assert!(joined.store.tunnel_secret().await.unwrap().is_none());

    // Nothing of others is in what it is shown, but for what routing needs.
    let shown = joined
        .store
        .list(&Prefix::everything(), 10)
        .await
        .unwrap()
        .entries()
        .await
        .unwrap();
    let text: String = shown
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
        .collect();
    assert!(
        !text.contains("PASSWORD=db") && !text.contains("others"),
        "{text}"
    );

    // It writes neither another node's task, nor a service or what it runs, nor another node's registration.
    let other = task_of(&manager.cluster, "db").unwrap();
    let task_key = Key::new(["tasks", other.id.as_str()]).unwrap();
    assert!(joined.store.get(&task_key).await.is_err());
    for key in [
        "/secrets/others",
        "/services/x",
        "/specs/x/1",
        "/nodes/node2",
        "/ephemeral/nodes/node2",
        task_key.as_str(),
    ] {
        let key: Key = key.parse().unwrap();
        for transaction in [
            Transaction::new().put(key.clone(), "{}"),
            Transaction::new().delete(key.clone()),
            Transaction::new().expect(key.clone(), Expected::At(Revision(1))),
        ] {
            let before = store.get(&key).await.unwrap();
            let refused = joined.store.commit(transaction).await.unwrap_err();
            assert!(
                error_chain(&refused).contains("refused"),
                "{key}: {}",
                error_chain(&refused)
            );
            // The leader may change it meanwhile: to it, that node never comes.
            let after = store.get(&key).await.unwrap();
            assert_eq!(after.is_some(), before.is_some(), "{key}");
            assert!(
                after.is_none_or(|entry| &*entry.value != b"{}"),
                "{key} was written"
            );
        }
    }
    // An address of another node's block would take that node's connections.
    let taken = AddressBlock::new(block.number() + 1).unwrap();
    let mut stolen = task_of(&manager.cluster, "web").unwrap();
    stolen.status.address = Some(*taken.addresses().start());
    let key = Key::new(["tasks", stolen.id.as_str()]).unwrap();
    let transaction = Transaction::new().put(key, serde_json::to_vec(&stolen).unwrap());
    let refused = joined.store.commit(transaction).await.unwrap_err();
    assert!(
        error_chain(&refused).contains("block"),
        "{}",
        error_chain(&refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_certificate_opens_nothing_else_of_a_managers_port() {
    let (folder, store, certificates) = ground();
    let manager = Manager::start(store, &certificates, "manager1", &folder.path().join("key"), true).await;
    manager.admit().await;
    let ask = async |client: &Followed<Client>, path: &str| {
        let answer = exchange(&client.current(), &manager.address, None, path, None, LIMIT).await?;
        let mut text = String::new();
        answer.take(100).read_to_string(&mut text).await.unwrap();
        Ok::<_, crate::orchestrator::exchange::ExchangeError>(text)
    };
    let agent = certificates.client("manager2", false);
    assert_eq!(ask(&agent, "/v1/secrets").await.unwrap(), "everything");
    let worker = certificates.client(WORKER, true);
    for path in [
        "/v1/secrets",
        "/v1/services",
        "/v1/relayed/drain",
        "/v1/openapi.json",
    ] {
        let refused = ask(&worker, path).await.unwrap_err().to_string();
        assert!(refused.contains("403"), "{refused}");
    }
    // An agent with access to the store is no worker.
    assert_eq!(ask(&agent, OBJECTS_PATH).await.unwrap(), "everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_through_another_manager() {
    let (folder, store, certificates) = ground();
    let key = folder.path().join("key");
    let one = Manager::start(Arc::clone(&store), &certificates, "manager1", &key, false).await;
    let two = Manager::start(store, &certificates, "manager2", &key, true).await;
    one.admit().await;
    two_secrets(&one).await;
    one.create("web", WORKER, "own").await;
    until(&two.cluster, "the admission", || {
        two.cluster.worker(WORKER).is_ok()
    })
    .await;
    let joined = Joined::new(&[&one, &two], &certificates).await;
    until(&joined.cluster, "its task", || {
        task_of(&joined.cluster, "web").is_some()
    })
    .await;
    let task = task_of(&joined.cluster, "web").unwrap();
    let ready = || status(&two.cluster, WORKER) == Some(NodeStatus::Ready);
    until(&two.cluster, "the worker to be ready", ready).await;
    // It follows the first one, which is lost for good.
    one.switch_off();
    until(&two.cluster, "the worker to be ready", ready).await;
    joined.cluster.report(
        task.id.clone(),
        TaskStatus::new(TaskState::Failed, Timestamp(5), "failed"),
    );
    // The report arrives, and the task that replaces it comes back.
    until(&joined.cluster, "the next task", || {
        let is_next = |next: &Task| next.id != task.id && next.node == task.node;
        joined.cluster.read(|state| state.tasks().values().any(is_next))
    })
    .await;
    assert!(two.cluster.registration(joined.member.node()).is_some());
    let own = joined.store.reveal(Kind::Secret, "own").await.unwrap();
    assert_eq!(own.expose(), b"value of own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_worker_is_refused_until_it_is_admitted_again() {
    let (folder, store, certificates) = ground();
    let manager = Manager::start(store, &certificates, "manager1", &folder.path().join("key"), true).await;
    manager.admit().await;
    let joined = Joined::new(&[&manager], &certificates).await;
    let id = joined.member.node().clone();
    until(&manager.cluster, "the worker to be ready", || {
        status(&manager.cluster, WORKER) == Some(NodeStatus::Ready)
    })
    .await;
    manager
        .change(|state, _| commands::remove_node(state, &id, true))
        .await;
    until(&manager.cluster, "its registration to end", || {
        manager.cluster.registration(&id).is_none()
    })
    .await;
    let refused = joined.store.block().await.unwrap_err();
    assert!(
        error_chain(&refused).contains("meshctl node admit"),
        "{}",
        error_chain(&refused)
    );
    assert!(joined.store.list(&Prefix::everything(), 10).await.is_err());
    assert!(joined.store.tunnel_secret().await.is_err());
    assert_eq!(
        status(&manager.cluster, WORKER),
        None,
        "it does not come back by itself"
    );
    manager.admit().await;
    until(&manager.cluster, "the worker to be back", || {
        status(&manager.cluster, WORKER) == Some(NodeStatus::Ready)
    })
    .await;
}

#[tokio::test]
async fn requests_and_leases_of_a_worker_are_bounded() {
    let session = Session::default();
    let now = Instant::now();
    let taken = (0..10_000).filter(|_| session.take(now, 1.0)).count();
    assert!((199..=201).contains(&taken), "{taken}");
    assert!(session.take(now + Duration::from_secs(1), 1.0));
    session.charge(MAX_REQUEST_BYTES);
    assert!(
        !session.take(now + Duration::from_secs(2), 1.0),
        "a long request counts for more"
    );
    let turns: Vec<_> = std::iter::from_fn(|| session.turns.try_acquire().ok()).collect();
    assert_eq!(turns.len(), TOGETHER);

    let (folder, store, certificates) = ground();
    let manager = Manager::start(store, &certificates, "manager1", &folder.path().join("key"), true).await;
    manager.admit().await;
    let managers = TlsManagers::new(vec![manager.address.clone()], certificates.client(WORKER, true));
    let lease = || {
        managers.ask(&Request::Lease {
            interval: 1000,
            missed: 3,
        })
    };
    let mut granted = 0;
    for _ in 0..LEASES + 3 {
        granted += usize::from(matches!(lease().await, Ok(Answer::Lease(_))));
    }
    assert_eq!(granted, LEASES);
    let large = Request::Reveal {
        kind: "secrets".into(),
        name: "x".repeat(MAX_REQUEST_BYTES),
    };
    let answer = managers.ask(&large).await;
    let text = match answer {
        Ok(Answer::Failed(Failure::Refused(text))) => text,
        Ok(_) => panic!("it was answered"),
        Err(error) => error_chain(&error),
    };
    assert!(
        text.contains("too large") || text.contains("the connection"),
        "{text}"
    );
}
