//! The runtime of a history, without chance: tokio polls the branches of `select!` and wakes the readers of a
//! watch channel in a random order, from a seed that it makes of the standard library's random hash keys and
//! of the number of runtimes that the process has had.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::Builder;

/// How many histories this process has had, or skipped.
static HAD: Mutex<u64> = Mutex::new(0);

/// Runs a future on a runtime with one thread, simulated time, and the random numbers of a seed. The seeds of
/// a process must rise.
pub(crate) fn run<F: Future>(seed: u64, begin: impl FnOnce() -> F + Send) -> std::thread::Result<F::Output>
where
    F::Output: Send,
{
    let mut had = HAD.lock().unwrap_or_else(PoisonError::into_inner);
    while *had < seed {
        // tokio counts a runtime, and its thread.
        drop((Builder::new_current_thread(), Builder::new_current_thread()));
        *had += 1;
    }
    *had += 1;
    // A new thread has no hash keys yet.
    std::thread::scope(|scope| {
        let history = scope.spawn(|| {
            let mut builder = Builder::new_current_thread();
            let runtime = builder.enable_time().start_paused(true).build();
            runtime
                .unwrap_or_else(|error| panic!("a runtime could not be built: {error}"))
                .block_on(begin())
        });
        history.join()
    })
}

/// Replaces the C library's function in this program: the standard library lets a program do so, and takes
/// the keys of its hashes from it.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: callers pass a buffer of this length, as the C library's function asks for.
    unsafe { buffer.write_bytes(7, length) };
    isize::try_from(length).unwrap_or(-1)
}
