//! Which nodes are alive, and which have been silent for too long. Pure: registrations and the time go in,
//! statuses come out. Imports `objects`.

use std::{collections::BTreeMap, time::Duration};

use super::Registration;
use crate::objects::{Node, NodeId, NodeStatus, State, Timestamp};

/// How long a node's engine may not answer until the node is down: its agent cannot know then whether its
/// containers run. An engine that is upgraded is back before.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);
/// How long another program of the agent may take to register the node: the kernel checks its programs first,
/// which takes a busy machine longer than three heartbeats, and one that fails goes back to the last program.
const REPLACED_PATIENCE: Duration = Duration::from_secs(60);

/// What a leader knows about nodes' registrations in its term.
///
/// A registration that ends has missed its heartbeats already, so its node is down. A node that was not seen
/// in this term, or announced that it will be back, has the time of its heartbeats first, and more if another
/// program replaces its agent. A new leader waits for all nodes: after an outage of the store, an old
/// registration may end now while its node still waits for the answer to a request that the store has lost.
#[derive(Debug)]
pub(super) struct Liveness {
    time_to_live: Duration,
    /// Until when no node is marked down.
    settled_at: Timestamp,
    /// Nodes that were seen, and how long to wait for them once their registration has ended.
    seen: BTreeMap<NodeId, Duration>,
    /// Until when to wait for a silent node.
    waiting: BTreeMap<NodeId, Timestamp>,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Nodes with a new status.
    pub(super) statuses: Vec<(NodeId, NodeStatus)>,
    /// When to check again if nothing changes before.
    pub(super) wake_at: Option<Timestamp>,
}

impl Liveness {
    /// For a term that starts now. Nodes are waited for as long as their registrations live, and a new leader
    /// adds the time that a request to the store can take.
    pub(super) fn new(time_to_live: Duration, settle: Duration, now: Timestamp) -> Self {
        Self {
            time_to_live,
            settled_at: now + time_to_live + settle,
            seen: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Checks all nodes.
    pub(super) fn check(
        &mut self,
        state: &State,
        registrations: &BTreeMap<NodeId, Registration>,
        now: Timestamp,
    ) -> Found {
        let mut found = Found::default();
        self.seen.retain(|id, _| state.nodes().contains_key(id));
        self.waiting.retain(|id, _| state.nodes().contains_key(id));
        for (id, node) in state.nodes() {
            let status = match registrations.get(id) {
                Some(registration) => {
                    let patience = match (registration.leaving, registration.replaced) {
                        (false, _) => Duration::ZERO,
                        (true, false) => self.time_to_live,
                        (true, true) => self.time_to_live.max(REPLACED_PATIENCE),
                    };
                    self.seen.insert(id.clone(), patience);
                    self.waiting.remove(id);
                    if registration.engine {
                        NodeStatus::Ready
                    } else {
                        match without_engine(node, self.settled_at, now) {
                            Ok(status) => status,
                            Err(until) => {
                                found.wake_at = Some(found.wake_at.map_or(until, |wake| wake.min(until)));
                                NodeStatus::Unknown
                            }
                        }
                    }
                }
                None if node.status == NodeStatus::Down => NodeStatus::Down,
                None => {
                    let until = *self.waiting.entry(id.clone()).or_insert_with(|| {
                        let patience = self.seen.get(id).copied().unwrap_or(self.time_to_live);
                        (now + patience).max(self.settled_at)
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

/// The status of a node whose engine does not answer, or until when it is waited for.
fn without_engine(node: &Node, settled_at: Timestamp, now: Timestamp) -> Result<NodeStatus, Timestamp> {
    match node.status {
        // It stays down until its engine answers: its tasks run elsewhere.
        NodeStatus::Down => Ok(NodeStatus::Down),
        NodeStatus::Ready => Err(now + ENGINE_PATIENCE),
        NodeStatus::Unknown => {
            let until = (node.status_since + ENGINE_PATIENCE).max(settled_at);
            if until <= now {
                Ok(NodeStatus::Down)
            } else {
                Err(until)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{loops::testing::node, objects::ObjectChange};

    const TIME_TO_LIVE: Duration = Duration::from_secs(15);

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

    fn none() -> BTreeMap<NodeId, Registration> {
        BTreeMap::new()
    }

    /// For a leader that has led for some time.
    fn settled() -> Liveness {
        Liveness::new(TIME_TO_LIVE, Duration::ZERO, Timestamp(0))
    }

    const LATER: Timestamp = Timestamp(100_000);

    #[test]
    fn a_registered_node_is_ready_and_one_without_engine_unknown() {
        let mut liveness = settled();
        let mut registered = registrations(false);
        let found = liveness.check(&state(NodeStatus::Down), &registered, LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Ready)]);
        registered.get_mut("a").unwrap().engine = false;
        let found = liveness.check(&state(NodeStatus::Ready), &registered, LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Unknown)]);
    }

    #[test]
    fn a_node_whose_engine_stays_away_is_down_until_it_answers() {
        let mut liveness = settled();
        let mut registered = registrations(false);
        registered.get_mut("a").unwrap().engine = false;
        let mut state = state(NodeStatus::Ready);
        let mut check = |state: &mut State, registered: &BTreeMap<NodeId, Registration>, now| {
            let found = liveness.check(state, registered, now);
            for (node, status) in &found.statuses {
                for change in crate::commands::set_node_status(state, node, *status, now).unwrap() {
                    state.apply(&change).unwrap();
                }
            }
            (state.nodes().values().next().unwrap().status, found.wake_at)
        };
        let until = LATER + ENGINE_PATIENCE;
        assert_eq!(
            check(&mut state, &registered, LATER),
            (NodeStatus::Unknown, Some(until))
        );
        let before = LATER + Duration::from_secs(59);
        assert_eq!(
            check(&mut state, &registered, before),
            (NodeStatus::Unknown, Some(until))
        );
        assert_eq!(check(&mut state, &registered, until), (NodeStatus::Down, None));
        // Down, until it is back.
        let later = until + Duration::from_secs(600);
        assert_eq!(check(&mut state, &registered, later), (NodeStatus::Down, None));
        registered.get_mut("a").unwrap().engine = true;
        assert_eq!(check(&mut state, &registered, later), (NodeStatus::Ready, None));
    }

    #[test]
    fn a_new_leader_waits_for_an_engine_as_for_all_nodes() {
        let mut liveness = Liveness::new(TIME_TO_LIVE, Duration::from_secs(10), LATER);
        let mut registered = registrations(false);
        registered.get_mut("a").unwrap().engine = false;
        let found = liveness.check(&state(NodeStatus::Unknown), &registered, LATER);
        let until = LATER + TIME_TO_LIVE + Duration::from_secs(10);
        assert_eq!((found.statuses.len(), found.wake_at), (0, Some(until)));
        let found = liveness.check(&state(NodeStatus::Unknown), &registered, until);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn a_node_is_down_when_its_registration_ends() {
        let mut liveness = settled();
        let ready = state(NodeStatus::Ready);
        assert_eq!(
            liveness.check(&ready, &registrations(false), LATER),
            Found::default()
        );
        let found = liveness.check(&ready, &none(), LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn a_new_leader_waits_for_all_nodes() {
        // Registered or not: a registration may be left from before an outage.
        for at_first in [registrations(false), none()] {
            let mut liveness = Liveness::new(TIME_TO_LIVE, Duration::from_secs(10), LATER);
            let ready = state(NodeStatus::Ready);
            liveness.check(&ready, &at_first, LATER);
            let until = LATER + TIME_TO_LIVE + Duration::from_secs(10);
            let found = liveness.check(&ready, &none(), LATER + Duration::from_secs(1));
            assert_eq!((found.statuses.len(), found.wake_at), (0, Some(until)));
            let found = liveness.check(&ready, &none(), until);
            assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
        }
    }

    #[test]
    fn a_new_node_is_waited_for() {
        let found = settled().check(&state(NodeStatus::Unknown), &none(), LATER);
        assert_eq!(
            (found.statuses.len(), found.wake_at),
            (0, Some(LATER + TIME_TO_LIVE))
        );
    }

    #[test]
    fn a_node_that_will_be_back_is_waited_for() {
        let mut liveness = settled();
        let ready = state(NodeStatus::Ready);
        liveness.check(&ready, &registrations(true), LATER);
        let found = liveness.check(&ready, &none(), LATER);
        assert_eq!(
            (found.statuses.len(), found.wake_at),
            (0, Some(LATER + TIME_TO_LIVE))
        );
        // Back in time.
        assert_eq!(
            liveness.check(&ready, &registrations(false), LATER),
            Found::default()
        );
        let found = liveness.check(&ready, &none(), LATER);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }

    #[test]
    fn an_agent_that_another_program_replaces_has_the_time_to_load_it() {
        let mut liveness = settled();
        let ready = state(NodeStatus::Ready);
        let mut registered = registrations(true);
        registered.get_mut("a").unwrap().replaced = true;
        liveness.check(&ready, &registered, LATER);
        let until = LATER + Duration::from_secs(60);
        for now in [LATER, LATER + Duration::from_secs(59)] {
            let found = liveness.check(&ready, &none(), now);
            assert_eq!((found.statuses.len(), found.wake_at), (0, Some(until)));
        }
        let found = liveness.check(&ready, &none(), until);
        assert_eq!(found.statuses, [("a".into(), NodeStatus::Down)]);
    }
}
