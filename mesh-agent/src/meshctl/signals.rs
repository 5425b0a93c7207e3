//! Signals that end a waiting command.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGINT, SIGTERM or SIGHUP and returns its number; waits forever if they cannot be caught.
pub(crate) async fn interrupted() -> u8 {
    let one = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
        u8::try_from(kind.as_raw_value()).unwrap_or(u8::MAX)
    };
    tokio::select! {
        signal = one(SignalKind::interrupt()) => signal,
        signal = one(SignalKind::terminate()) => signal,
        signal = one(SignalKind::hangup()) => signal,
    }
}
