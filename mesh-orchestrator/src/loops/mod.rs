//! The control loops: pure functions of (now, state, events) to changes. Import `objects` and `spec`.
//!
//! Each loop looks at what it is told has changed, and answers with a [`LoopOutput`]: changes to make now,
//! and times at which to ask again. [`Controller`] runs them until nothing more follows.

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

/// What a loop may know beside the state: the time, and a random number for new identifiers.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The time.
    pub now: Timestamp,
    /// Different in every round.
    pub seed: u128,
}

/// What a loop answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoopOutput {
    /// Changes to make now, in this order.
    pub changes: Vec<ObjectChange>,
    /// When to look again although nothing may have changed.
    pub wakes: Vec<Wake>,
}

/// When to look again, and at what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake {
    /// When.
    pub at: Timestamp,
    /// At what.
    pub subject: Subject,
}

/// What a loop looks at again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A service as a whole.
    Service(ServiceId),
    /// One slot of it.
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
