//! The signals that the agent handles: stop, stop at once, reload.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// A request by the service manager or the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Catches signals from its creation on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next request. Cancel safe.
    pub(super) async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }

    /// From now on, another request to stop ends the process at once.
    pub(super) fn exit_at_the_next_stop(mut self) {
        tokio::spawn(async move {
            while self.next().await != Request::Stop {}
            warn!("second request to stop: exiting at once; parts of the mesh may stay in the kernel");
            std::process::exit(1);
        });
    }
}
