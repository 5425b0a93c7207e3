//! Requests to other nodes: asks their agents over mutual TLS, and takes what other agents ask of this one.
//! The answer is the node's own, refusals included.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    routing::{get, post},
};
use mesh_orchestrator::objects::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::peers::{DRAIN_PATH, DrainAnswer, NotFromHere, READ_PATH, ReadAnswer, TlsPeers};
use crate::{
    model::DrainRequest,
    source::{Relay, RelayedRequest, relay::Answer},
};

/// Carries a manager's requests to other nodes' agents, for ever, if this node may ask.
pub(super) async fn carry(relay: &Relay, peers: Result<Arc<TlsPeers>, NotFromHere>) {
    let mut requests = relay.carry();
    while let Some((node, request)) = requests.recv().await {
        let peers = peers.clone();
        let node = NodeId::from(node.as_str());
        // One that does not answer must not keep the others waiting.
        tokio::spawn(async move {
            // The operator may have given up.
            match (request, peers) {
                (RelayedRequest::Drain { request, answer }, Ok(peers)) => {
                    let _ = answer.send(peers.drain(&node, request).await);
                }
                (RelayedRequest::Read { path, answer }, Ok(peers)) => {
                    let _ = answer.send(peers.read(&node, &path).await);
                }
                (RelayedRequest::Drain { answer, .. }, Err(why)) => {
                    let _ = answer.send(Err(why.to_string()));
                }
                (RelayedRequest::Read { answer, .. }, Err(why)) => {
                    let _ = answer.send(Err(why.to_string()));
                }
            }
        });
    }
    // The agent is stopping.
    std::future::pending::<()>().await;
}

/// Takes what other agents ask of this node. For a listener that only they can use.
pub(super) fn routes(relayed: mpsc::Sender<RelayedRequest>) -> Router {
    Router::new()
        .route(DRAIN_PATH, get(list))
        .route(DRAIN_PATH, post(change))
        .route(&format!("{READ_PATH}/{{*path}}"), get(read))
        .with_state(relayed)
}

async fn list(State(relayed): State<mpsc::Sender<RelayedRequest>>) -> Json<DrainAnswer> {
    let request = None;
    Json(ask(&relayed, |answer| RelayedRequest::Drain { request, answer }).await)
}

async fn change(
    State(relayed): State<mpsc::Sender<RelayedRequest>>,
    Json(request): Json<DrainRequest>,
) -> Json<DrainAnswer> {
    let request = Some(request);
    Json(ask(&relayed, |answer| RelayedRequest::Drain { request, answer }).await)
}

async fn read(
    State(relayed): State<mpsc::Sender<RelayedRequest>>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
) -> Json<ReadAnswer> {
    let path = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    Json(ask(&relayed, |answer| RelayedRequest::Read { path, answer }).await)
}

async fn ask<T>(
    relayed: &mpsc::Sender<RelayedRequest>,
    request: impl FnOnce(Answer<T>) -> RelayedRequest,
) -> Result<T, String> {
    let stopping = || "the agent is stopping".to_owned();
    let (answer, answered) = oneshot::channel();
    let sent = relayed.send(request(answer)).await;
    sent.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())?
}
