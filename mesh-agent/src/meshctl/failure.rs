//! Why a command fails, with docker's exit codes: 125 for an invalid flag, 128 plus the signal's number,
//! otherwise 1.

use std::io;

use super::{client::ApiError, compose::ComposeError, flags::UsageError, output::template::TemplateError};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A flag is unknown or has an invalid value.
    #[error("{0}")]
    Flag(String),
    /// The arguments are invalid.
    #[error("{0}")]
    Usage(String),
    /// The request to the orchestrator failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A compose file cannot be deployed.
    #[error(transparent)]
    Compose(#[from] ComposeFailure),
    /// An operation on this machine failed.
    #[error("{what}")]
    Io {
        /// The failed operation and its object.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The request succeeded, but not its purpose.
    #[error("{0}")]
    Outcome(String),
    /// Several of the requested operations failed.
    #[error("{}", list(.0))]
    Several(Vec<Failure>),
    /// A signal ended it.
    #[error("ended by signal {0}")]
    Signal(u8),
}

/// A compose file cannot be deployed; the message names the file or the key.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ComposeFailure(ComposeError);

fn list(failures: &[Failure]) -> String {
    let lines: Vec<String> = failures
        .iter()
        .map(|failure| mesh_support::error_chain(failure))
        .collect();
    lines.join("\n")
}

impl Failure {
    /// An operation on this machine failed.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) => 125,
            Self::Signal(signal) => 128_u8.saturating_add(*signal),
            Self::Usage(_) | Self::Api(_) | Self::Compose(_) | Self::Io { .. } | Self::Outcome(_) => 1,
            Self::Several(failures) => failures.iter().map(Self::exit_code).max().unwrap_or(1),
        }
    }

    /// Combines failures to one; success if there are none.
    pub(crate) fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match (failures.pop(), failures.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                failures.push(last);
                Err(Self::Several(failures))
            }
        }
    }
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        let text = error.to_string();
        match error {
            UsageError::Flag { .. } => Self::Flag(text),
            UsageError::Line(_) => Self::Usage(text),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ComposeError> for Failure {
    fn from(error: ComposeError) -> Self {
        Self::Compose(ComposeFailure(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_dockers() {
        assert_eq!(Failure::Flag(String::new()).exit_code(), 125);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 1);
        assert_eq!(Failure::Outcome(String::new()).exit_code(), 1);
        assert_eq!(Failure::Signal(2).exit_code(), 130);
        let several =
            Failure::all(vec![Failure::Outcome("a".into()), Failure::Outcome("b".into())]).unwrap_err();
        assert_eq!((several.exit_code(), several.to_string()), (1, "a\nb".to_owned()));
        assert!(Failure::all(Vec::new()).is_ok());
    }
}
