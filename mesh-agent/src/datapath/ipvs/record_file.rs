//! A file that records kernel state from before the mesh changed it, so that it can be restored even after
//! the agent was killed. Imports nothing of ours.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// The file. Its content is up to the caller.
#[derive(Debug)]
pub(super) struct RecordFile(PathBuf);

/// The record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("cannot read {0}, the record of kernel state before the mesh changed it")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {0}, the record of kernel state before the mesh changed it")]
    Write(PathBuf, #[source] io::Error),
    #[error(
        "cannot parse {0}, the record of kernel state before the mesh changed it; remove the file to go on"
    )]
    Parse(PathBuf, #[source] serde_json::Error),
}

impl RecordFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// An earlier agent's record; the default where there is no file.
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> Result<T, RecordError> {
        match fs::read(&self.0) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| RecordError::Parse(self.0.clone(), error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(RecordError::Read(self.0.clone(), error)),
        }
    }

    /// Replaces the record as a whole. Call it before the kernel is changed, so that a killed agent leaves no
    /// change that is not recorded.
    pub(super) fn write(&self, record: &impl Serialize) -> Result<(), RecordError> {
        let failed = |error| RecordError::Write(self.0.clone(), error);
        if let Some(directory) = self.0.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        let draft = self.0.with_extension("new");
        fs::write(&draft, text).map_err(failed)?;
        fs::rename(&draft, &self.0).map_err(failed)
    }

    /// Removes the file, if it is there.
    pub(super) fn remove(&self) -> Result<(), RecordError> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Write(self.0.clone(), error))
            }
            _ => Ok(()),
        }
    }
}
