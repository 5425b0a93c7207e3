//! Time and randomness: the orchestrator reads neither anywhere else. Imports `objects`.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::objects::Timestamp;

/// The time, and random numbers for new identifiers.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time.
    fn now(&self) -> Timestamp;

    /// 128 new random bits.
    fn seed(&self) -> u128;
}

/// The machine's clock and the kernel's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
    }

    fn seed(&self) -> u128 {
        let mut bytes = [0; 16];
        if let Err(error) = getrandom::fill(&mut bytes) {
            // Identifiers only have to be unique: the time and a stack address are.
            tracing::warn!(%error, "the kernel returned no random numbers; using the time instead");
            let here = std::ptr::from_ref(&bytes).addr() as u128;
            let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            return passed.as_nanos() ^ here << 64;
        }
        u128::from_le_bytes(bytes)
    }
}
