//! Runs the agent's parts, none of which may end before the agent stops.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tracing::error;

use super::{AgentError, sources::SourceError};
use crate::process::Ended;

/// The agent's parts by name.
#[derive(Default)]
pub(super) struct Supervisor {
    /// A part that ends the agent returns how.
    parts: JoinSet<Option<Ended>>,
    names: HashMap<Id, &'static str>,
}

impl Supervisor {
    pub(super) fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.add(name, async {
            part.await;
            None
        });
    }

    /// Spawns a part that may fail; its error is logged before it counts as ended.
    pub(super) fn spawn_fallible<E: std::error::Error + Send + 'static>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.add(name, async move {
            if let Err(failure) = part.await {
                log_failure(name, &failure);
            }
            None
        });
    }

    /// Spawns the source, which may ask for the agent to be replaced.
    pub(super) fn spawn_source(
        &mut self,
        source: impl Future<Output = Result<Ended, SourceError>> + Send + 'static,
    ) {
        let name = "source";
        self.add(name, async move {
            match source.await {
                Ok(Ended::Replaced) => Some(Ended::Replaced),
                Ok(Ended::Stopped) => None,
                Err(failure) => {
                    log_failure(name, &*failure);
                    None
                }
            }
        });
    }

    fn add(&mut self, name: &'static str, part: impl Future<Output = Option<Ended>> + Send + 'static) {
        let id = self.parts.spawn(part).id();
        self.names.insert(id, name);
    }

    /// Waits until a part ends, which it does only to end the agent or by a fault; pending while there is
    /// no part. Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Ended, AgentError> {
        let (id, panicked) = match self.parts.join_next_with_id().await {
            Some(Ok((_, Some(ended)))) => return Ok(ended),
            Some(Ok((id, None))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
            None => std::future::pending().await,
        };
        Err(AgentError::PartEnded {
            part: self.names.get(&id).copied().unwrap_or("unnamed part"),
            panicked,
        })
    }

    /// Waits until all parts have ended after shutdown.
    pub(super) async fn finish(&mut self) {
        while self.parts.join_next().await.is_some() {}
    }
}

fn log_failure(name: &str, failure: &(dyn std::error::Error + 'static)) {
    error!(error = failure, "the agent's {name} failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("sleeper", std::future::pending());
        supervisor.spawn("culprit", async { panic!("on purpose, in a test") });
        let error = supervisor.ended().await.unwrap_err();
        assert!(matches!(
            error,
            AgentError::PartEnded {
                part: "culprit",
                panicked: true
            }
        ));
        assert!(
            error
                .to_string()
                .contains("culprit ended unexpectedly by a panic")
        );
    }

    #[tokio::test]
    async fn a_source_may_ask_for_the_agent_to_be_replaced() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn_source(async { Ok(Ended::Replaced) });
        assert_eq!(supervisor.ended().await.unwrap(), Ended::Replaced);
        supervisor.spawn_source(async { Ok(Ended::Stopped) });
        assert!(supervisor.ended().await.is_err(), "a source may not just end");
    }
}
