//! Starts the program of the agent that the record names, supervises its trial, and starts the next one when
//! the agent ends.

use std::{future::Future, path::PathBuf};

use mesh_support::error_chain;
use tracing::{error, warn};

use super::{
    ProgramError, TRIAL,
    launch::{self, Start},
};
use crate::process::{Ended, privileges};

/// The programs of a node, if its agent can be replaced, and how this one was started.
#[derive(Debug)]
pub struct Launcher {
    folder: Option<PathBuf>,
    start: Start,
}

/// The agent failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// It ended with an error.
    #[error(transparent)]
    Agent(E),
    /// Its trial has expired.
    #[error(
        "the data path did not come up, or the store was not reached, within {} s", TRIAL.as_secs()
    )]
    Unproven,
}

impl Launcher {
    /// Executes the program that the record in `folder` names; returns if that is this one. Without a folder
    /// the agent is never replaced. Call it before starting a thread.
    #[must_use]
    pub fn start(folder: Option<PathBuf>) -> Self {
        let start = folder.as_deref().map_or(Start::Proven, launch::start);
        Self { folder, start }
    }

    /// Runs the agent. A program on trial that does not prove itself in time fails.
    ///
    /// # Errors
    /// When the agent fails or its trial expires.
    pub async fn supervise<E: std::error::Error + 'static>(
        &self,
        agent: impl Future<Output = Result<Ended, E>>,
    ) -> Result<Ended, RunError<E>> {
        let expired = async {
            if let (Start::OnTrial, Some(folder)) = (self.start, &self.folder) {
                tokio::time::sleep(TRIAL).await;
                if launch::is_on_trial(folder) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = agent => ended.map_err(RunError::Agent),
            () = expired => Err(RunError::Unproven),
        }
    }

    /// Executes the next program if there is one: the agent is being replaced, or its trial has failed.
    /// Returns whether the agent was stopped as requested.
    ///
    /// # Errors
    /// When no program can be executed.
    pub fn finish<E: std::error::Error + 'static>(
        self,
        ended: Result<Ended, RunError<E>>,
    ) -> Result<bool, ProgramError> {
        let failure = match ended {
            Ok(Ended::Stopped) => return Ok(true),
            Ok(Ended::Replaced) => None,
            Err(failure) => {
                let reason = error_chain(&failure);
                error!("{reason}");
                Some(reason)
            }
        };
        let Some(folder) = self.folder else {
            return Ok(false);
        };
        if let Some(reason) = failure {
            if !launch::is_on_trial(&folder) {
                return Ok(false);
            }
            launch::fail(&folder, reason);
        }
        if let Err(error) = privileges::pass_on() {
            warn!(
                error = error_chain(&error),
                "the next program may lack permissions"
            );
        }
        match launch::again(&folder)? {}
    }
}
