//! Drains on other nodes: asks their agents over mutual TLS, and takes what other agents ask of this one. The
//! answer is the node's own, refusals included.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use mesh_orchestrator::objects::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::peers::{DRAIN_PATH, DrainAnswer, NoCertificates, TlsPeers};
use crate::{
    model::DrainRequest,
    source::{DrainRelay, RelayedDrain},
};

/// Carries a manager's requests to other nodes' agents, for ever; `None`: there are no certificates.
pub(super) async fn carry(relay: &DrainRelay, peers: Option<Arc<TlsPeers>>) {
    let mut requests = relay.carry();
    while let Some((node, RelayedDrain { request, answer })) = requests.recv().await {
        let peers = peers.clone();
        // One that does not answer must not keep the others waiting.
        tokio::spawn(async move {
            let answered = match peers {
                Some(peers) => peers.drain(&NodeId::from(node.as_str()), request).await,
                None => Err(NoCertificates.to_string()),
            };
            // The operator may have given up.
            let _ = answer.send(answered);
        });
    }
    // The agent is stopping.
    std::future::pending::<()>().await;
}

/// Takes what other agents ask of this node. For a listener that only they can use.
pub(super) fn routes(relayed: mpsc::Sender<RelayedDrain>) -> Router {
    Router::new()
        .route(DRAIN_PATH, get(list))
        .route(DRAIN_PATH, post(change))
        .with_state(relayed)
}

async fn list(State(relayed): State<mpsc::Sender<RelayedDrain>>) -> Json<DrainAnswer> {
    Json(ask(&relayed, None).await)
}

async fn change(
    State(relayed): State<mpsc::Sender<RelayedDrain>>,
    Json(request): Json<DrainRequest>,
) -> Json<DrainAnswer> {
    Json(ask(&relayed, Some(request)).await)
}

async fn ask(relayed: &mpsc::Sender<RelayedDrain>, request: Option<DrainRequest>) -> DrainAnswer {
    let stopping = || "the agent is stopping".to_owned();
    let (answer, answered) = oneshot::channel();
    let sent = relayed.send(RelayedDrain { request, answer }).await;
    sent.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())?
}
