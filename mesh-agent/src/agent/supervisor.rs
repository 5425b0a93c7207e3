//! Runs the agent's parts, none of which may end before the agent is told to stop.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tracing::error;

use super::AgentError;

/// The agent's parts by name.
#[derive(Default)]
pub(super) struct Supervisor {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Supervisor {
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Runs a part that may fail; its error is logged before it counts as ended.
    pub(super) fn spawn_fallible<E: std::error::Error + Send + 'static>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn(name, async move {
            if let Err(failure) = task.await {
                let error: &dyn std::error::Error = &failure;
                error!(error, "the agent's {name} failed");
            }
        });
    }

    /// Waits until a part has ended; pending while there is none. Cancel safe.
    pub(super) async fn ended(&mut self) -> AgentError {
        let (id, panicked) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
            None => std::future::pending().await,
        };
        AgentError::TaskEnded {
            task: self.names.get(&id).copied().unwrap_or("unnamed part"),
            panicked,
        }
    }

    /// Waits until all parts, told to stop, have done so.
    pub(super) async fn finish(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("sleeper", std::future::pending());
        supervisor.spawn("culprit", async { panic!("on purpose, in a test") });
        let error = supervisor.ended().await;
        assert!(matches!(
            error,
            AgentError::TaskEnded {
                task: "culprit",
                panicked: true
            }
        ));
        assert!(
            error
                .to_string()
                .contains("culprit ended unexpectedly by a panic")
        );
    }
}
