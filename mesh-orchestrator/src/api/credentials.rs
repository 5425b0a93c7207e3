//! Secrets that callers present, of which only hashes are stored: tokens in `/tokens/<name>`, webhooks' URLs.

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Api, caller::Caller, error::ApiError, records, types::Scope};
use crate::{
    objects::Timestamp,
    store::{InvalidKey, Key},
};

/// What every token begins with, so that one that was published by mistake is found.
pub(super) const MARK: &str = "mesh_";

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    pub(super) scopes: Vec<Scope>,
    pub(super) created_at: Timestamp,
    #[serde(default)]
    pub(super) expires_at: Option<Timestamp>,
    /// SHA-256 of the whole token. It is random, so that nothing slower is needed.
    pub(super) sha256: String,
}

/// A new secret: 256 random bits, in letters that URLs and headers take.
pub(super) fn new_secret() -> Result<Zeroizing<String>, ApiError> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the kernel gives no random numbers, and without them nothing is secret: {error}"),
        )
    })?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

/// What is stored of a secret, or looked it up by.
pub(super) fn fingerprint(secret: &str) -> String {
    Sha256::digest(secret.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Who has a token.
pub(super) async fn authenticate(api: &Api, token: &str) -> Result<Caller, ApiError> {
    // One answer for all that can be wrong: it tells nobody which names there are.
    let refused = || {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "the token is not known, or has expired: meshctl token create makes another",
        )
    };
    let (name, _) = token
        .strip_prefix(MARK)
        .and_then(|rest| rest.rsplit_once('.'))
        .ok_or_else(refused)?;
    let key = key(name).map_err(|_| refused())?;
    let stored = records::get::<Credential>(api.store(), &key).await?;
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
    })
}

pub(super) fn key(name: &str) -> Result<Key, InvalidKey> {
    Key::new(["tokens", name])
}
