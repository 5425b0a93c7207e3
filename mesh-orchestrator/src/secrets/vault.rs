//! Secrets, configs and registry credentials in a store. Depends on the store's trait, `key_file` and
//! `record`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use super::{
    error::VaultError,
    key_file::{KeyFileError, KeyRing},
    record::{Kind, Record},
    sealed::Plaintext,
};
use crate::{
    objects::Timestamp,
    store::{Entry, Expected, Key, PAGE, Prefix, Revision, Store, StoreError, Transaction},
};

/// Encrypted values in a store, with the keys of this machine's key file.
#[derive(Debug)]
pub struct Vault {
    store: Arc<dyn Store>,
    keys: RwLock<KeyRing>,
}

impl Vault {
    /// Opens the vault of a store. The key file is created on the first use of the store, never later: a lost
    /// file must not be replaced by a new one.
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
                    // Another node was faster, and nothing is encrypted with this key.
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

    /// The vault of a node that has no key, which reveals nothing.
    #[must_use]
    pub fn without_keys(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            keys: RwLock::new(KeyRing::none()),
        }
    }

    /// Creates a value.
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
        self.follow_active().await?;
        let record = self.seal(kind, name, &key, labels, value, (now, now))?;
        match self.put(key, Expected::Absent, &record).await {
            Err(VaultError::Store(StoreError::Conflict { .. })) => Err(VaultError::Exists {
                kind,
                name: name.to_owned(),
            }),
            other => other,
        }
    }

    /// Creates or replaces a value, as logging in to a registry does.
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
        self.follow_active().await?;
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

    /// All records of a kind, by name.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list(&self, kind: Kind) -> Result<Vec<Record>, VaultError> {
        let entries = entries(self.store.as_ref(), kind).await?;
        entries.iter().map(read).collect()
    }

    /// One record.
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

    /// One value in clear text.
    ///
    /// # Errors
    /// [`VaultError::Missing`], [`VaultError::KeyFile`]; as [`Store::get`].
    pub async fn reveal(&self, kind: Kind, name: &str) -> Result<Plaintext, VaultError> {
        let record = self.inspect(kind, name).await?;
        let key = key(kind, name)?;
        let opened = self.keys().open(&record.sealed, key.as_str());
        match opened {
            // The file may have been replaced since, by one with a new key.
            Err(KeyFileError::Unknown { .. }) => {
                self.reload()?;
                Ok(self.keys().open(&record.sealed, key.as_str())?)
            }
            opened => Ok(opened?),
        }
    }

    /// Replaces the key that encrypts everything. The first time, a new key is added to this machine's
    /// file, and not used. When all nodes have that file, `finish`: everything is encrypted with it, and
    /// what the other nodes encrypt from then on, too. Returns the new key's identifier, and how many
    /// values were encrypted again; `None` if it is not used yet.
    ///
    /// # Errors
    /// [`VaultError::NotPrepared`]; as [`Self::reencrypt`].
    pub async fn rotate(&self, now: Timestamp, finish: bool) -> Result<(String, Option<usize>), VaultError> {
        self.reload()?;
        let prepared = self.keys().prepared();
        if !finish {
            let id = match prepared {
                Some(id) => id,
                None => {
                    let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                    keys.prepare_key(now)?
                }
            };
            return Ok((id, None));
        }
        // After a failure the key is active already, and not everything is encrypted with it.
        let others = self.keys().key_ids().len() > 1;
        let id = match prepared {
            Some(id) => {
                let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                keys.activate(&id)?;
                id
            }
            None if others => self.keys().active().to_owned(),
            None => return Err(VaultError::NotPrepared),
        };
        Ok((id, Some(self.reencrypt().await?)))
    }

    /// The key file.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.keys().path().to_owned()
    }

    /// Makes the key active that the store says is: another node may have replaced it.
    async fn follow_active(&self) -> Result<(), VaultError> {
        let Some((active, _)) = active_key(self.store.as_ref()).await? else {
            return Ok(());
        };
        if self.keys().active() == active {
            return Ok(());
        }
        self.reload()?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        match keys.active() == active {
            true => Ok(()),
            false => Ok(keys.activate(&active)?),
        }
    }

    /// Removes a value.
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

    /// Reads the key file again.
    ///
    /// # Errors
    /// When it cannot be read or is missing; the keys that were read before stay in use.
    pub fn reload(&self) -> Result<(), VaultError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let path = keys.path().to_owned();
        *keys = KeyRing::load(&path)?.ok_or_else(|| VaultError::NoKey {
            active: keys.active().to_owned(),
            path,
        })?;
        Ok(())
    }

    /// Re-encrypts with the active key all values under other keys, then removes the unused keys from this
    /// machine's file. Returns how many values were re-encrypted. Can be repeated after a failure.
    ///
    /// # Errors
    /// As [`Store::commit`]; [`VaultError::KeyFile`] when a key is missing.
    pub async fn reencrypt(&self) -> Result<usize, VaultError> {
        let keys = self.keys().clone();
        let expected = match active_key(self.store.as_ref()).await? {
            Some((_, revision)) => Expected::At(revision),
            None => Expected::Absent,
        };
        claim(self.store.as_ref(), &keys, expected, keys.path()).await?;
        let mut count = 0;
        for kind in Kind::ALL {
            for entry in entries(self.store.as_ref(), kind).await? {
                count += usize::from(self.reencrypt_one(&keys, entry.key).await?);
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

    async fn reencrypt_one(&self, keys: &KeyRing, key: Key) -> Result<bool, VaultError> {
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

/// Where the identifier of the active key is stored. The key itself is not.
fn active_key_location() -> Result<Key, VaultError> {
    Key::new(["keys", "active"]).map_err(|source| VaultError::Name {
        kind: Kind::Secret,
        source,
    })
}

async fn active_key(store: &dyn Store) -> Result<Option<(String, Revision)>, VaultError> {
    let entry = store.get(&active_key_location()?).await?;
    Ok(entry.map(|entry| (String::from_utf8_lossy(&entry.value).into_owned(), entry.modified)))
}

/// Stores the identifier of the key with which the store's secrets are encrypted.
async fn claim(store: &dyn Store, keys: &KeyRing, expected: Expected, path: &Path) -> Result<(), VaultError> {
    let location = active_key_location()?;
    let transaction = Transaction::new()
        .expect(location.clone(), expected)
        .put(location, keys.active());
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
