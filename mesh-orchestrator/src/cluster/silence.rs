//! Which nodes are heard and which have been silent for too long. Pure: what is heard and the time go in,
//! statuses come out. Imports `objects`.

use std::{collections::BTreeMap, time::Duration};

use super::Presence;
use crate::objects::{NodeId, NodeStatus, State, Timestamp};

/// What a leader remembers of nodes' presences in its term.
///
/// A registration that ends by itself has missed its heartbeats already: the node is down. But who has just
/// come to power knows nothing: after an outage of the store nobody may have been able to register yet. So
/// each node has the time of its heartbeats to be heard for the first time, as has one that has said that it
/// will be back.
#[derive(Debug)]
pub(super) struct Silence {
    patience: Duration,
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
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            heard: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Looks at all nodes.
    pub(super) fn look(
        &mut self,
        state: &State,
        presences: &BTreeMap<NodeId, Presence>,
        now: Timestamp,
    ) -> Found {
        let mut found = Found::default();
        self.heard.retain(|id, _| state.nodes().contains_key(id));
        self.waiting.retain(|id, _| state.nodes().contains_key(id));
        for (id, node) in state.nodes() {
            let status = match presences.get(id) {
                Some(presence) => {
                    self.heard.insert(id.clone(), presence.leaving);
                    self.waiting.remove(id);
                    if presence.engine {
                        NodeStatus::Ready
                    } else {
                        NodeStatus::Unknown
                    }
                }
                None if node.status == NodeStatus::Down => NodeStatus::Down,
                None => {
                    let until = *self.waiting.entry(id.clone()).or_insert_with(|| {
                        let is_over = self.heard.get(id).is_some_and(|leaving| !leaving);
                        if is_over { now } else { now + self.patience }
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
    use crate::{loops::testing::node, objects::Change};

    const PATIENCE: Duration = Duration::from_secs(15);

    fn state(status: NodeStatus) -> State {
        let mut state = State::default();
        let node = crate::objects::Node {
            id: "a".into(),
            status,
            ..node(1)
        };
        state.apply(&Change::PutNode(Box::new(node))).unwrap();
        state
    }

    fn presences(leaving: bool) -> BTreeMap<NodeId, Presence> {
        let presence = Presence {
            engine: true,
            leaving,
            ..Presence::default()
        };
        BTreeMap::from([("a".into(), presence)])
    }

    fn nobody() -> BTreeMap<NodeId, Presence> {
        BTreeMap::new()
    }

    #[test]
    fn a_node_that_is_heard_is_ready_and_one_without_engine_unknown() {
        let mut silence = Silence::new(PATIENCE);
        let mut heard = presences(false);
        let found = silence.look(&state(NodeStatus::Down), &heard, Timestamp(0));
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Ready)]);
        heard.get_mut("a").unwrap().engine = false;
        let found = silence.look(&state(NodeStatus::Ready), &heard, Timestamp(0));
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Unknown)]);
    }

    #[test]
    fn a_registration_that_has_ended_is_the_end_of_patience() {
        let mut silence = Silence::new(PATIENCE);
        let ready = state(NodeStatus::Ready);
        assert_eq!(
            silence.look(&ready, &presences(false), Timestamp(5)),
            Found::default()
        );
        let found = silence.look(&ready, &nobody(), Timestamp(5));
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn a_new_leader_gives_everybody_time_to_be_heard() {
        let mut silence = Silence::new(PATIENCE);
        let ready = state(NodeStatus::Ready);
        let found = silence.look(&ready, &nobody(), Timestamp(5));
        let until = Timestamp(15_005);
        assert_eq!(found.statuses, []);
        assert_eq!(found.wake_at, Some(until));
        let found = silence.look(&ready, &nobody(), until);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn who_will_be_back_is_waited_for() {
        let mut silence = Silence::new(PATIENCE);
        let ready = state(NodeStatus::Ready);
        silence.look(&ready, &presences(true), Timestamp(0));
        let found = silence.look(&ready, &nobody(), Timestamp(7));
        assert_eq!(
            (found.statuses.len(), found.wake_at),
            (0, Some(Timestamp(15_007)))
        );
        // Back in time.
        assert_eq!(
            silence.look(&ready, &presences(false), Timestamp(9)),
            Found::default()
        );
        let found = silence.look(&ready, &nobody(), Timestamp(10));
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }
}
