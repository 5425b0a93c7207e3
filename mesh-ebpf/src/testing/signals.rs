//! The table of how backends answer, in an ordinary collection.

use std::{cell::RefCell, collections::BTreeMap};

use super::TestTables;
use crate::{
    abi::{BackendSignals, Signal},
    signal_tables::SignalTables,
};

/// Signals by backend.
pub(super) type SignalMemory = RefCell<BTreeMap<u32, BackendSignals>>;

impl TestTables {
    /// How a backend has answered.
    pub(crate) fn signals(&self, backend: u32) -> BackendSignals {
        self.signals.borrow().get(&backend).copied().unwrap_or_default()
    }
}

impl SignalTables for TestTables {
    fn count_signal(&self, backend: u32, signal: Signal) {
        self.signals.borrow_mut().entry(backend).or_default().counts[signal as usize] += 1;
    }

    fn count_answer(&self, backend: u32, bucket: usize, nanoseconds: u64) {
        let mut signals = self.signals.borrow_mut();
        let signals = signals.entry(backend).or_default();
        signals.answers[bucket] += 1;
        signals.answer_time += nanoseconds;
    }
}
