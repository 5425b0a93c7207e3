//! Serves the admin API on a Unix socket that only the agent's own user may open. Answers come from the
//! agent's view; commands go to the agent through [`Control`].

use std::{
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Extension, Json, Router,
    extract::{self, Query, RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use nix::net::if_::if_nametoindex;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    Control, Introspect,
    api::{
        self, DatapathAnswer, DoctorAnswer, DrainAnswer, DumpAnswer, Events, ExplainQuery, Explained,
        Failure, FlowQuery, Flows, MonitorQuery, Routes, Status, UseDatapath,
    },
    clients::{self, Clients, ClientsQuery},
    control::{DatapathRequest, Request},
    drains::Drains,
    examined::running,
    explain, flows, monitor,
    relayed::{self, AskedByNode, Relayed, find_node},
    routes::routes,
    socket::{ServerError, Socket},
    status::status,
};
use crate::{
    datapath::{DatapathError, DatapathStatus},
    discovery::interface_to,
    doctor,
    model::{DrainRequest, NodeRole},
    source::Relay,
};

/// A bound admin socket; [`AdminServer::run`] answers on it.
#[derive(Debug)]
pub struct AdminServer {
    socket: Socket,
    router: Router,
    relayed: Relayed,
}

#[derive(Clone)]
struct Admin {
    agent: Arc<dyn Introspect>,
    control: Control,
    drains: Drains,
    relay: Relay,
    doctor: Arc<doctor::Options>,
    started: Instant,
    walk: Arc<Mutex<()>>,
}

impl AdminServer {
    /// Opens the socket (mode 0600; a missing folder is created with mode 0755). Replaces the socket of an
    /// agent that was killed. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When another agent listens on the socket, or a file operation fails.
    pub async fn bind(
        path: &Path,
        agent: Arc<dyn Introspect>,
        control: Control,
        relay: Relay,
        doctor: doctor::Options,
    ) -> Result<Self, ServerError> {
        let socket = Socket::bind(path).await?;
        let admin = Admin {
            drains: Drains::new(Arc::clone(&agent), control.clone(), relay.clone()),
            agent,
            control,
            relay,
            doctor: Arc::new(doctor),
            started: Instant::now(),
            walk: Arc::default(),
        };
        Ok(Self {
            socket,
            relayed: Relayed::new(admin.drains.clone(), reads().with_state(admin.clone())),
            router: router(admin),
        })
    }

    /// What carries out the requests of other nodes.
    #[must_use]
    pub fn relayed(&self) -> Relayed {
        self.relayed.clone()
    }

    /// Adds the orchestrator's paths, which must not overlap with the agent's own.
    #[must_use]
    pub fn with(mut self, paths: Router) -> Self {
        self.router = self.router.merge(paths);
        self
    }

    /// Serves until `stop` is cancelled, then removes the socket.
    pub async fn run(self, stop: CancellationToken) {
        self.socket.serve(self.router, stop).await;
    }
}

/// What managers may read from other nodes, too: no secrets, no payload of packets, and nothing that
/// changes anything.
fn reads() -> Router<Admin> {
    Router::new()
        .route("/v1/routes", get(get_routes))
        .route("/v1/flows", get(get_flows))
        .route("/v1/clients", get(get_clients))
        .route("/v1/explain", get(get_explanation))
        .route("/v1/monitor", get(get_events))
        .route("/v1/status", get(get_status))
}

fn router(admin: Admin) -> Router {
    reads()
        .route("/v1/on/{node}/{*path}", get(get_elsewhere))
        .route("/v1/doctor", get(get_doctor))
        .route("/v1/drain", get(get_drain).post(drain))
        .route("/v1/datapath", get(get_datapath))
        .route("/v1/datapath/dump", get(get_dump))
        .route("/v1/datapath/retry", post(retry_datapath))
        .route("/v1/datapath/use", post(use_datapath))
        .fallback(|| async {
            failure(
                StatusCode::NOT_FOUND,
                "no such path in this agent's API; services, tasks and nodes need the orchestrator (mesh-agent run \
                 --orchestrator)"
                    .to_owned(),
            )
        })
        .with_state(admin)
}

async fn get_routes(State(admin): State<Admin>) -> Result<Json<Routes>, Response> {
    let agent = admin.agent;
    read_kernel("counters", move || {
        let counters = agent.counters()?;
        let clock_seconds = admin.started.elapsed().as_secs_f64();
        Ok(Routes {
            clock_seconds,
            ..routes(&agent.view(), &counters)
        })
    })
    .await
}

async fn get_flows(
    State(admin): State<Admin>,
    Query(query): Query<FlowQuery>,
) -> Result<Json<Flows>, Response> {
    let agent = admin.agent;
    let view = agent.view();
    let filter = flows::filter(&view, &query).map_err(|reason| failure(StatusCode::NOT_FOUND, reason))?;
    // One walk of the tables at a time.
    let turn = admin.walk.lock_owned().await;
    read_kernel("flows", move || {
        let found = agent.flows(&filter, flows::limit(&query))?;
        drop(turn);
        Ok(flows::answer(&view, found))
    })
    .await
}

async fn get_clients(
    State(admin): State<Admin>,
    Query(query): Query<ClientsQuery>,
) -> Result<Json<Clients>, Response> {
    let agent = admin.agent;
    let view = agent.view();
    // One walk of the tables at a time.
    let turn = admin.walk.lock_owned().await;
    read_kernel("clients", move || {
        let found = agent.mapped_clients(query.address)?;
        drop(turn);
        Ok(clients::answer(&view, &query, found))
    })
    .await
}

async fn get_explanation(
    State(admin): State<Admin>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Explained>, Response> {
    let agent = admin.agent;
    let view = agent.view();
    let index_of = |name: &str| if_nametoindex(name).ok();
    // Where there is no route, the first uplink is as good as any.
    let route_to = |address| interface_to(address).ok().flatten();
    let question = explain::question(&view, &query, index_of, route_to)
        .map_err(|reason| failure(StatusCode::NOT_FOUND, reason))?;
    read_kernel("tables", move || {
        let found = agent.explain(&question)?;
        Ok(explain::answer(&view, &query, &question, &found))
    })
    .await
}

async fn get_events(
    State(admin): State<Admin>,
    by_node: Option<Extension<AskedByNode>>,
    Query(query): Query<MonitorQuery>,
) -> Result<Json<Events>, Response> {
    let agent = admin.agent;
    let view = agent.view();
    let filter = monitor::Filter::new(&view, &query, by_node.is_some())
        .map_err(|reason| failure(StatusCode::NOT_FOUND, reason))?;
    read_kernel("reports", move || {
        let found = agent.observe(query.since)?;
        Ok(monitor::answer(&view, &filter, found))
    })
    .await
}

/// What another node's agent shows at a path.
async fn get_elsewhere(
    State(admin): State<Admin>,
    extract::Path((node, path)): extract::Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    let view = admin.agent.view();
    let id = find_node(&view, &node).map_err(|reason| failure(StatusCode::NOT_FOUND, reason))?;
    let path = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let read = if id == view.node {
        relayed::read(reads().with_state(admin), &path).await
    } else if view.role == Some(NodeRole::Manager) {
        let read = admin.relay.read(&id, path).await;
        read.map_err(|error| error.to_string())
    } else {
        Err("only a manager can ask other nodes' agents: run the command on one, or on that node".to_owned())
    };
    match read {
        Ok(json) => Ok(([(CONTENT_TYPE, "application/json")], json).into_response()),
        Err(reason) => {
            let named = view.source.cluster.nodes.get(&id);
            let hostname = named.map_or(&id, |node| &node.hostname);
            Err(failure(StatusCode::BAD_GATEWAY, format!("{hostname}: {reason}")))
        }
    }
}

/// What to include in a dump.
#[derive(serde::Deserialize)]
struct DumpQuery {
    /// At most so many entries of the flow table.
    #[serde(default)]
    flows: usize,
}

async fn get_dump(
    State(admin): State<Admin>,
    Query(query): Query<DumpQuery>,
) -> Result<Json<DumpAnswer>, Response> {
    read_kernel("tables", move || {
        Ok(DumpAnswer {
            version: api::VERSION,
            dump: admin.agent.dump(query.flows)?,
        })
    })
    .await
}

/// Reads the kernel's maps off the runtime's threads, which it would block for a while when there are many
/// flows.
async fn read_kernel<T: Send + 'static>(
    what: &str,
    read: impl FnOnce() -> Result<T, DatapathError> + Send + 'static,
) -> Result<Json<T>, Response> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(answer)) => Ok(Json(answer)),
        Ok(Err(error)) => Err(failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            mesh_support::error_chain(&error),
        )),
        Err(error) => Err(failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("reading the {what} was aborted: {error}"),
        )),
    }
}

async fn get_status(State(admin): State<Admin>) -> Json<Status> {
    Json(status(&admin.agent.view(), SystemTime::now()))
}

async fn get_doctor(State(admin): State<Admin>) -> Json<DoctorAnswer> {
    let view = admin.agent.view();
    let running = Some(running(&view));
    let report = doctor::examine(&admin.doctor, doctor::Examiner::Agent, running).await;
    Json(report.into())
}

/// Whose drained replicas to list.
#[derive(serde::Deserialize)]
struct DrainQuery {
    /// A node's id.
    node: Option<String>,
}

async fn get_drain(
    State(admin): State<Admin>,
    Query(query): Query<DrainQuery>,
) -> Result<Json<DrainAnswer>, Response> {
    let listed = admin.drains.list(query.node).await;
    listed
        .map(Json)
        .map_err(|reason| failure(StatusCode::INTERNAL_SERVER_ERROR, reason))
}

async fn drain(
    State(admin): State<Admin>,
    Json(request): Json<DrainRequest>,
) -> Result<Json<DrainAnswer>, Response> {
    let done = admin.drains.execute(request).await;
    done.map(Json)
        .map_err(|reason| failure(StatusCode::CONFLICT, reason))
}

async fn get_datapath(State(admin): State<Admin>) -> Json<DatapathAnswer> {
    Json(datapath_answer(admin.agent.view().datapath_status.clone()))
}

async fn retry_datapath(State(admin): State<Admin>) -> Result<Json<DatapathAnswer>, Response> {
    change_datapath(&admin, DatapathRequest::Retry).await
}

async fn use_datapath(
    State(admin): State<Admin>,
    Json(wish): Json<UseDatapath>,
) -> Result<Json<DatapathAnswer>, Response> {
    change_datapath(&admin, DatapathRequest::Use(wish.choice)).await
}

async fn change_datapath(admin: &Admin, request: DatapathRequest) -> Result<Json<DatapathAnswer>, Response> {
    match admin.control.ask(Request::Datapath(request)).await {
        Ok(status) => Ok(Json(datapath_answer(status))),
        Err(reason) => Err(failure(StatusCode::CONFLICT, reason)),
    }
}

fn datapath_answer(datapath: DatapathStatus) -> DatapathAnswer {
    DatapathAnswer {
        version: api::VERSION,
        datapath,
    }
}

pub(super) fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(Failure { error })).into_response()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::admin::{Client, view::fixture};

    async fn bind(path: &Path) -> Result<AdminServer, ServerError> {
        let (control, _) = crate::admin::control::channel();
        let relay = Relay::default();
        AdminServer::bind(path, fixture::still(), control, relay, doctor::Options::default()).await
    }

    #[tokio::test]
    async fn a_client_reads_routes_and_status_through_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh/admin.sock");
        let stop = CancellationToken::new();
        let server = tokio::spawn(bind(&path).await.unwrap().run(stop.clone()));

        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);

        let client = Client::new(&path).unwrap();
        assert_eq!(client.routes().await.unwrap().routes.len(), 5);
        assert_eq!(client.status().await.unwrap().hostname, "n1");

        stop.cancel();
        server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_request_reaches_the_agent_and_its_answer_comes_back() {
        use crate::datapath::DatapathChoice;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (control, mut commands) = crate::admin::control::channel();
        let (relay, options) = (Relay::default(), doctor::Options::default());
        let server = AdminServer::bind(&path, fixture::still(), control, relay, options);
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.await.unwrap().run(stop.clone()));
        let client = Client::new(&path).unwrap();

        let agent = async {
            let command = commands.recv().await.unwrap();
            let use_ipvs = DatapathRequest::Use(DatapathChoice::Ipvs);
            assert_eq!(command.request, Request::Datapath(use_ipvs));
            command.answer.send(Err("no IPVS in this kernel".into())).unwrap();
            let command = commands.recv().await.unwrap();
            assert_eq!(command.request, Request::Datapath(DatapathRequest::Retry));
            command.answer.send(Ok(DatapathStatus::default())).unwrap();
        };
        let asking = async {
            let error = client.use_datapath(DatapathChoice::Ipvs).await.unwrap_err();
            assert!(error.to_string().contains("no IPVS in this kernel"), "{error}");
            let answer = client.retry_datapath().await.unwrap();
            assert_eq!(answer.datapath, DatapathStatus::default());
        };
        tokio::join!(agent, asking);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_live_agents_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let _live = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(ServerError::InUse(_))));
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(bind(&path).await.unwrap());
        assert!(
            path.exists(),
            "a dropped listener leaves its file, like a killed agent"
        );
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).await, Err(ServerError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
