//! The map of how backends answer. Part of [`crate::tables::Tables`].

use crate::abi::Signal;

/// The map. Every method is one look-up at most.
pub trait SignalTables {
    /// Counts a backend's signal.
    fn count_signal(&self, backend: u32, signal: Signal);
    /// Counts an answer of a backend that came after so many nanoseconds, in its bucket.
    fn count_answer(&self, backend: u32, bucket: usize, nanoseconds: u64);
}
