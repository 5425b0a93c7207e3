//! How much goes wrong in one history: drawn from its seed, so that some histories have many faults of one
//! kind and others a few of each.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::random::Random;

/// A random number generator that everything in a history shares.
#[derive(Clone, Debug)]
pub(crate) struct Dice(Arc<Mutex<Random>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Random::new(seed))))
    }

    pub(crate) fn random(&self) -> MutexGuard<'_, Random> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn per_mille(&self, often: u64) -> bool {
        often > 0 && self.random().chance(often, 1_000)
    }

    /// A time up to so many milliseconds.
    pub(crate) fn up_to(&self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.random().between(0, milliseconds))
    }
}

/// How often each fault happens, in a thousand cases, and how long things take, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// The longest way of a request or an answer.
    pub(crate) latency: u64,
    /// Requests that are refused.
    pub(crate) refused: u64,
    /// Requests that are lost.
    pub(crate) lost: u64,
    /// Commits whose answer is lost.
    pub(crate) unanswered: u64,
    /// Commits that are made after the client has given up waiting.
    pub(crate) late: u64,
    /// Deliveries of a watch that take seconds.
    pub(crate) lag: u64,
    /// Watches that break.
    pub(crate) broken_watch: u64,
    /// How much sooner a lease may end than its holder expects, in percent of its time to live.
    pub(crate) skew: u64,
    /// Events of a step: partitions, crashes of agents, of machines, the store's compaction.
    pub(crate) partition: u64,
    pub(crate) agent_crash: u64,
    pub(crate) power_loss: u64,
    pub(crate) compaction: u64,
    /// How far apart the machines' clocks are.
    pub(crate) clocks: u64,
    /// The longest time that a step of a container takes.
    pub(crate) work: u64,
    /// How often a running container crashes.
    pub(crate) container_crash: u64,
}

impl Weather {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            latency: random.one_of(&[1, 5, 50, 400]),
            refused: random.one_of(&[0, 0, 10, 100]),
            lost: random.one_of(&[0, 0, 5, 50]),
            unanswered: random.one_of(&[0, 10, 50, 150]),
            late: random.one_of(&[0, 0, 20, 80]),
            lag: random.one_of(&[0, 0, 20, 150]),
            broken_watch: random.one_of(&[0, 0, 5, 30]),
            skew: random.one_of(&[0, 0, 30, 80]),
            partition: random.one_of(&[0, 50, 150]),
            agent_crash: random.one_of(&[0, 50, 150]),
            power_loss: random.one_of(&[0, 0, 40]),
            compaction: random.one_of(&[0, 50, 200]),
            clocks: random.one_of(&[0, 0, 500, 20_000]),
            work: random.one_of(&[50, 1_000, 4_000]),
            container_crash: random.one_of(&[0, 0, 100]),
        }
    }

    /// Nothing fails any more.
    pub(crate) fn calm(self) -> Self {
        Self {
            latency: self.latency.min(5),
            clocks: self.clocks,
            work: self.work.min(1_000),
            ..Self::default()
        }
    }
}
