//! Work for the end of a process whose `main` is not ours, such as a test binary's.

use std::sync::{Mutex, PoisonError};

static WORK: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// Has a function called when the process exits (not when it is killed).
///
/// # Panics
/// When the C library has no memory for it.
pub fn at_exit(work: fn()) {
    let mut all = WORK.lock().unwrap_or_else(PoisonError::into_inner);
    if all.is_empty() {
        // SAFETY: a function without arguments, which lives as long as the program, and does not unwind: an
        // `extern "C"` function that panics ends the process.
        let refused = unsafe { libc::atexit(run) };
        assert_eq!(
            refused, 0,
            "the C library has no memory for a function to call at the end"
        );
    }
    all.push(work);
}

extern "C" fn run() {
    let all = std::mem::take(&mut *WORK.lock().unwrap_or_else(PoisonError::into_inner));
    for work in all {
        work();
    }
}
