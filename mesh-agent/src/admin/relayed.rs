//! Carries out what managers' agents ask of this node: drains, and what their operators read here.

use std::fmt;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{View, api::Failure, drains::Drains};
use crate::{
    model::NodeId,
    source::{RelayedRequest, relay::MAX_TEXT},
};

/// How many requests are carried out at a time, of all managers.
const RUNNING: usize = 8;

/// Carries requests out.
#[derive(Clone)]
pub struct Relayed {
    drains: Drains,
    /// What may be read from other nodes.
    reads: Router,
}

/// Marks a request of another node.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedByNode;

impl fmt::Debug for Relayed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Relayed").finish_non_exhaustive()
    }
}

impl Relayed {
    pub(super) fn new(drains: Drains, reads: Router) -> Self {
        Self { drains, reads }
    }

    /// Carries out what managers ask of this node, until cancelled: the source that passes it on may end
    /// before, and says itself how.
    pub async fn serve(self, mut asked: mpsc::Receiver<RelayedRequest>, shutdown: CancellationToken) {
        let mut running = JoinSet::new();
        let serve = async {
            loop {
                tokio::select! {
                    request = asked.recv(), if running.len() < RUNNING => match request {
                        Some(request) => drop(running.spawn(self.clone().carry_out(request))),
                        None => break,
                    },
                    Some(_) = running.join_next() => {}
                }
            }
            while running.join_next().await.is_some() {}
            std::future::pending::<()>().await;
        };
        shutdown.run_until_cancelled(serve).await;
    }

    async fn carry_out(self, request: RelayedRequest) {
        // The manager may have given up.
        match request {
            RelayedRequest::Drain { request, answer } => drop(answer.send(self.drains.here(request).await)),
            RelayedRequest::Read { path, answer } => drop(answer.send(read(self.reads, &path).await)),
        }
    }
}

/// The JSON that the admin API answers at a path below its version.
///
/// # Errors
/// The API's own error, for the operator.
pub(super) async fn read(reads: Router, path: &str) -> Result<String, String> {
    let unknown = || {
        format!(
            "its agent, release {}, does not show this to other nodes",
            crate::RELEASE
        )
    };
    let request = Request::get(format!("/v{}/{path}", super::api::VERSION));
    let request = request
        .extension(AskedByNode)
        .body(Body::empty())
        .map_err(|_| unknown())?;
    // A router is always ready, and fails never.
    let Ok(answer) = reads.oneshot(request).await;
    let status = answer.status();
    let body = to_bytes(answer.into_body(), MAX_TEXT).await;
    let body = body.map_err(|_| "the answer is too long; narrow it down".to_owned())?;
    if status.is_success() {
        return String::from_utf8(body.into()).map_err(|error| error.to_string());
    }
    match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => Err(failure.error),
        Err(_) => Err(unknown()),
    }
}

/// The id of a node by its host name or id.
///
/// # Errors
/// When there is none, or the name is not unique.
pub(super) fn find_node(view: &View, name: &str) -> Result<NodeId, String> {
    let nodes = &view.source.cluster.nodes;
    if nodes.contains_key(name) || name == view.node {
        return Ok(name.to_owned());
    }
    let mut named = nodes.iter().filter(|(_, node)| node.hostname == name);
    match (named.next(), named.next()) {
        (Some((id, _)), None) => Ok(id.clone()),
        (Some(_), Some(_)) => Err(format!("several nodes have the host name '{name}': use an id")),
        (None, _) => Err(format!(
            "no node has the host name or id '{name}'; `meshctl status` lists them"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        admin::{
            AdminServer, Client,
            api::{FlowQuery, Flows},
            control,
            view::fixture::{self, Still},
        },
        doctor,
        model::NodeRole,
        source::Relay,
    };

    async fn server(path: &Path, role: NodeRole, relay: &Relay) -> AdminServer {
        let (mut view, counters) = fixture::two_nodes();
        view.role = Some(role);
        let agent = Arc::new(Still(Arc::new(view), counters));
        let (control, _) = control::channel();
        AdminServer::bind(path, agent, control, relay.clone(), doctor::Options::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn it_goes_on_without_a_source_until_it_is_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder.path().join("socket"), NodeRole::Worker, &Relay::default()).await;
        let (sender, asked) = mpsc::channel(1);
        drop(sender);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.relayed().serve(asked, stop.clone()));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!serving.is_finished());
        stop.cancel();
        serving.await.unwrap();
    }

    /// What an agent answers to a manager that reads a path.
    async fn ask(path: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder.path().join("socket"), NodeRole::Worker, &Relay::default()).await;
        let (sender, asked) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.relayed().serve(asked, stop.clone()));
        let (answer, answered) = oneshot::channel();
        let path = path.to_owned();
        sender.send(RelayedRequest::Read { path, answer }).await.unwrap();
        let answered = answered.await.unwrap();
        stop.cancel();
        serving.await.unwrap();
        answered
    }

    #[tokio::test]
    async fn a_manager_reads_what_the_nodes_own_operator_would_and_nothing_else() {
        let flows: Flows = serde_json::from_str(&ask("flows?limit=1").await.unwrap()).unwrap();
        assert_eq!((flows.hostname.as_str(), flows.flows.len()), ("n1", 1));
        assert!(ask("status").await.is_ok());
        let refused = ask("flows?service=nothing").await.unwrap_err();
        assert!(refused.contains("'nothing'"), "{refused}");
        for path in [
            "drain",
            "datapath",
            "datapath/dump",
            "doctor",
            "on/n1/status",
            "../v1/drain",
            "not a path",
            "",
        ] {
            let refused = ask(path).await.unwrap_err();
            assert!(refused.contains("does not show this"), "{path}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_manager_asks_the_agent_of_the_node_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let relay = Relay::default();
        let server = server(&socket, NodeRole::Manager, &relay).await;
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let client = Client::new(&socket).unwrap();
        let query = FlowQuery {
            service: Some("web".to_owned()),
            ..FlowQuery::default()
        };

        // Itself.
        assert_eq!(client.on("n1").flows(&query).await.unwrap().hostname, "n1");
        let error = client.on("n2").flows(&query).await.unwrap_err().to_string();
        assert!(error.contains("n2: its agent is not connected"), "{error}");
        let error = client.on("a/b?c").flows(&query).await.unwrap_err().to_string();
        assert!(
            error.contains("no node has the host name or id 'a/b?c'"),
            "{error}"
        );

        let mut carried = relay.carry();
        let agent = async {
            let (node, request) = carried.recv().await.unwrap();
            let RelayedRequest::Read { path, answer } = request else {
                panic!("{request:?}");
            };
            assert_eq!((node.as_str(), path.as_str()), ("id2", "flows?service=web"));
            answer.send(ask("flows").await).unwrap();
        };
        let on = client.on("n2");
        let (answer, ()) = tokio::join!(on.flows(&query), agent);
        assert!(!answer.unwrap().flows.is_empty());
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_worker_asks_no_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let server = server(&socket, NodeRole::Worker, &Relay::default()).await;
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let client = Client::new(&socket).unwrap();
        let error = client.on("n2").status().await.unwrap_err().to_string();
        assert!(error.contains("only a manager can ask"), "{error}");
        assert_eq!(client.on("n1").status().await.unwrap().hostname, "n1");
        stop.cancel();
        running.await.unwrap();
    }
}
