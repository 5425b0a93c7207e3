//! Drains replicas and lists what is drained: on this node and, if it is a manager, on others, whose agents
//! are asked over the feed.

use std::sync::Arc;

use mesh_support::error_chain;

use super::{
    Control, Introspect, View,
    api::{self, DrainAnswer, Elsewhere},
    control::Request,
    drained::drained,
};
use crate::{
    model::{DrainReport, DrainRequest, DrainTarget, NodeId, NodeRole},
    source::Relay,
};

/// Carries out what operators and managers ask.
#[derive(Clone)]
pub(super) struct Drains {
    agent: Arc<dyn Introspect>,
    control: Control,
    relay: Relay,
}

impl Drains {
    /// Of an agent and, if it is a manager's, of those that are connected to it.
    #[must_use]
    pub(super) fn new(agent: Arc<dyn Introspect>, control: Control, relay: Relay) -> Self {
        Self {
            agent,
            control,
            relay,
        }
    }

    /// Carries out a request of this node's operator, wherever the replica runs.
    pub(super) async fn execute(&self, request: DrainRequest) -> Result<DrainAnswer, String> {
        let view = self.agent.view();
        let Some(elsewhere) = elsewhere(&view, &request.target) else {
            return self.here(Some(request)).await.map(|report| answer(report, None));
        };
        let request = DrainRequest {
            // Names may mean something else there.
            target: elsewhere.id,
            ..request
        };
        self.there(elsewhere.node, &view, Some(request)).await
    }

    /// What a node drains, this one if none is given.
    pub(super) async fn list(&self, node: Option<NodeId>) -> Result<DrainAnswer, String> {
        let view = self.agent.view();
        match node.filter(|node| *node != view.node) {
            Some(node) => self.there(node, &view, None).await,
            None => self.here(None).await.map(|report| answer(report, None)),
        }
    }

    /// Carries out a request about this node's replicas.
    pub(super) async fn here(&self, request: Option<DrainRequest>) -> Result<DrainReport, String> {
        if let Some(request) = request {
            self.control.ask(Request::Drain(request)).await?;
        }
        let agent = Arc::clone(&self.agent);
        let counters = tokio::task::spawn_blocking(move || agent.counters());
        let counters = match counters.await {
            Ok(Ok(counters)) => counters,
            Ok(Err(error)) => return Err(error_chain(&error)),
            Err(error) => return Err(format!("reading the counters was aborted: {error}")),
        };
        Ok(drained(&self.agent.view(), &counters))
    }

    async fn there(
        &self,
        node: NodeId,
        view: &View,
        request: Option<DrainRequest>,
    ) -> Result<DrainAnswer, String> {
        let listed = view.source.cluster.nodes.get(&node);
        let hostname = listed.map_or_else(|| node.clone(), |node| node.hostname.clone());
        match self.relay.drain(&node, request).await {
            Ok(report) => Ok(answer(
                report,
                Some(Elsewhere {
                    node_id: node,
                    hostname,
                }),
            )),
            Err(error) => Err(format!("{hostname}: {error}")),
        }
    }
}

fn answer(report: DrainReport, elsewhere: Option<Elsewhere>) -> DrainAnswer {
    DrainAnswer {
        version: api::VERSION,
        elsewhere,
        report,
    }
}

/// A target on another node.
#[derive(Debug, PartialEq, Eq)]
struct There {
    node: NodeId,
    /// The target's id.
    id: String,
}

/// Where a target is, if this node is a manager and it is not here. Other nodes carry out what managers ask,
/// and nothing else.
fn elsewhere(view: &View, target: &str) -> Option<There> {
    let target = DrainTarget::find(target, &view.source.cluster, &view.node)?;
    let manager = view.role == Some(NodeRole::Manager);
    (manager && *target.node() != view.node).then(|| There {
        node: target.node().clone(),
        id: target.id().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    #[test]
    fn a_manager_asks_the_node_of_the_replica_and_others_do_not() {
        let (mut view, _) = fixture::two_nodes();
        view.role = Some(NodeRole::Manager);
        let there = |id: &str| {
            Some(There {
                node: "id2".to_owned(),
                id: id.to_owned(),
            })
        };
        for (target, expected) in [
            ("web.2", there("t2")),
            ("t2", there("t2")),
            ("n2", there("id2")),
            ("id2", there("id2")),
            ("web.1", None),
            ("n1", None),
            ("web.9", None),
        ] {
            assert_eq!(elsewhere(&view, target), expected, "{target}");
        }
        view.role = Some(NodeRole::Worker);
        assert_eq!(elsewhere(&view, "web.2"), None);
    }
}
