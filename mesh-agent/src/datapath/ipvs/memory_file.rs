//! A file that says what the kernel was like before the mesh changed it, so that an agent after a killed one can
//! still put it back. Imports nothing of ours.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// The file; what is in it is the caller's.
#[derive(Debug)]
pub(super) struct MemoryFile(PathBuf);

/// What the kernel was like before could not be remembered.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("cannot read {0}, which says what the kernel was like before the mesh changed it")]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot remember in {0} what the kernel was like before")]
    Write(PathBuf, #[source] io::Error),
    #[error("cannot understand {0}, which says what the kernel was like before; remove it to go on")]
    Understand(PathBuf, #[source] serde_json::Error),
}

impl MemoryFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What an earlier agent remembered; nothing where there is no file.
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> Result<T, MemoryError> {
        match fs::read(&self.0) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| MemoryError::Understand(self.0.clone(), error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(MemoryError::Read(self.0.clone(), error)),
        }
    }

    /// Written whole before the kernel is changed, so that a killed agent leaves no change behind that is not
    /// remembered.
    pub(super) fn write(&self, memory: &impl Serialize) -> Result<(), MemoryError> {
        let failed = |error| MemoryError::Write(self.0.clone(), error);
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_json::to_vec(memory).map_err(|error| failed(error.into()))?;
        let draft = self.0.with_extension("new");
        fs::write(&draft, text).map_err(failed)?;
        fs::rename(&draft, &self.0).map_err(failed)
    }

    /// Forgets it all.
    pub(super) fn remove(&self) -> Result<(), MemoryError> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MemoryError::Write(self.0.clone(), error))
            }
            _ => Ok(()),
        }
    }
}
