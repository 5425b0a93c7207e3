//! How a webhook is stored: its secret in the vault, and what a call needs under the hash of the secret.

use serde::{Deserialize, Serialize};

use crate::{
    api::{Api, credentials::fingerprint, error::ApiError, records},
    objects::{ServiceId, Timestamp},
    secrets::{Kind, Plaintext, VaultError},
    store::{InvalidKey, Key, Revision},
};

/// The record that a call is looked up in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub(super) service: ServiceId,
    pub(super) name: String,
    pub(super) enabled: bool,
    pub(super) created_at: Timestamp,
    #[serde(default)]
    pub(super) called_at: Option<Timestamp>,
}

/// A webhook that was looked up by its service and name.
pub(super) struct Found {
    pub(super) stored: Stored,
    pub(super) revision: Revision,
    pub(super) key: Key,
    pub(super) secret: Plaintext,
}

pub(super) async fn look_up(api: &Api, service: &ServiceId, name: &str) -> Result<Option<Found>, ApiError> {
    let secret = match api
        .vault()
        .reveal(Kind::Webhook, &sealed_name(service, name))
        .await
    {
        Ok(secret) => secret,
        Err(VaultError::Missing { .. } | VaultError::Name { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let key = url_key(&secret)?;
    let stored = records::get::<Stored>(api.store(), &key).await?;
    Ok(stored.map(|(stored, revision)| Found {
        stored,
        revision,
        key,
        secret,
    }))
}

/// The name of the secret in the vault. Ids contain no dot, so the first one separates id and name.
pub(super) fn sealed_name(service: &ServiceId, name: &str) -> String {
    format!("{service}.{name}")
}

/// Where it is stored how often a webhook was called lately.
pub(super) fn bucket_key(fingerprint: &str) -> Result<Key, InvalidKey> {
    Key::new(["webhook-limits", fingerprint])
}

pub(super) fn url_key(secret: &Plaintext) -> Result<Key, InvalidKey> {
    let secret = String::from_utf8_lossy(secret.expose());
    Key::new(["webhook-urls", &fingerprint(&secret)])
}
