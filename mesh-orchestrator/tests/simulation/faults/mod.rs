//! Histories of a whole cluster on a store that fails: several candidates, agents and users, each with a
//! clock and a connection of their own, and in every second history nodes that reach the store through
//! managers only. Everything runs on one thread and in simulated time, so that a seed is always the same
//! history.

mod chance;
mod desk;
mod history;
mod line;
mod link;
mod machine;
mod oracle;
mod requests;
mod server;
mod weather;

use std::{fmt, time::Duration};

/// What happened in a history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Commits, by what they changed.
    pub(crate) seen: std::collections::BTreeMap<&'static str, u64>,
    /// Transactions.
    pub(crate) commits: u64,
    /// Simulated time.
    pub(crate) time: Duration,
    /// A hash of everything that was committed.
    pub(crate) digest: u64,
}

/// A violated invariant.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) at: Duration,
    pub(crate) text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} (after {:?}; MESH_FAULTS_SEED={} replays this history)",
            self.text, self.at, self.seed
        )
    }
}

/// Runs the history of a seed. `sabotage` breaks the store on purpose.
pub(crate) fn run(seed: u64, sabotage: bool) -> Result<Summary, Failure> {
    chance::run(seed, || history::run(seed, sabotage)).unwrap_or_else(|_| {
        Err(Failure {
            seed,
            at: Duration::ZERO,
            text: "the history panicked".to_owned(),
        })
    })
}
