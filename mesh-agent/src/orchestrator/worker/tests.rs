//! The worker with an engine that answers as a test wants, and a real store.

use std::convert::Infallible;

use axum::{
    Router,
    body::{Body, Bytes},
    http::Uri,
    response::{IntoResponse, Response},
};
use mesh_orchestrator::{
    cluster::SystemClock,
    objects::{ObjectChange, Task, TaskState},
    secrets::Vault,
    spec::TaskSpec,
    store::redb::RedbStore,
};
use mesh_support::watched::Watched as _;
use serde_json::json;
use tokio::{net::UnixListener, time::timeout};
use tokio_util::sync::DropGuard;

use super::*;
use crate::{
    docker::Docker,
    orchestrator::{runtime::DockerRuntime, testing},
};

const LIMIT: Duration = Duration::from_secs(5);

/// An engine with a container for each of two tasks. It describes the first one only when it `answers`.
async fn answer(
    mut answers: watch::Receiver<bool>,
    asked: mpsc::UnboundedSender<String>,
    uri: Uri,
) -> Response {
    let path = uri.path();
    let labels = |number: &str| json!({"mesh.task.id": format!("t{number}"), "mesh.node.id": "n1"});
    if path.ends_with("/version") {
        return axum::Json(json!({"ApiVersion": "1.41"})).into_response();
    }
    if path.ends_with("/events") {
        return Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>())
            .into_response();
    }
    if path.ends_with("/containers/json") {
        let container = |number: &str| json!({"Id": format!("c{number}"), "Labels": labels(number)});
        return axum::Json(json!([container("1"), container("2")])).into_response();
    }
    let _ = asked.send(path.to_owned());
    let number = if path.ends_with("/c1/json") { "1" } else { "2" };
    if number == "1" && answers.wait_for(|answers| *answers).await.is_err() {
        return std::future::pending().await;
    }
    axum::Json(json!({
        "Id": format!("c{number}"),
        "State": {"Status": "running", "Pid": 1},
        "Config": {"Labels": labels(number)},
    }))
    .into_response()
}

/// A node that runs a worker.
struct Node {
    cluster: Cluster,
    answers: watch::Sender<bool>,
    engine: watch::Receiver<bool>,
    asked: mpsc::UnboundedReceiver<String>,
    _found: watch::Sender<ContainerState>,
    _proven: watch::Sender<bool>,
    _folder: tempfile::TempDir,
    _guard: DropGuard,
}

impl Node {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let (answers, receiver) = watch::channel(false);
        let (ask, asked) = mpsc::unbounded_channel();
        let serve = Router::new().fallback(move |uri: Uri| answer(receiver.clone(), ask.clone(), uri));
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, serve).await });

        let store = Arc::new(RedbStore::open(folder.path().join("store")).unwrap());
        let vault = Vault::open(store.clone(), &folder.path().join("keys"), now()).await;
        let (cluster, upkeep) = Cluster::open(store, Arc::new(SystemClock)).await.unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(upkeep.run(shutdown.clone()));
        let author = cluster.author("test", "create");
        let spec: Arc<TaskSpec> =
            Arc::new(serde_json::from_str(r#"{"container_spec": {"image": "busybox"}}"#).unwrap());
        let create = |id: &str| {
            let task = testing::task(Arc::clone(&spec));
            ObjectChange::CreateTask(Box::new(Task {
                id: id.into(),
                ..task
            }))
        };
        let changed = cluster
            .change(author, |_, _| Ok(vec![create("t1"), create("t2")]))
            .await;
        changed.unwrap();

        let (engine, engine_answers) = watch::channel(false);
        let (found, found_receiver) = watch::channel(ContainerState::default());
        let (proven, proven_receiver) = watch::channel(true);
        let worker = Worker::new(WorkerOptions {
            runtime: Arc::new(DockerRuntime::new(Docker::new(&socket))),
            cluster: cluster.clone(),
            secrets: Arc::new(vault.unwrap()),
            node: NodeId::from("n1"),
            block: AddressBlock::new(1).unwrap(),
            found: found_receiver,
            files: folder.path().join("files"),
            drain_time: Duration::ZERO,
            engine,
            programs: Arc::new(Programs::open(folder.path().join("programs")).unwrap()),
            proven: proven_receiver,
            replace: CancellationToken::new(),
        });
        tokio::spawn(worker.run(shutdown.clone()));
        Self {
            cluster,
            answers,
            engine: engine_answers,
            asked,
            _found: found,
            _proven: proven,
            _folder: folder,
            _guard: shutdown.drop_guard(),
        }
    }

    fn state(&self, task: &str) -> TaskState {
        self.cluster
            .read(|state| state.tasks()[&TaskId::from(task)].status.state)
    }

    async fn until_running(&self, task: &str) {
        let mut changes = self.cluster.changes();
        let running = changes.wait_for(|_| self.state(task) == TaskState::Running);
        assert!(
            timeout(LIMIT, running).await.is_ok(),
            "{task} is {}",
            self.state(task)
        );
    }
}

#[tokio::test]
async fn a_container_that_the_engine_does_not_describe_holds_up_only_its_own_task() {
    let mut node = Node::start().await;
    node.until_running("t2").await;
    assert!(node.engine.current(), "the engine answers");
    // It may run: it is neither made a second time nor given up.
    assert_eq!(node.state("t1"), TaskState::Assigned);
    node.answers.send_replace(true);
    node.until_running("t1").await;
    let mut asked = Vec::new();
    while let Ok(path) = node.asked.try_recv() {
        asked.push(path);
    }
    assert!(asked.iter().all(|path| path.ends_with("/json")), "{asked:?}");
}
