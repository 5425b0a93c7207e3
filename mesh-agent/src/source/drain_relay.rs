//! Requests about drains on their way from a manager to the node whose replicas they are about. In a Swarm
//! the feed carries them, over the connection that each node's agent keeps to the manager; without a Swarm,
//! one carrier knows the way to all agents. What the requests do is none of their business. Imports the model
//! only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::model::{DrainReport, DrainRequest, NodeId};

/// How many requests to one node may wait.
const WAITING: usize = 4;
/// A node's agent carries a request out within a fraction of a second; the rest is for a loaded machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A request that came from another node, and the channel for the answer.
#[derive(Debug)]
pub struct RelayedDrain {
    /// What to do first, if anything.
    pub request: Option<DrainRequest>,
    /// Receives what is drained then, or why nothing has changed.
    pub answer: oneshot::Sender<Result<DrainReport, String>>,
}

/// A node's agent could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// There is no connection that takes such requests.
    #[error(
        "its agent is not connected to this manager's, or is of a release that cannot be asked: run the command on \
         that node"
    )]
    NotConnected,
    /// The connection ended, or the agent took too long.
    #[error("its agent did not answer; the request may have been carried out, so ask again")]
    NoAnswer,
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
}

/// A manager's ways to the agents that take requests; clones share them.
#[derive(Clone, Debug, Default)]
pub struct DrainRelay(Arc<Mutex<Ways>>);

#[derive(Debug, Default)]
struct Ways {
    /// The nodes whose agents have connected.
    connections: BTreeMap<NodeId, mpsc::Sender<RelayedDrain>>,
    /// Carries requests to all other nodes.
    carrier: Option<mpsc::Sender<(NodeId, RelayedDrain)>>,
}

impl DrainRelay {
    /// Asks the agent of a node, and waits for its answer.
    ///
    /// # Errors
    /// When it cannot be asked, or refuses.
    pub async fn ask(&self, node: &str, request: Option<DrainRequest>) -> Result<DrainReport, RelayError> {
        let (connection, carrier) = {
            let ways = self.lock();
            (ways.connections.get(node).cloned(), ways.carrier.clone())
        };
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let relayed = RelayedDrain { request, answer };
            let is_sent = match (connection, carrier) {
                (Some(connection), _) => connection.send(relayed).await.is_ok(),
                (None, Some(carrier)) => carrier.send((node.to_owned(), relayed)).await.is_ok(),
                (None, None) => false,
            };
            if !is_sent {
                return Err(RelayError::NotConnected);
            }
            answered.await.map_err(|_| RelayError::NoAnswer)
        };
        timeout(ANSWER_LIMIT, asked)
            .await
            .unwrap_or(Err(RelayError::NoAnswer))?
            .map_err(RelayError::Refused)
    }

    /// The requests to a node that has connected. They end when it has a newer connection.
    pub(super) fn open(&self, node: &str) -> RelayedRequests {
        let (sender, requests) = mpsc::channel(WAITING);
        self.lock().connections.insert(node.to_owned(), sender.clone());
        RelayedRequests {
            relay: self.clone(),
            node: node.to_owned(),
            // Weak, so that the newest connection's is the only sender.
            sender: sender.downgrade(),
            requests,
        }
    }

    /// The requests to all nodes that have no connection of their own, for who knows the way to them.
    pub(crate) fn carry(&self) -> mpsc::Receiver<(NodeId, RelayedDrain)> {
        let (sender, requests) = mpsc::channel(WAITING);
        self.lock().carrier = Some(sender);
        requests
    }

    fn lock(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests to one node, until the connection ends.
#[derive(Debug)]
pub(super) struct RelayedRequests {
    relay: DrainRelay,
    node: NodeId,
    sender: mpsc::WeakSender<RelayedDrain>,
    requests: mpsc::Receiver<RelayedDrain>,
}

impl RelayedRequests {
    /// The next request; waits for ever when there is a newer connection. Cancel safe.
    pub(super) async fn next(&mut self) -> RelayedDrain {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Drop for RelayedRequests {
    fn drop(&mut self) {
        let mut ways = self.relay.lock();
        let own = self.sender.upgrade();
        let current = ways.connections.get(&self.node);
        if own
            .zip(current)
            .is_some_and(|(own, current)| own.same_channel(current))
        {
            ways.connections.remove(&self.node);
        }
    }
}

/// What was asked on one connection and is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    last: u64,
    waiting: BTreeMap<u64, (oneshot::Sender<Result<DrainReport, String>>, DrainReport)>,
}

/// More replicas than a node runs: what a hostile node can make a manager keep.
const MAX_REPLICAS: usize = 4096;

impl Pending {
    /// Numbers a request.
    pub(super) fn ask(&mut self, answer: oneshot::Sender<Result<DrainReport, String>>) -> u64 {
        self.waiting.retain(|_, (answer, _)| !answer.is_closed());
        self.last += 1;
        self.waiting.insert(self.last, (answer, DrainReport::default()));
        self.last
    }

    /// Takes a part of an answer; the last one completes it. What no one waits for is ignored.
    pub(super) fn answer(&mut self, number: u64, part: Result<DrainReport, String>, more: bool) {
        let Some((_, report)) = self.waiting.get_mut(&number) else {
            return;
        };
        let refused = match part {
            Ok(part) => {
                report.node = part.node;
                report.replicas.extend(part.replicas);
                None
            }
            Err(refusal) => Some(refusal),
        };
        if more && refused.is_none() && report.replicas.len() <= MAX_REPLICAS {
            return;
        }
        if let Some((answer, report)) = self.waiting.remove(&number) {
            // It may have given up.
            let _ = answer.send(refused.map_or(Ok(report), Err));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DrainedReplica;

    fn report(tasks: &[&str]) -> DrainReport {
        let replica = |task: &&str| DrainedReplica {
            task: (*task).to_owned(),
            task_id: format!("id-{task}"),
            open: Some(1),
        };
        DrainReport {
            node: false,
            replicas: tasks.iter().map(replica).collect(),
        }
    }

    #[tokio::test]
    async fn a_node_without_a_connection_cannot_be_asked() {
        let relay = DrainRelay::default();
        assert_eq!(relay.ask("a", None).await, Err(RelayError::NotConnected));
        drop(relay.open("a"));
        assert_eq!(relay.ask("a", None).await, Err(RelayError::NotConnected));
    }

    #[tokio::test]
    async fn the_newest_connection_of_a_node_is_asked() {
        let relay = DrainRelay::default();
        let old = relay.open("a");
        let mut new = relay.open("a");
        drop(old);
        let answered = async {
            let asked = new.next().await;
            asked.answer.send(Ok(report(&["web.1"]))).unwrap();
        };
        let (answer, ()) = tokio::join!(relay.ask("a", None), answered);
        assert_eq!(answer, Ok(report(&["web.1"])));
    }

    #[tokio::test]
    async fn a_carrier_takes_the_requests_to_nodes_that_have_not_connected() {
        let relay = DrainRelay::default();
        let mut carried = relay.carry();
        let mut connected = relay.open("a");
        let answered = async {
            let (node, asked) = carried.recv().await.unwrap();
            asked.answer.send(Err(format!("asked {node}"))).unwrap();
            let asked = connected.next().await;
            asked.answer.send(Ok(report(&["web.1"]))).unwrap();
        };
        let asked = async { (relay.ask("b", None).await, relay.ask("a", None).await) };
        let ((other, own), ()) = tokio::join!(asked, answered);
        assert_eq!(other, Err(RelayError::Refused("asked b".to_owned())));
        assert_eq!(own, Ok(report(&["web.1"])));
        drop(carried);
        assert_eq!(relay.ask("b", None).await, Err(RelayError::NotConnected));
    }

    #[tokio::test]
    async fn the_parts_of_an_answer_make_one() {
        let mut pending = Pending::default();
        let (answer, answered) = oneshot::channel();
        let (other, refused) = oneshot::channel();
        let (number, second) = (pending.ask(answer), pending.ask(other));
        pending.answer(number, Ok(report(&["web.1"])), true);
        pending.answer(second, Err("no".to_owned()), false);
        pending.answer(number, Ok(report(&["web.2"])), false);
        pending.answer(number, Ok(report(&["web.3"])), false);
        assert_eq!(answered.await.unwrap(), Ok(report(&["web.1", "web.2"])));
        assert_eq!(refused.await.unwrap(), Err("no".to_owned()));
    }
}
