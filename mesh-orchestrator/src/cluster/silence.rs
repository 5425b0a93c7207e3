//! Which nodes are heard and which have been silent for too long. Pure: what is heard and the time go in,
//! statuses come out. Imports `objects`.

use std::{collections::BTreeMap, time::Duration};

use super::Registration;
use crate::objects::{NodeId, NodeStatus, State, Timestamp};

/// What a leader remembers of nodes' registrations in its term.
///
/// A registration that ends by itself has missed its heartbeats already: the node is down. But a node that was
/// never heard in this term, or has said that it will be back, has the time of its heartbeats first. And who
/// has just come to power waits for everybody: after an outage of the store a registration may be left from
/// before, and end now, while its node still waits for the answer to a question that the store has lost.
#[derive(Debug)]
pub(super) struct Silence {
    patience: Duration,
    /// Until when nobody is given up.
    settled_at: Timestamp,
    /// Nodes that were heard, and whether they were about to leave.
    heard: BTreeMap<NodeId, bool>,
    /// Until when a silent node is waited for.
    waiting: BTreeMap<NodeId, Timestamp>,
}

/// What is found of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Nodes whose status is another now.
    pub(super) statuses: Vec<(NodeId, NodeStatus)>,
    /// When to look again if nothing is heard before.
    pub(super) wake_at: Option<Timestamp>,
}

impl Silence {
    /// For a term that begins now, with the time of nodes' heartbeats. It is added to what a question to
    /// the store can take.
    pub(super) fn new(patience: Duration, settle: Duration, now: Timestamp) -> Self {
        Self {
            patience,
            settled_at: now + patience + settle,
            heard: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Looks at all nodes.
    pub(super) fn look(
        &mut self,
        state: &State,
        registrations: &BTreeMap<NodeId, Registration>,
        now: Timestamp,
    ) -> Found {
        let mut found = Found::default();
        self.heard.retain(|id, _| state.nodes().contains_key(id));
        self.waiting.retain(|id, _| state.nodes().contains_key(id));
        for (id, node) in state.nodes() {
            let status = match registrations.get(id) {
                Some(registration) => {
                    self.heard.insert(id.clone(), registration.leaving);
                    self.waiting.remove(id);
                    if registration.engine {
                        NodeStatus::Ready
                    } else {
                        NodeStatus::Unknown
                    }
                }
                None if node.status == NodeStatus::Down => NodeStatus::Down,
                None => {
                    let until = *self.waiting.entry(id.clone()).or_insert_with(|| {
                        let is_over = self.heard.get(id).is_some_and(|leaving| !leaving);
                        let until = if is_over { now } else { now + self.patience };
                        until.max(self.settled_at)
                    });
                    if until <= now {
                        NodeStatus::Down
                    } else {
                        found.wake_at = Some(found.wake_at.map_or(until, |wake| wake.min(until)));
                        node.status
                    }
                }
            };
            if status != node.status {
                found.statuses.push((id.clone(), status));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{loops::testing::node, objects::ObjectChange};

    const PATIENCE: Duration = Duration::from_secs(15);

    fn state(status: NodeStatus) -> State {
        let mut state = State::default();
        let node = crate::objects::Node {
            id: "a".into(),
            status,
            ..node(1)
        };
        state.apply(&ObjectChange::PutNode(Box::new(node))).unwrap();
        state
    }

    fn registrations(leaving: bool) -> BTreeMap<NodeId, Registration> {
        let registration = Registration {
            engine: true,
            leaving,
            ..Registration::default()
        };
        BTreeMap::from([("a".into(), registration)])
    }

    fn nobody() -> BTreeMap<NodeId, Registration> {
        BTreeMap::new()
    }

    /// Of a leader that has been in power for some time.
    fn settled() -> Silence {
        Silence::new(PATIENCE, Duration::ZERO, Timestamp(0))
    }

    const LATER: Timestamp = Timestamp(100_000);

    #[test]
    fn a_node_that_is_heard_is_ready_and_one_without_engine_unknown() {
        let mut silence = settled();
        let mut heard = registrations(false);
        let found = silence.look(&state(NodeStatus::Down), &heard, LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Ready)]);
        heard.get_mut("a").unwrap().engine = false;
        let found = silence.look(&state(NodeStatus::Ready), &heard, LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Unknown)]);
    }

    #[test]
    fn a_registration_that_has_ended_is_the_end_of_patience() {
        let mut silence = settled();
        let ready = state(NodeStatus::Ready);
        assert_eq!(
            silence.look(&ready, &registrations(false), LATER),
            Found::default()
        );
        let found = silence.look(&ready, &nobody(), LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn a_new_leader_gives_everybody_time_to_be_heard() {
        // Heard or not: what is there at first may be left from before an outage.
        for at_first in [registrations(false), nobody()] {
            let mut silence = Silence::new(PATIENCE, Duration::from_secs(10), LATER);
            let ready = state(NodeStatus::Ready);
            silence.look(&ready, &at_first, LATER);
            let until = LATER + PATIENCE + Duration::from_secs(10);
            let found = silence.look(&ready, &nobody(), LATER + Duration::from_secs(1));
            assert_eq!((found.statuses.len(), found.wake_at), (0, Some(until)));
            let found = silence.look(&ready, &nobody(), until);
            assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
        }
    }

    #[test]
    fn a_new_node_is_waited_for() {
        let found = settled().look(&state(NodeStatus::Unknown), &nobody(), LATER);
        assert_eq!((found.statuses.len(), found.wake_at), (0, Some(LATER + PATIENCE)));
    }

    #[test]
    fn who_will_be_back_is_waited_for() {
        let mut silence = settled();
        let ready = state(NodeStatus::Ready);
        silence.look(&ready, &registrations(true), LATER);
        let found = silence.look(&ready, &nobody(), LATER);
        assert_eq!((found.statuses.len(), found.wake_at), (0, Some(LATER + PATIENCE)));
        // Back in time.
        assert_eq!(
            silence.look(&ready, &registrations(false), LATER),
            Found::default()
        );
        let found = silence.look(&ready, &nobody(), LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }
}
