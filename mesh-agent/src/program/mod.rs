//! The programs that this node's agent has been and is to be: files below the state folder, a record of which of them
//! runs, and how one takes the place of another. Imports nothing of the agent; the binary starts by it, and the
//! orchestrator deploys by it.
//!
//! The installed program is the launcher: it executes what the record names, in the same process. A program that is new
//! is on trial until the data path stands and the store was reached; one that does not get there three times in a row
//! is left for the one before.

mod digest;
mod folder;
mod inspect;
pub mod launch;
mod record;
mod unpack;

pub use digest::Digest;
pub use folder::Programs;
pub use inspect::{check_file, try_out};
pub use record::{Failure, Record};
pub use unpack::{MAX_PROGRAM_BYTES, unpack};

use std::{io, path::PathBuf, time::Duration};

/// How long a new program may take until its data path stands and the store was reached.
pub const TRIAL: Duration = Duration::from_secs(60);

/// A program of the agent could not be kept, checked or started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The system has refused to read or write.
    #[error("cannot {operation} {} (--state-dir)", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record is none.
    #[error("{} is not understood: remove it to go back to the installed program", path.display())]
    Record {
        /// The record's file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The image has something else at the program's path.
    #[error("the image's /mesh-agent {0}: build the image as deploy/Dockerfile does")]
    Image(String),
    /// The image's archive broke off.
    #[error("cannot read the image's /mesh-agent from Docker")]
    Archive(#[source] io::Error),
    /// The file is no program for this node.
    #[error("the image's /mesh-agent {0}: deploy an image that is built for this machine")]
    Unfit(&'static str),
    /// It cannot be executed.
    #[error("cannot execute {}: is its file system mounted noexec?", path.display())]
    Execute {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was executed, and has not answered as an agent does.
    #[error("the image's /mesh-agent does not answer `{arguments}` as an agent does: {said}")]
    Answer {
        /// What it was asked.
        arguments: String,
        /// What it did.
        said: String,
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

/// Reads and writes whole programs where nobody waits for it.
pub(crate) async fn on_the_side<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProgramError> + Send + 'static,
) -> Result<T, ProgramError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ProgramError::Archive(io::Error::other(error))))
}
