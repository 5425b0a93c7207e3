//! Requests on their way from a manager to another node's agent: drains, and what operators read there. In a
//! Swarm the feed carries them, over the connection that each node's agent keeps to the manager; without a
//! Swarm, one carrier knows the way to all agents. What the requests do is none of their business. Imports
//! the model only.

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
/// The longest text that is read from another node, in bytes: more than the longest list of flows.
pub(crate) const MAX_TEXT: usize = 8 << 20;

/// Receives what came of a request, or why nothing did.
pub type Answer<T> = oneshot::Sender<Result<T, String>>;

/// A request that came from another node, and the channel for the answer.
#[derive(Debug)]
pub enum RelayedRequest {
    /// An operator drains replicas of this node, or asks which are.
    Drain {
        /// What to do first, if anything.
        request: Option<DrainRequest>,
        /// Receives what is drained then.
        answer: Answer<DrainReport>,
    },
    /// An operator reads what this node's agent shows on its own admin socket.
    Read {
        /// What to read: a path below the version of the admin API, with its query.
        path: String,
        /// Receives the answer's JSON.
        answer: Answer<String>,
    },
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
pub struct Relay(Arc<Mutex<Ways>>);

#[derive(Debug, Default)]
struct Ways {
    /// The nodes whose agents have connected.
    connections: BTreeMap<NodeId, Way>,
    /// Carries requests to all other nodes.
    carrier: Option<mpsc::Sender<(NodeId, RelayedRequest)>>,
}

#[derive(Clone, Debug)]
struct Way {
    sender: mpsc::Sender<RelayedRequest>,
    takes_reads: bool,
}

impl Relay {
    /// Drains replicas of a node, or asks which are.
    ///
    /// # Errors
    /// When its agent cannot be asked, or refuses.
    pub async fn drain(&self, node: &str, request: Option<DrainRequest>) -> Result<DrainReport, RelayError> {
        self.ask(node, |answer| RelayedRequest::Drain { request, answer })
            .await
    }

    /// Reads what a node's agent shows at a path of its admin API, as JSON.
    ///
    /// # Errors
    /// When its agent cannot be asked, or refuses.
    pub async fn read(&self, node: &str, path: String) -> Result<String, RelayError> {
        self.ask(node, |answer| RelayedRequest::Read { path, answer })
            .await
    }

    async fn ask<T>(
        &self,
        node: &str,
        request: impl FnOnce(Answer<T>) -> RelayedRequest,
    ) -> Result<T, RelayError> {
        let (way, carrier) = {
            let ways = self.lock();
            (ways.connections.get(node).cloned(), ways.carrier.clone())
        };
        let (answer, answered) = oneshot::channel();
        let request = request(answer);
        let asked = async {
            let is_sent = match (way, carrier, &request) {
                (Some(way), _, RelayedRequest::Read { .. }) if !way.takes_reads => false,
                (Some(way), _, _) => way.sender.send(request).await.is_ok(),
                (None, Some(carrier), _) => carrier.send((node.to_owned(), request)).await.is_ok(),
                (None, None, _) => false,
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
    pub(super) fn open(&self, node: &str, takes_reads: bool) -> RelayedRequests {
        let (sender, requests) = mpsc::channel(WAITING);
        // Weak, so that the newest connection's is the only sender.
        let weak = sender.downgrade();
        let way = Way { sender, takes_reads };
        self.lock().connections.insert(node.to_owned(), way);
        RelayedRequests {
            relay: self.clone(),
            node: node.to_owned(),
            sender: weak,
            requests,
        }
    }

    /// The requests to all nodes that have no connection of their own, for who knows the way to them.
    pub(crate) fn carry(&self) -> mpsc::Receiver<(NodeId, RelayedRequest)> {
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
    relay: Relay,
    node: NodeId,
    sender: mpsc::WeakSender<RelayedRequest>,
    requests: mpsc::Receiver<RelayedRequest>,
}

impl RelayedRequests {
    /// The next request; waits for ever when there is a newer connection. Cancel safe.
    pub(super) async fn next(&mut self) -> RelayedRequest {
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
            .is_some_and(|(own, current)| own.same_channel(&current.sender))
        {
            ways.connections.remove(&self.node);
        }
    }
}

/// What was asked on one connection and is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    last: u64,
    drains: BTreeMap<u64, (Answer<DrainReport>, DrainReport)>,
    reads: BTreeMap<u64, (Answer<String>, String)>,
}

/// More replicas than a node runs: what a hostile node can make a manager keep.
const MAX_REPLICAS: usize = 4096;

impl Pending {
    /// Numbers a request about drains.
    pub(super) fn drain(&mut self, answer: Answer<DrainReport>) -> u64 {
        let number = self.number();
        self.drains.insert(number, (answer, DrainReport::default()));
        number
    }

    /// Numbers a request to read.
    pub(super) fn read(&mut self, answer: Answer<String>) -> u64 {
        let number = self.number();
        self.reads.insert(number, (answer, String::new()));
        number
    }

    fn number(&mut self) -> u64 {
        self.drains.retain(|_, (answer, _)| !answer.is_closed());
        self.reads.retain(|_, (answer, _)| !answer.is_closed());
        self.last += 1;
        self.last
    }

    /// Takes a part of what is drained; the last one completes the answer. What no one waits for is ignored.
    pub(super) fn drained(&mut self, number: u64, part: Result<DrainReport, String>, more: bool) {
        let Some((_, report)) = self.drains.get_mut(&number) else {
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
        if let Some((answer, report)) = self.drains.remove(&number) {
            // It may have given up.
            let _ = answer.send(refused.map_or(Ok(report), Err));
        }
    }

    /// Takes a part of what is read, likewise.
    pub(super) fn was_read(&mut self, number: u64, part: Result<String, String>, more: bool) {
        let Some((answer, text)) = self.reads.get_mut(&number) else {
            return;
        };
        let refused = match part {
            Ok(part) if text.len() + part.len() > MAX_TEXT => Some("its answer is too long".to_owned()),
            Ok(part) => {
                text.push_str(&part);
                None
            }
            Err(refusal) => Some(refusal),
        };
        if more && refused.is_none() && !answer.is_closed() {
            return;
        }
        if let Some((answer, text)) = self.reads.remove(&number) {
            let _ = answer.send(refused.map_or(Ok(text), Err));
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

    fn drain(request: RelayedRequest) -> Answer<DrainReport> {
        match request {
            RelayedRequest::Drain { answer, .. } => answer,
            RelayedRequest::Read { .. } => panic!("{request:?}"),
        }
    }

    #[tokio::test]
    async fn a_node_without_a_connection_cannot_be_asked() {
        let relay = Relay::default();
        assert_eq!(relay.drain("a", None).await, Err(RelayError::NotConnected));
        drop(relay.open("a", true));
        assert_eq!(relay.drain("a", None).await, Err(RelayError::NotConnected));
    }

    #[tokio::test]
    async fn the_newest_connection_of_a_node_is_asked() {
        let relay = Relay::default();
        let old = relay.open("a", true);
        let mut new = relay.open("a", true);
        drop(old);
        let answered = async {
            drain(new.next().await).send(Ok(report(&["web.1"]))).unwrap();
        };
        let (answer, ()) = tokio::join!(relay.drain("a", None), answered);
        assert_eq!(answer, Ok(report(&["web.1"])));
    }

    #[tokio::test]
    async fn a_carrier_takes_the_requests_to_nodes_that_have_not_connected() {
        let relay = Relay::default();
        let mut carried = relay.carry();
        let mut connected = relay.open("a", true);
        let answered = async {
            let (node, asked) = carried.recv().await.unwrap();
            drain(asked).send(Err(format!("asked {node}"))).unwrap();
            drain(connected.next().await)
                .send(Ok(report(&["web.1"])))
                .unwrap();
        };
        let asked = async { (relay.drain("b", None).await, relay.drain("a", None).await) };
        let ((other, own), ()) = tokio::join!(asked, answered);
        assert_eq!(other, Err(RelayError::Refused("asked b".to_owned())));
        assert_eq!(own, Ok(report(&["web.1"])));
        drop(carried);
        assert_eq!(relay.drain("b", None).await, Err(RelayError::NotConnected));
    }

    #[tokio::test]
    async fn the_parts_of_an_answer_make_one() {
        let mut pending = Pending::default();
        let (answer, answered) = oneshot::channel();
        let (other, refused) = oneshot::channel();
        let (number, second) = (pending.drain(answer), pending.drain(other));
        pending.drained(number, Ok(report(&["web.1"])), true);
        pending.drained(second, Err("no".to_owned()), false);
        pending.drained(number, Ok(report(&["web.2"])), false);
        pending.drained(number, Ok(report(&["web.3"])), false);
        assert_eq!(answered.await.unwrap(), Ok(report(&["web.1", "web.2"])));
        assert_eq!(refused.await.unwrap(), Err("no".to_owned()));
    }

    #[tokio::test]
    async fn an_agent_of_an_earlier_release_is_not_asked_what_it_does_not_know() {
        let relay = Relay::default();
        let _requests = relay.open("a", false);
        let read = relay.read("a", "flows".to_owned()).await;
        assert_eq!(read, Err(RelayError::NotConnected));
    }

    #[tokio::test]
    async fn what_is_read_is_put_together_and_bounded() {
        let mut pending = Pending::default();
        let (answer, answered) = oneshot::channel();
        let (long, refused) = oneshot::channel();
        let (given_up, _) = oneshot::channel();
        let (number, endless) = (pending.read(answer), pending.read(long));
        let abandoned = pending.read(given_up);
        pending.was_read(number, Ok("{\"a\"".to_owned()), true);
        pending.was_read(number, Ok(":1}".to_owned()), false);
        pending.was_read(number, Ok("more".to_owned()), false);
        assert_eq!(answered.await.unwrap(), Ok("{\"a\":1}".to_owned()));
        for _ in 0..=MAX_TEXT / (1 << 20) {
            pending.was_read(endless, Ok("x".repeat(1 << 20)), true);
        }
        assert_eq!(refused.await.unwrap(), Err("its answer is too long".to_owned()));
        pending.was_read(abandoned, Ok("x".to_owned()), true);
        assert!(pending.reads.is_empty(), "{pending:?}");
    }
}
