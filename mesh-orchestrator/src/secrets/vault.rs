//! Secrets, configs and registry credentials in a store. Depends on the store's trait, `key_file` and
//! `sealed`.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use serde::{Deserialize, Serialize};

use super::{
    key_file::{KeyFileError, KeyRing},
    sealed::{Plaintext, Sealed},
};
use crate::{
    objects::Timestamp,
    store::{Entry, Expected, InvalidKey, Key, PAGE, Prefix, Revision, Store, StoreError, Transaction},
};

/// What is kept encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A secret of Docker's kind: a file in a container, in memory only.
    Secret,
    /// A config of Docker's kind: a file in a container.
    Config,
    /// Name and password for a registry; named by the registry's address.
    RegistryCredential,
    /// The secret part of a webhook's URL; named by the service's id and the webhook's name.
    Webhook,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Secret,
        Self::Config,
        Self::RegistryCredential,
        Self::Webhook,
    ];

    /// The first segment of their keys.
    #[must_use]
    pub fn segment(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Config => "configs",
            Self::RegistryCredential => "registries",
            Self::Webhook => "webhooks",
        }
    }

    /// The most bytes of one: Docker's limits.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Secret => 500 << 10,
            Self::Config => 1000 << 10,
            Self::RegistryCredential => 64 << 10,
            Self::Webhook => 1 << 10,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
            Self::RegistryCredential => "registry credential",
            Self::Webhook => "webhook",
        })
    }
}

/// What is stored of one: all but the sealed part may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last got another value.
    pub updated_at: Timestamp,
    /// How many bytes it has in the clear.
    pub size: usize,
    /// The value, encrypted.
    pub sealed: Sealed,
}

/// Why something was not kept or revealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The name cannot be part of a key.
    #[error("the name of a {kind} is not allowed")]
    Name {
        /// Of which kind.
        kind: Kind,
        /// What is wrong with it.
        source: InvalidKey,
    },
    /// Larger than Docker allows.
    #[error("a {kind} of {found} bytes is too large; the limit is {}", kind.max_bytes())]
    TooLarge {
        /// Of which kind.
        kind: Kind,
        /// How large it is.
        found: usize,
    },
    /// There is one already.
    #[error("there is a {kind} {name} already")]
    Exists {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// There is none.
    #[error("there is no {kind} {name}")]
    Missing {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The store has secrets, but this machine not their key.
    #[error(
        "the store's secrets are encrypted with the key {active}, which is not in {path}; copy the key file there from a node that has it, or from your backup"
    )]
    NoKey {
        /// The name of the key in use.
        active: String,
        /// Where the key file should be.
        path: PathBuf,
    },
    /// What is stored is no record.
    #[error(
        "{key} is no record of a secret; restore the newest backup if nobody has edited the store by hand"
    )]
    Damaged {
        /// Where.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The key file.
    #[error("the key file is in the way")]
    KeyFile(#[from] KeyFileError),
    /// The store.
    #[error("the store did not do it")]
    Store(#[from] StoreError),
}

/// Keeps what is encrypted, with the keys of this machine's key file.
#[derive(Debug)]
pub struct Vault {
    store: Arc<dyn Store>,
    keys: RwLock<KeyRing>,
}

impl Vault {
    /// Opens the vault of a store. The key file is made with the very first use of the store, never later:
    /// a lost file must not look like a new beginning.
    ///
    /// # Errors
    /// [`VaultError::NoKey`] when the store's key is not in this machine's file.
    pub async fn open(store: Arc<dyn Store>, path: &Path, now: Timestamp) -> Result<Self, VaultError> {
        let keys = match (KeyRing::load(path)?, active_key(store.as_ref()).await?) {
            (Some(keys), Some((active, _))) if keys.key_ids().contains(&active) => keys,
            (_, Some((active, _))) => {
                return Err(VaultError::NoKey {
                    active,
                    path: path.to_owned(),
                });
            }
            (Some(keys), None) => {
                claim(store.as_ref(), &keys, Expected::Absent, path).await?;
                keys
            }
            (None, None) => {
                let keys = KeyRing::create(path, now)?;
                let claimed = claim(store.as_ref(), &keys, Expected::Absent, path).await;
                if let Err(VaultError::NoKey { .. }) = &claimed {
                    // Another node was faster, and this key has encrypted nothing.
                    let _ = std::fs::remove_file(path);
                }
                claimed?;
                keys
            }
        };
        Ok(Self {
            store,
            keys: RwLock::new(keys),
        })
    }

    /// Keeps something new.
    ///
    /// # Errors
    /// [`VaultError::Exists`], [`VaultError::TooLarge`]; as [`Store::commit`].
    pub async fn create(
        &self,
        kind: Kind,
        name: &str,
        labels: BTreeMap<String, String>,
        value: &Plaintext,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let key = key(kind, name)?;
        let record = self.seal(kind, name, &key, labels, value, (now, now))?;
        match self.put(key, Expected::Absent, &record).await {
            Err(VaultError::Store(StoreError::Conflict { .. })) => Err(VaultError::Exists {
                kind,
                name: name.to_owned(),
            }),
            other => other,
        }
    }

    /// Keeps something in the place of what may be there, as logging in to a registry does.
    ///
    /// # Errors
    /// [`VaultError::TooLarge`]; as [`Store::commit`].
    pub async fn replace(
        &self,
        kind: Kind,
        name: &str,
        value: &Plaintext,
        now: Timestamp,
    ) -> Result<(), VaultError> {
        let key = key(kind, name)?;
        loop {
            let (expected, labels, created_at) = match self.find(&key).await? {
                Some((record, revision)) => (Expected::At(revision), record.labels, record.created_at),
                None => (Expected::Absent, BTreeMap::new(), now),
            };
            let record = self.seal(kind, name, &key, labels, value, (created_at, now))?;
            match self.put(key.clone(), expected, &record).await {
                Err(VaultError::Store(StoreError::Conflict { .. })) => {}
                other => return other,
            }
        }
    }

    /// All of a kind, by name, without their values.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list(&self, kind: Kind) -> Result<Vec<Record>, VaultError> {
        let entries = entries(self.store.as_ref(), kind).await?;
        entries.iter().map(read).collect()
    }

    /// One, without its value.
    ///
    /// # Errors
    /// [`VaultError::Missing`]; as [`Store::get`].
    pub async fn inspect(&self, kind: Kind, name: &str) -> Result<Record, VaultError> {
        match self.find(&key(kind, name)?).await? {
            Some((record, _)) => Ok(record),
            None => Err(VaultError::Missing {
                kind,
                name: name.to_owned(),
            }),
        }
    }

    /// The value of one.
    ///
    /// # Errors
    /// [`VaultError::Missing`], [`VaultError::KeyFile`]; as [`Store::get`].
    pub async fn reveal(&self, kind: Kind, name: &str) -> Result<Plaintext, VaultError> {
        let record = self.inspect(kind, name).await?;
        let key = key(kind, name)?;
        Ok(self.keys().open(&record.sealed, key.as_str())?)
    }

    /// Removes one.
    ///
    /// # Errors
    /// [`VaultError::Missing`]; as [`Store::commit`].
    pub async fn remove(&self, kind: Kind, name: &str) -> Result<(), VaultError> {
        let key = key(kind, name)?;
        let missing = || VaultError::Missing {
            kind,
            name: name.to_owned(),
        };
        let (_, revision) = self.find(&key).await?.ok_or_else(missing)?;
        let transaction = Transaction::new()
            .expect(key.clone(), Expected::At(revision))
            .delete(key);
        self.store.commit(transaction).await?;
        Ok(())
    }

    /// Adds a new key to this machine's key file. On several nodes, copy the file to all of them (each
    /// reads it again with [`Self::reload`]) before [`Self::encrypt_anew`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_key(&self, now: Timestamp) -> Result<(), VaultError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.add_key(now)?)
    }

    /// Reads the key file again.
    ///
    /// # Errors
    /// When it cannot be read, or is gone; the keys that were read before stay in use.
    pub fn reload(&self) -> Result<(), VaultError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let path = keys.path().to_owned();
        *keys = KeyRing::load(&path)?.ok_or_else(|| VaultError::NoKey {
            active: keys.active().to_owned(),
            path,
        })?;
        Ok(())
    }

    /// Encrypts with the active key all that is encrypted with another, and then removes the keys that
    /// nothing needs any more from this machine's file. Says how many were encrypted anew. What stops it
    /// half way does no harm; do it again.
    ///
    /// # Errors
    /// As [`Store::commit`]; [`VaultError::KeyFile`] when a key is missing.
    pub async fn encrypt_anew(&self) -> Result<usize, VaultError> {
        let keys = self.keys().clone();
        let expected = match active_key(self.store.as_ref()).await? {
            Some((_, revision)) => Expected::At(revision),
            None => Expected::Absent,
        };
        claim(self.store.as_ref(), &keys, expected, keys.path()).await?;
        let mut count = 0;
        for kind in Kind::ALL {
            for entry in entries(self.store.as_ref(), kind).await? {
                count += usize::from(self.encrypt_one_anew(&keys, entry.key).await?);
            }
        }
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        for id in keys.key_ids() {
            if id != keys.active() {
                keys.remove_key(&id)?;
            }
        }
        Ok(count)
    }

    async fn encrypt_one_anew(&self, keys: &KeyRing, key: Key) -> Result<bool, VaultError> {
        loop {
            let Some((mut record, revision)) = self.find(&key).await? else {
                return Ok(false);
            };
            if record.sealed.key_id() == keys.active() {
                return Ok(false);
            }
            let value = keys.open(&record.sealed, key.as_str())?;
            record.sealed = keys.seal(&value, key.as_str())?;
            match self.put(key.clone(), Expected::At(revision), &record).await {
                Err(VaultError::Store(StoreError::Conflict { .. })) => {}
                other => return other.map(|()| true),
            }
        }
    }

    fn keys(&self) -> RwLockReadGuard<'_, KeyRing> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn seal(
        &self,
        kind: Kind,
        name: &str,
        key: &Key,
        labels: BTreeMap<String, String>,
        value: &Plaintext,
        (created_at, updated_at): (Timestamp, Timestamp),
    ) -> Result<Record, VaultError> {
        let size = value.expose().len();
        if size > kind.max_bytes() {
            return Err(VaultError::TooLarge { kind, found: size });
        }
        Ok(Record {
            name: name.to_owned(),
            labels,
            created_at,
            updated_at,
            size,
            sealed: self.keys().seal(value, key.as_str())?,
        })
    }

    async fn find(&self, key: &Key) -> Result<Option<(Record, Revision)>, VaultError> {
        match self.store.get(key).await? {
            Some(entry) => Ok(Some((read(&entry)?, entry.modified))),
            None => Ok(None),
        }
    }

    async fn put(&self, key: Key, expected: Expected, record: &Record) -> Result<(), VaultError> {
        let value = serde_json::to_vec(record).map_err(|source| VaultError::Damaged {
            key: key.to_string(),
            source,
        })?;
        let transaction = Transaction::new().expect(key.clone(), expected).put(key, value);
        self.store.commit(transaction).await?;
        Ok(())
    }
}

/// The name of the key that the store's secrets are encrypted with; no key is in the store.
fn active_place() -> Result<Key, VaultError> {
    Key::new(["keys", "active"]).map_err(|source| VaultError::Name {
        kind: Kind::Secret,
        source,
    })
}

async fn active_key(store: &dyn Store) -> Result<Option<(String, Revision)>, VaultError> {
    let entry = store.get(&active_place()?).await?;
    Ok(entry.map(|entry| (String::from_utf8_lossy(&entry.value).into_owned(), entry.modified)))
}

/// Notes which key the store's secrets are encrypted with.
async fn claim(store: &dyn Store, keys: &KeyRing, expected: Expected, path: &Path) -> Result<(), VaultError> {
    let place = active_place()?;
    let transaction = Transaction::new()
        .expect(place.clone(), expected)
        .put(place, keys.active());
    match store.commit(transaction).await {
        Err(StoreError::Conflict { .. }) => {
            let active = active_key(store).await?.map(|(active, _)| active);
            match active {
                Some(active) if keys.key_ids().contains(&active) => Ok(()),
                active => Err(VaultError::NoKey {
                    active: active.unwrap_or_default(),
                    path: path.to_owned(),
                }),
            }
        }
        other => other.map(drop).map_err(Into::into),
    }
}

fn key(kind: Kind, name: &str) -> Result<Key, VaultError> {
    Key::new([kind.segment(), name]).map_err(|source| VaultError::Name { kind, source })
}

async fn entries(store: &dyn Store, kind: Kind) -> Result<Vec<Entry>, VaultError> {
    let prefix = Prefix::new([kind.segment()]).map_err(|source| VaultError::Name { kind, source })?;
    Ok(store.list(&prefix, PAGE).await?.entries().await?)
}

fn read(entry: &Entry) -> Result<Record, VaultError> {
    serde_json::from_slice(&entry.value).map_err(|source| VaultError::Damaged {
        key: entry.key.to_string(),
        source,
    })
}
