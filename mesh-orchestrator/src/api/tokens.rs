//! Bearer tokens: 256 random bits under a name. Only their hash is stored, in `/tokens/<name>`.

use axum::{http::StatusCode, response::Response};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    Api,
    access::Caller,
    call::{Call, json, no_content, ok},
    error::ApiError,
    records,
    types::{Confidential, Scope, TokenCreate, TokenCreated, TokenView},
};
use crate::{
    objects::Timestamp,
    spec::{SpecError, name::check_name},
    store::{Expected, Key, Prefix, StoreError, Transaction},
};

/// What every token begins with, so that one that was published by mistake is found.
const MARK: &str = "mesh_";

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// Most tokens that there may be.
const MAX_TOKENS: usize = 1000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    scopes: Vec<Scope>,
    created_at: Timestamp,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    /// SHA-256 of the whole token. It is random, so that nothing slower is needed.
    sha256: String,
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
    let stored = records::get::<Stored>(api.store(), &key).await?;
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

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let prefix = Prefix::new(["tokens"])?;
    let tokens = records::list::<Stored>(call.api.store(), &prefix).await?;
    let views: Vec<TokenView> = tokens
        .into_iter()
        .map(|(key, stored, _)| view(key.name(), stored))
        .collect();
    ok(&views)
}

pub(super) async fn create(call: Call) -> Result<Response, ApiError> {
    let TokenCreate {
        name,
        mut scopes,
        expires_at,
    } = call.json()?;
    check_name("name", &name)?;
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(SpecError::invalid("scopes", "[]", "at least one, such as services:read").into());
    }
    if let Some(beyond) = scopes.iter().find(|scope| !call.caller.may(**scope)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("a token cannot allow {beyond}, which whoever makes it may not do"),
        ));
    }
    let now = call.api.cluster().clock().now();
    if expires_at.is_some_and(|end| end <= now) {
        return Err(ApiError::invalid(
            "expires_at",
            expires_at.map_or(0, |end| end.0),
            "a time that lies ahead, in milliseconds since 1970",
        ));
    }
    let store = call.api.store();
    let prefix = Prefix::new(["tokens"])?;
    if records::list::<Stored>(store, &prefix).await?.len() >= MAX_TOKENS {
        return Err(ApiError::conflict(format!(
            "there are {MAX_TOKENS} tokens already: remove those that nobody uses"
        )));
    }
    let token = Confidential::from(format!("{MARK}{name}.{}", new_secret()?.as_str()));
    let stored = Stored {
        scopes,
        created_at: now,
        expires_at,
        sha256: fingerprint(token.expose()),
    };
    let key = key(&name)?;
    let transaction = Transaction::new()
        .expect(key.clone(), Expected::Absent)
        .put(key.clone(), records::encode(&key, &stored)?);
    match store.commit(transaction).await {
        Ok(_) => {}
        Err(StoreError::Conflict { .. }) => {
            return Err(ApiError::conflict(format!(
                "there is a token {name} already: choose another name, or remove it"
            ))
            .about("name", name));
        }
        Err(error) => return Err(error.into()),
    }
    let view = view(&name, stored);
    json(StatusCode::CREATED, &TokenCreated { token, view })
}

pub(super) async fn remove(call: Call) -> Result<Response, ApiError> {
    let name = call.segment("token");
    let key = key(name)?;
    let Some((_, revision)) = records::get::<Stored>(call.api.store(), &key).await? else {
        return Err(ApiError::not_found(format!("there is no token {name}")));
    };
    let transaction = Transaction::new()
        .expect(key.clone(), Expected::At(revision))
        .delete(key);
    call.api.store().commit(transaction).await?;
    no_content()
}

fn key(name: &str) -> Result<Key, crate::store::InvalidKey> {
    Key::new(["tokens", name])
}

fn view(name: &str, stored: Stored) -> TokenView {
    TokenView {
        name: name.to_owned(),
        scopes: stored.scopes,
        created_at: stored.created_at,
        expires_at: stored.expires_at,
    }
}
