//! Secrets that callers present. The store has only their hashes: of tokens at `/tokens/<name>`, of webhooks'
//! URLs as keys.

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Api, admission::Rules, caller::Caller, error::ApiError, records, types::Scope};
use crate::{
    objects::Timestamp,
    store::{InvalidKey, Key},
};

/// Prefix of all tokens, by which scanners can find leaked ones.
pub(super) const MARK: &str = "mesh_";

/// Whether a text has the form of a secret: what has not need not be looked up.
pub(super) fn is_secret(text: &str) -> bool {
    URL_SAFE_NO_PAD
        .decode(text)
        .is_ok_and(|bytes| bytes.len() == SECRET_BYTES)
}

/// Number of random bytes in a secret.
const SECRET_BYTES: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    pub(super) scopes: Vec<Scope>,
    /// A token without them, as of an earlier release, allows the least.
    #[serde(default)]
    pub(super) rules: Rules,
    pub(super) created_at: Timestamp,
    #[serde(default)]
    pub(super) expires_at: Option<Timestamp>,
    /// SHA-256 of the whole token. As tokens are random, no slower hash is needed.
    pub(super) sha256: String,
}

/// A new secret: 256 random bits, encoded for URLs and headers.
pub(super) fn new_secret() -> Result<Zeroizing<String>, ApiError> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("could not create a secret, because the kernel provides no random numbers: {error}"),
        )
    })?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

/// The hash of a secret, by which it is stored and looked up.
pub(super) fn fingerprint(secret: &str) -> String {
    Sha256::digest(secret.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The caller that a token belongs to.
pub(super) async fn authenticate(api: &Api, token: &str) -> Result<Caller, ApiError> {
    // The same answer for all failures, so that it does not reveal which names exist.
    let refused = || {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "the token is unknown or has expired: create another one with meshctl token create",
        )
    };
    let (name, _) = token
        .strip_prefix(MARK)
        .and_then(|rest| rest.rsplit_once('.'))
        .ok_or_else(refused)?;
    let key = key(name).map_err(|_| refused())?;
    let stored = {
        let _permit = api.look_ups().permit().await?;
        records::get::<Credential>(api.store(), &key).await?
    };
    let Some((stored, _)) = stored else {
        return Err(refused());
    };
    let same = fingerprint(token).as_bytes().ct_eq(stored.sha256.as_bytes());
    let now = api.cluster().clock().now();
    if !bool::from(same) || stored.expires_at.is_some_and(|end| end <= now) {
        return Err(refused());
    }
    Ok(Caller::Token {
        name: name.to_owned(),
        scopes: stored.scopes,
        rules: stored.rules,
    })
}

pub(super) fn key(name: &str) -> Result<Key, InvalidKey> {
    Key::new(["tokens", name])
}
