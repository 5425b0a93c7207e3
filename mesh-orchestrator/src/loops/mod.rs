//! The control loops: pure functions from (now, state, events) to changes. Import `commands`, `objects` and
//! `spec`.
//!
//! Each loop examines what has changed and returns a [`LoopOutput`]: changes to make now, and times at which
//! to run again. [`Controller`] runs them until nothing changes any more.

pub mod controller;
pub mod dependencies;
pub mod global;
pub mod jobs;
pub mod nodes;
pub mod reaper;
pub mod rebalance;
pub mod replicated;
pub mod restart;
pub mod scheduler;
pub mod slots;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod update;

pub use controller::Controller;

use crate::objects::{NodeId, ObjectChange, ServiceId, Slot, Timestamp};

/// The input of a loop besides the state: the time, and a seed for new identifiers.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The current time.
    pub now: Timestamp,
    /// Different in every round.
    pub seed: u128,
}

/// The output of a loop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoopOutput {
    /// Changes to make now, in order.
    pub changes: Vec<ObjectChange>,
    /// When to run again even if nothing has changed.
    pub wakes: Vec<Wake>,
}

/// When to examine a subject again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake {
    /// The time.
    pub at: Timestamp,
    /// The subject.
    pub subject: Subject,
}

/// What a loop examines again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A whole service.
    Service(ServiceId),
    /// One slot of a service.
    Slot(ServiceId, Slot),
    /// A node.
    Node(NodeId),
}

impl LoopOutput {
    fn wake(&mut self, at: Timestamp, subject: Subject) {
        self.wakes.push(Wake { at, subject });
    }

    fn push(&mut self, change: ObjectChange) {
        self.changes.push(change);
    }
}
