//! The map of how backends answer, and [`SignalTables`] over it.

use aya_ebpf::{macros::map, maps::Array};
use mesh_ebpf::{
    abi::{ANSWER_TIMES, BackendSignals, MAX_BACKENDS, Signal},
    signal_tables::SignalTables,
};

use crate::maps::{KernelTables, fetch_add};

/// How each backend answers the connections that it is asked to open, by index.
#[map]
static BACKEND_SIGNALS: Array<BackendSignals> = Array::pinned(MAX_BACKENDS, 0);

impl SignalTables for KernelTables {
    #[inline(always)]
    fn count_signal(&self, backend: u32, signal: Signal) {
        if let Some(signals) = BACKEND_SIGNALS.get_ptr_mut(backend) {
            // SAFETY: checked; the array has a counter for each signal, an aligned u64 in a map value, which
            // lives as long as the program runs.
            unsafe { fetch_add((&raw mut (*signals).counts).cast::<u64>().add(signal as usize), 1) };
        }
    }

    #[inline(always)]
    fn count_answer(&self, backend: u32, bucket: usize, nanoseconds: u64) {
        if let Some(signals) = BACKEND_SIGNALS.get_ptr_mut(backend) {
            let bucket = bucket.min(ANSWER_TIMES.len());
            // SAFETY: as above; the array has one bucket more than there are times.
            unsafe {
                fetch_add((&raw mut (*signals).answers).cast::<u64>().add(bucket), 1);
                fetch_add(&raw mut (*signals).answer_time, nanoseconds);
            }
        }
    }
}
