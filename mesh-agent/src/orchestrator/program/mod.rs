//! Replaces the agent's own program: program files below the state folder, the record of which one runs, and
//! the launch. Imports nothing of the agent; the binary starts through it, and the orchestrator deploys
//! through it.
//!
//! The installed program is the launcher: it executes the program that the record names, in the same process.
//! A new program is on trial until its data path is up and it reached the store; after three failed attempts
//! in a row the node goes back to the previous program.

mod digest;
mod folder;
mod inspect;
mod launch;
mod launcher;
mod record;
mod unpack;

pub use digest::Digest;
pub use folder::Programs;
pub use inspect::{check_file, try_out};
pub use launcher::{Launcher, RunError};
pub use record::{Failure, Record};
pub use unpack::{MAX_PROGRAM_BYTES, unpack};

use std::{io, path::PathBuf, time::Duration};

/// How long a new program may take until its data path is up and it reached the store.
pub const TRIAL: Duration = Duration::from_secs(60);

/// A program of the agent could not be stored, checked or started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Reading or writing failed.
    #[error("cannot {operation} {} (--state-dir)", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The record cannot be parsed.
    #[error("cannot parse {}: remove it to go back to the installed program", path.display())]
    Record {
        /// The record's file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The program's path in the image is missing or not a file.
    #[error("the image's /mesh-agent {0}: build the image as deploy/Dockerfile does")]
    Image(String),
    /// Docker's archive of the image could not be read to its end.
    #[error("cannot read the image's /mesh-agent from Docker")]
    Archive(#[source] io::Error),
    /// The file is not a program that this node can run.
    #[error("the image's /mesh-agent {0}: deploy an image built for this machine")]
    Unfit(&'static str),
    /// It cannot be executed.
    #[error("cannot execute {}: is its file system mounted noexec?", path.display())]
    Execute {
        /// The program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It ran, but did not behave like an agent.
    #[error("the image's /mesh-agent does not answer `{arguments}` like a mesh agent: {outcome}")]
    Answer {
        /// Its arguments.
        arguments: String,
        /// Its output or exit status.
        outcome: String,
    },
}

impl ProgramError {
    fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

/// Runs file operations on whole programs off the runtime's threads.
pub(crate) async fn on_the_side<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProgramError> + Send + 'static,
) -> Result<T, ProgramError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ProgramError::Archive(io::Error::other(error))))
}
