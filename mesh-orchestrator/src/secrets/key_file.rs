//! The key file: the keys with which stored secrets are encrypted; the newest is active. Depends on `sealed`.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::sealed::{Key, KeyId, Plaintext, SealError, Sealed};
use crate::objects::Timestamp;

/// The version of the file's format.
const FORMAT: u32 = 1;

/// All keys of a key file. Encryption uses the active one.
#[derive(Clone, Debug)]
pub struct KeyRing {
    path: PathBuf,
    keys: Vec<(Key, Timestamp)>,
    active: KeyId,
}

/// Why a key file or one of its keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("could not read the key file {path}; it must exist and be readable by the agent's user")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written. The old file is unchanged.
    #[error(
        "could not write the key file {path}; its folder must be writable for the agent's user, and have room"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it.
    #[error(
        "the key file {path} can be read by others than its owner (mode {mode:04o}); `chmod 600` it, and rotate the keys if it may have been read"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not a key file, or was edited or truncated.
    #[error(
        "{path} is not a key file or is damaged ({detail}); copy it again from a node that has it, or from your own copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// It lacks the key of an encrypted value.
    #[error(
        "the key {id} is not in the key file {path}; copy the file from a node that has it, or from your own copy"
    )]
    Unknown {
        /// The key's identifier.
        id: String,
        /// The file.
        path: PathBuf,
    },
    /// The active key cannot be removed.
    #[error("the key {0} is in use; add another one and encrypt everything with it first")]
    InUse(String),
    /// Encryption itself.
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    active: KeyId,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    id: KeyId,
    created_at: Timestamp,
    key: String,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl KeyRing {
    /// No key at all, and no file.
    pub(super) fn none() -> Self {
        Self {
            path: PathBuf::new(),
            keys: Vec::new(),
            active: KeyId(String::new()),
        }
    }

    /// Creates a key file with one key, readable by its owner only.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written.
    pub fn create(path: impl Into<PathBuf>, now: Timestamp) -> Result<Self, KeyFileError> {
        let key = Key::generate()?;
        let ring = Self {
            path: path.into(),
            active: key.id(),
            keys: vec![(key, now)],
        };
        ring.write(false)?;
        Ok(ring)
    }

    /// Reads a key file; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it is damaged.
    pub fn load(path: impl Into<PathBuf>) -> Result<Option<Self>, KeyFileError> {
        let path = path.into();
        let read = |source| KeyFileError::Read {
            path: path.clone(),
            source,
        };
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
        };
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Exposed { path, mode });
        }
        let text = Zeroizing::new(fs::read(&path).map_err(read)?);
        let damaged = |detail: String| KeyFileError::Damaged {
            path: path.clone(),
            detail,
        };
        // Report where it is wrong, never the content: that may be a key.
        let stored: Stored = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("line {}, column {}", error.line(), error.column())))?;
        if stored.format != FORMAT {
            return Err(damaged(format!(
                "its format is {}, known is {FORMAT}",
                stored.format
            )));
        }
        let keys = stored
            .keys
            .iter()
            .map(|stored| {
                Key::decode(&stored.key)
                    .filter(|key| key.id() == stored.id)
                    .map(|key| (key, stored.created_at))
                    .ok_or_else(|| damaged(format!("the key {} does not match its identifier", stored.id)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if !keys.iter().any(|(key, _)| key.id() == stored.active) {
            return Err(damaged("its active key is missing".to_owned()));
        }
        Ok(Some(Self {
            active: stored.active,
            path,
            keys,
        }))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identifier of the active key.
    #[must_use]
    pub fn active(&self) -> &str {
        &self.active.0
    }

    /// The identifiers of all keys.
    #[must_use]
    pub fn key_ids(&self) -> Vec<String> {
        self.keys.iter().map(|(key, _)| key.id().0).collect()
    }

    /// Adds a new key that is not used yet, and returns its identifier.
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub fn prepare_key(&mut self, now: Timestamp) -> Result<String, KeyFileError> {
        let key = Key::generate()?;
        let id = key.id().0;
        let mut next = self.clone();
        next.keys.push((key, now));
        next.write(true)?;
        *self = next;
        Ok(id)
    }

    /// Makes one of the keys the active one.
    ///
    /// # Errors
    /// When it is missing, or the file cannot be written; nothing has changed then.
    pub fn activate(&mut self, id: &str) -> Result<(), KeyFileError> {
        let mut next = self.clone();
        let key = self.keys.iter().map(|(key, _)| key.id()).find(|key| key.0 == id);
        next.active = key.ok_or_else(|| self.unknown(id))?;
        next.write(true)?;
        *self = next;
        Ok(())
    }

    /// The key that was prepared and is not used yet: the newest, unless that is the active one.
    #[must_use]
    pub fn prepared(&self) -> Option<String> {
        let (newest, _) = self.keys.iter().max_by_key(|(_, created_at)| *created_at)?;
        let id = newest.id();
        (id != self.active).then_some(id.0)
    }

    /// Removes a key that no longer encrypts anything.
    ///
    /// # Errors
    /// When it is the active one or missing, or the file cannot be written; nothing has changed then.
    pub fn remove_key(&mut self, id: &str) -> Result<(), KeyFileError> {
        if self.active.0 == id {
            return Err(KeyFileError::InUse(id.to_owned()));
        }
        let mut next = self.clone();
        next.keys.retain(|(key, _)| key.id().0 != id);
        if next.keys.len() == self.keys.len() {
            return Err(self.unknown(id));
        }
        next.write(true)?;
        *self = next;
        Ok(())
    }

    /// Encrypts with the active key, bound to a storage key.
    ///
    /// # Errors
    /// When the operating system returns no random numbers.
    pub fn seal(&self, plaintext: &Plaintext, location: &str) -> Result<Sealed, KeyFileError> {
        Ok(self.key(&self.active)?.seal(plaintext, location)?)
    }

    /// Decrypts a value that was encrypted for a storage key.
    ///
    /// # Errors
    /// When its key is missing, or it was changed or moved.
    pub fn open(&self, sealed: &Sealed, location: &str) -> Result<Plaintext, KeyFileError> {
        Ok(self.key(&sealed.key_id)?.open(sealed, location)?)
    }

    fn key(&self, id: &KeyId) -> Result<&Key, KeyFileError> {
        self.keys
            .iter()
            .map(|(key, _)| key)
            .find(|key| key.id() == *id)
            .ok_or_else(|| self.unknown(&id.0))
    }

    fn unknown(&self, id: &str) -> KeyFileError {
        KeyFileError::Unknown {
            id: id.to_owned(),
            path: self.path.clone(),
        }
    }

    /// Writes the file under a temporary name, then renames it.
    fn write(&self, replace: bool) -> Result<(), KeyFileError> {
        let failed = |source: io::Error| KeyFileError::Write {
            path: self.path.clone(),
            source,
        };
        let stored = Stored {
            format: FORMAT,
            active: self.active.clone(),
            keys: self
                .keys
                .iter()
                .map(|(key, created_at)| StoredKey {
                    id: key.id(),
                    created_at: *created_at,
                    key: key.encode().to_string(),
                })
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&stored)
            .map(Zeroizing::new)
            .map_err(|error| failed(error.into()))?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Created with mode 0600.
        let mut temporary = tempfile::Builder::new()
            .prefix(".keys-")
            .tempfile_in(folder)
            .map_err(failed)?;
        temporary.write_all(&text).map_err(failed)?;
        temporary.as_file().sync_all().map_err(failed)?;
        let written = if replace {
            temporary.persist(&self.path)
        } else {
            temporary.persist_noclobber(&self.path)
        };
        written.map_err(|refused| failed(refused.error))?;
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plaintext() -> Plaintext {
        Plaintext::new(b"hunter2".to_vec())
    }

    #[test]
    fn a_key_file_is_readable_by_its_owner_only_and_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        assert!(KeyRing::load(&path).unwrap().is_none());
        let ring = KeyRing::create(&path, Timestamp(1)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = ring.seal(&plaintext(), "x").unwrap();
        let again = KeyRing::load(&path).unwrap().unwrap();
        assert_eq!(again.open(&sealed, "x").unwrap(), plaintext());
        assert!(matches!(
            KeyRing::create(&path, Timestamp(2)),
            Err(KeyFileError::Write { .. })
        ));
        assert_eq!(KeyRing::load(&path).unwrap().unwrap().active(), ring.active());
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        KeyRing::create(&path, Timestamp(1)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = KeyRing::load(&path).unwrap_err();
        assert!(
            error.to_string().contains("mode 0640") && error.to_string().contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_key_file_is_refused_without_showing_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        KeyRing::create(&path, Timestamp(1)).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"format\": 1", "\"format\": 2"),
            whole.replace("\"key\": \"", "\"key\": \"AAAA"),
            whole.replace("\"format\"", "\"more\": 1, \"format\""),
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = KeyRing::load(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Damaged { .. }), "{error:?}");
            let key = whole
                .split("\"key\": \"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            assert!(!format!("{error} {error:?}").contains(key));
        }
    }

    #[test]
    fn an_old_key_opens_what_it_sealed_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut ring = KeyRing::create(&path, Timestamp(1)).unwrap();
        let old = ring.active().to_owned();
        let sealed = ring.seal(&plaintext(), "x").unwrap();
        assert!(matches!(ring.remove_key(&old), Err(KeyFileError::InUse(_))));
        let prepared = ring.prepare_key(Timestamp(2)).unwrap();
        assert_eq!(ring.prepared(), Some(prepared.clone()));
        ring.activate(&prepared).unwrap();
        assert_eq!(ring.prepared(), None);
        assert_ne!(ring.seal(&plaintext(), "x").unwrap().key_id(), old);
        assert_eq!(ring.open(&sealed, "x").unwrap(), plaintext());
        let mut ring = KeyRing::load(&path).unwrap().unwrap();
        ring.remove_key(&old).unwrap();
        let error = ring.open(&sealed, "x").unwrap_err();
        assert!(
            matches!(&error, KeyFileError::Unknown { id, .. } if *id == old),
            "{error:?}"
        );
    }
}
