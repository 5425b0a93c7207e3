//! Whether nodes' agents are connected to this manager's, with time for one that starts again. Pure: the
//! clock is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::model::AgentConnection;

/// An agent that starts again has this long to come back.
const ABSENCE_LIMIT: Duration = Duration::from_secs(5);
/// When a manager's agent has just started, the others have this long to find it.
const START_LIMIT: Duration = Duration::from_secs(10);
/// So many connections within the period are one start too many, also during an update.
const UNSTEADY: usize = 4;
const PERIOD: Duration = Duration::from_secs(60);

/// The connections of one node's agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections {
    /// The newest session that has announced something.
    session: Option<u64>,
    /// When the newest sessions did so first.
    begun: VecDeque<Instant>,
    /// When the last session ended, unless another one has begun.
    ended: Option<Instant>,
}

impl Connections {
    /// A session has announced something; true for its first time.
    pub(super) fn announced(&mut self, session: u64, now: Instant) -> bool {
        let first = self.session != Some(session);
        if first {
            self.session = Some(session);
            self.ended = None;
            self.begun.push_back(now);
            if self.begun.len() > UNSTEADY {
                self.begun.pop_front();
            }
        }
        first
    }

    /// The newest session has ended.
    pub(super) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }
}

/// What is known of a node's agent, by a manager's agent that has been running for so long.
pub(super) fn state(connections: Option<&Connections>, running: Duration, now: Instant) -> AgentConnection {
    let Some(connections) = connections.filter(|connections| connections.session.is_some()) else {
        return if running < START_LIMIT {
            AgentConnection::Unknown
        } else {
            AgentConnection::Lost
        };
    };
    let within = |time: Instant, limit| now.saturating_duration_since(time) < limit;
    let recently = connections
        .begun
        .iter()
        .filter(|begun| within(**begun, PERIOD))
        .count();
    match connections.ended {
        Some(ended) if !within(ended, ABSENCE_LIMIT) => AgentConnection::Lost,
        _ if recently >= UNSTEADY => AgentConnection::Unsteady,
        _ => AgentConnection::Connected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn an_agent_that_was_never_connected_is_lost_once_it_had_time_to_connect() {
        let now = Instant::now();
        assert_eq!(state(None, Duration::from_secs(9), now), AgentConnection::Unknown);
        assert_eq!(state(None, START_LIMIT, now), AgentConnection::Lost);
        let silent = Connections::default();
        assert_eq!(state(Some(&silent), LONG, now), AgentConnection::Lost);
    }

    #[test]
    fn an_agent_that_starts_again_is_not_lost() {
        let begin = Instant::now();
        let mut connections = Connections::default();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert!(connections.announced(1, begin));
        assert!(!connections.announced(1, after(1)), "the same session");
        connections.ended(after(2));
        assert_eq!(
            state(Some(&connections), LONG, after(6)),
            AgentConnection::Connected
        );
        assert_eq!(state(Some(&connections), LONG, after(7)), AgentConnection::Lost);
        assert!(connections.announced(2, after(8)));
        assert_eq!(
            state(Some(&connections), LONG, after(8)),
            AgentConnection::Connected
        );
    }

    #[test]
    fn an_agent_that_starts_again_and_again_is_unsteady_for_a_minute() {
        let begin = Instant::now();
        let mut connections = Connections::default();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for session in 0..4 {
            assert_ne!(
                state(Some(&connections), LONG, after(3 * session)),
                AgentConnection::Unsteady
            );
            connections.announced(session, after(3 * session));
            connections.ended(after(3 * session + 1));
        }
        assert_eq!(
            state(Some(&connections), LONG, after(10)),
            AgentConnection::Unsteady
        );
        connections.announced(9, after(11));
        assert_eq!(
            state(Some(&connections), LONG, after(12)),
            AgentConnection::Unsteady
        );
        assert_eq!(
            state(Some(&connections), LONG, after(3 * 3 + 60)),
            AgentConnection::Connected
        );
    }
}
