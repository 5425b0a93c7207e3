//! Bearer tokens: list, create, remove. Of a token only the hash is stored, at `/tokens/<name>`.

use axum::{http::StatusCode, response::Response};

use super::{
    admission::Rules,
    call::Call,
    caller::Caller,
    credentials::{Credential, MARK, fingerprint, key, new_secret},
    error::ApiError,
    records,
    respond::{json, no_content, ok},
    types::{Confidential, Scope, TokenCreate, TokenCreated, TokenView},
};
use crate::{
    spec::{SpecError, name::check_name},
    store::{Expected, Prefix, StoreError, Transaction},
};

/// Maximum number of tokens.
const MAX_TOKENS: usize = 1000;

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let prefix = Prefix::new(["tokens"])?;
    let tokens = records::list::<Credential>(call.api.store(), &prefix).await?;
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
        allow,
        ports,
        secrets,
        configs,
        expires_at,
    } = call.json()?;
    check_name("name", &name)?;
    for (field, prefixes) in [("secrets", &secrets), ("configs", &configs)] {
        if prefixes.iter().flatten().any(String::is_empty) {
            let allowed = "the beginnings of names; none in an empty list, any without the field";
            return Err(SpecError::invalid(field, "", allowed).into());
        }
    }
    let rules = Rules {
        allow,
        ports,
        secrets,
        configs,
    };
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(SpecError::invalid("scopes", "[]", "at least one scope, such as services:read").into());
    }
    if let Some(beyond) = scopes.iter().find(|scope| !call.caller.may(**scope)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("the token cannot allow {beyond}: your own token does not have this scope"),
        ));
    }
    if let Caller::Token { rules: own, .. } = &call.caller
        && !call.caller.may(Scope::All)
        && !own.include(&rules)
    {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "the token cannot allow its services more than your own token does: name permissions, ports, secrets and configs \
             that it has",
        ));
    }
    let now = call.api.cluster().clock().now();
    if expires_at.is_some_and(|end| end <= now) {
        return Err(ApiError::invalid(
            "expires_at",
            expires_at.map_or(0, |end| end.0),
            "a time in the future, in milliseconds since 1970",
        ));
    }
    let store = call.api.store();
    let prefix = Prefix::new(["tokens"])?;
    if records::list::<Credential>(store, &prefix).await?.len() >= MAX_TOKENS {
        return Err(ApiError::conflict(format!(
            "there are already {MAX_TOKENS} tokens: remove those that are not used"
        )));
    }
    let token = Confidential::from(format!("{MARK}{name}.{}", new_secret()?.as_str()));
    let stored = Credential {
        scopes,
        rules,
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
                "a token named {name} already exists: choose another name, or remove that token"
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
    let Some((_, revision)) = records::get::<Credential>(call.api.store(), &key).await? else {
        return Err(ApiError::not_found(format!("no such token: {name}")));
    };
    let transaction = Transaction::new()
        .expect(key.clone(), Expected::At(revision))
        .delete(key);
    call.api.store().commit(transaction).await?;
    no_content()
}

fn view(name: &str, stored: Credential) -> TokenView {
    TokenView {
        name: name.to_owned(),
        scopes: stored.scopes,
        allow: stored.rules.allow,
        ports: stored.rules.ports,
        secrets: stored.rules.secrets,
        configs: stored.rules.configs,
        created_at: stored.created_at,
        expires_at: stored.expires_at,
    }
}
