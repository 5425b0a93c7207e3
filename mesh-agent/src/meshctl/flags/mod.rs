//! The docker CLI's flags for services, and what they make of a specification. Pure but for the files and the
//! environment that [`Surroundings`] stands for.

mod create;
pub(crate) mod fields;
mod lists;
mod policies;
mod settings;
pub(crate) mod units;
mod update;
pub(crate) mod values;

use std::{
    io,
    path::{Path, PathBuf},
};

pub(crate) use create::{CreateFlags, empty};
pub(crate) use policies::new_check;
pub(crate) use settings::capability;
pub(crate) use update::UpdateFlags;

/// What the user asks for cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    /// A flag's value is refused.
    #[error("invalid argument for --{flag}: {why}")]
    Flag {
        /// Its long name.
        flag: String,
        /// What is wrong with the value, and what is allowed.
        why: String,
    },
    /// The flags and arguments do not go together.
    #[error("{0}")]
    Line(String),
}

impl UsageError {
    /// A flag's value is refused.
    pub(crate) fn flag(flag: &str, why: impl AsRef<str>) -> Self {
        Self::Flag {
            flag: flag.to_owned(),
            why: why.as_ref().to_owned(),
        }
    }
}

/// What of the caller's machine a command line refers to.
pub(crate) struct Surroundings<'a> {
    /// Relative paths begin here.
    pub(crate) folder: PathBuf,
    /// The caller's environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a file.
    pub(crate) read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

impl Surroundings<'_> {
    /// The variables of environment files, in order.
    pub(crate) fn environment_files(&self, files: &[PathBuf]) -> Result<Vec<String>, UsageError> {
        let mut variables = Vec::new();
        for file in files {
            let fail =
                |why: String| UsageError::Line(format!("the environment file {}: {why}", file.display()));
            let bytes = (self.read)(&self.folder.join(file)).map_err(|error| fail(error.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|_| fail("it is no UTF-8 text".to_owned()))?;
            variables.extend(fields::environment_file(&text).map_err(fail)?);
        }
        Ok(variables)
    }
}

/// A command line split into words as a shell does.
fn words(flag: &str, text: &str) -> Result<Vec<String>, UsageError> {
    shlex::split(text)
        .ok_or_else(|| UsageError::flag(flag, format!("{text:?} has a quote that is not closed")))
}

#[cfg(test)]
pub(crate) mod testing {
    //! A machine for tests: a folder, some variables, some files.

    use super::*;

    /// Has `HOME` and the files `/work/app.env`, `/work/key`.
    pub(crate) fn surroundings() -> Surroundings<'static> {
        Surroundings {
            folder: "/work".into(),
            variable: &|name| (name == "HOME").then(|| "/root".to_owned()),
            read: &|path| match path.to_str() {
                Some("/work/app.env") => Ok(b"# settings\nMODE=file\nHOME\n".to_vec()),
                Some("/work/key") => Ok(b"secret".to_vec()),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }
}
