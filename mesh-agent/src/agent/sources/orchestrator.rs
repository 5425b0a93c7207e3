//! The orchestrator as a source: its store holds the cluster's state.

use std::path::PathBuf;

use async_trait::async_trait;
use axum::Router;
use tokio_util::sync::CancellationToken;

use super::{Channels, Source, SourceError};
use crate::{
    agent::membership::Member,
    discovery::Scheduler,
    orchestrator::{self, Mesh, Opened},
    process::Ended,
};

/// An orchestrator that is ready to run.
pub(super) struct Orchestrator(Opened);

impl Orchestrator {
    pub(super) fn new(opened: Opened) -> Self {
        Self(opened)
    }
}

#[async_trait]
impl Source for Orchestrator {
    fn scheduler(&self) -> Scheduler {
        Scheduler::Orchestrator
    }

    fn member(&self) -> Option<Member> {
        Some(Member {
            node: self.0.node().to_string(),
            manager: self.0.is_manager(),
            address: self.0.address(),
            certificates: PathBuf::new(),
        })
    }

    fn routes(&self) -> Router {
        self.0.api()
    }

    async fn run(
        self: Box<Self>,
        channels: Channels,
        shutdown: CancellationToken,
    ) -> Result<Ended, SourceError> {
        let mesh = Mesh {
            state: channels.state,
            announcement: channels.announcement,
            keys: channels.keys,
            drained: channels.drained,
            relay: channels.relay,
            relayed: channels.relayed,
            acknowledged: channels.acknowledged,
            found: channels.containers,
            is_up: channels.is_up,
        };
        Ok(orchestrator::run(self.0, mesh, shutdown).await?)
    }
}
