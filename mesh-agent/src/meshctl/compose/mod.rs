//! Compose files (version 3) as specifications: read, interpolated, merged, checked, converted. Pure but for
//! the files and the environment that [`Surroundings`](super::flags::Surroundings) stands for.

mod convert;
mod deploy;
mod field;
mod interpolate;
mod merge;
mod mounts;
mod parts;
mod stack;
#[cfg(test)]
mod tests;
mod values;

use std::path::PathBuf;

pub(crate) use stack::{FileKind, MAX_BYTES, NewFile, Stack, check_stack_name, read};

/// The label that keeps the image as the file has it, while the specification may have its digest.
pub(crate) const STACK_IMAGE: &str = "com.docker.stack.image";

/// Why a compose file is not deployed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ComposeError {
    /// A file cannot be read.
    #[error("could not read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no YAML.
    #[error("{file} is no compose file: {message}")]
    Yaml {
        /// The file.
        file: PathBuf,
        /// Where and why, of the YAML reader.
        message: String,
    },
    /// A key's value is refused.
    #[error("{path}: {why}")]
    Refused {
        /// Where, e.g. `services.web.ports[0]`.
        path: String,
        /// Why, and what is possible.
        why: String,
    },
}

impl ComposeError {
    fn refused(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused {
            path: path.into(),
            why: why.into(),
        }
    }
}
