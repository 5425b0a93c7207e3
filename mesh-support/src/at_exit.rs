//! Work for the end of a process whose `main` is not ours, such as a test binary's.

/// Has a function called when the process exits (not when it is killed).
///
/// # Panics
/// When the C library has no memory for it.
pub fn at_exit(work: extern "C" fn()) {
    // SAFETY: a function without arguments, which lives as long as the program, and does not unwind: an
    // `extern "C"` function that panics ends the process.
    let refused = unsafe { libc::atexit(work) };
    assert_eq!(
        refused, 0,
        "the C library has no memory for a function to call at the end"
    );
}
