//! Credentials for registries: stored encrypted in the vault by the registry's address, once the registry has
//! accepted them. No answer contains a password.

use std::time::Duration;

use axum::{http::StatusCode, response::Response};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Api,
    call::Call,
    error::ApiError,
    respond::{no_content, ok},
    types::{Confidential, RegistryLogin, RegistryView},
};
use crate::{
    secrets::{Kind, Plaintext, Record},
    spec::SpecError,
};

/// How long the registry may take to answer.
const REGISTRY: Duration = Duration::from_secs(30);

/// Names of Docker Hub; the first is the one that is stored.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The credential that the vault stores for a registry, as JSON.
#[derive(Serialize, Deserialize)]
struct Credential {
    username: String,
    password: Confidential,
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let mut views = Vec::new();
    for record in call.api.vault().list(Kind::RegistryCredential).await? {
        views.push(view(&call.api, record).await?);
    }
    ok(&views)
}

pub(super) async fn put(call: Call) -> Result<Response, ApiError> {
    let RegistryLogin {
        username,
        password,
        unchecked,
    } = call.json()?;
    let host = host(call.segment("host"))?;
    if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
        return Err(SpecError::invalid(
            "username",
            username,
            "a non-empty name without colons and control characters",
        )
        .into());
    }
    if password.expose().is_empty() {
        return Err(SpecError::invalid("password", "", "a password or an access token").into());
    }
    if !unchecked {
        let answer = timeout(
            REGISTRY,
            call.api.images().log_in(&host, &username, password.expose()),
        );
        match answer.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(ApiError::caused(StatusCode::UNPROCESSABLE_ENTITY, &error)),
            Err(_) => {
                return Err(ApiError::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    format!(
                        "the registry {host} did not answer this node within {} s, so that nothing was stored",
                        REGISTRY.as_secs()
                    ),
                ));
            }
        }
    }
    let credential = Credential { username, password };
    let text = serde_json::to_vec(&credential)
        .map_err(|_| ApiError::bad_request("the credentials cannot be encoded as JSON"))?;
    let now = call.api.cluster().clock().now();
    let vault = call.api.vault();
    vault
        .replace(Kind::RegistryCredential, &host, &Plaintext::new(text), now)
        .await?;
    let record = vault.inspect(Kind::RegistryCredential, &host).await?;
    ok(&view(&call.api, record).await?)
}

pub(super) async fn remove(call: Call) -> Result<Response, ApiError> {
    let host = host(call.segment("host"))?;
    call.api.vault().remove(Kind::RegistryCredential, &host).await?;
    no_content()
}

async fn view(api: &Api, record: Record) -> Result<RegistryView, ApiError> {
    let sealed = api.vault().reveal(Kind::RegistryCredential, &record.name).await?;
    let credential: Credential = serde_json::from_slice(sealed.expose()).map_err(|_| {
        ApiError::conflict(format!(
            "the credentials for {} are damaged: log in again",
            record.name
        ))
    })?;
    Ok(RegistryView {
        host: record.name,
        username: credential.username,
        created_at: record.created_at,
        updated_at: record.updated_at,
    })
}

/// A registry's address in the form that image references use.
fn host(text: &str) -> Result<String, SpecError> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-');
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let sound = (1..=253).contains(&name.len())
        && name.chars().all(allowed)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !sound {
        return Err(SpecError::invalid(
            "host",
            text,
            "host[:port], such as registry.example.com:5000",
        ));
    }
    let text = text.to_ascii_lowercase();
    Ok(if DOCKER_HUB.contains(&text.as_str()) {
        DOCKER_HUB[0].to_owned()
    } else {
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_stored_by_the_name_in_image_references() {
        for (text, expected) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Registry.Example.com:5000", "registry.example.com:5000"),
            ("localhost:5000", "localhost:5000"),
        ] {
            assert_eq!(host(text).as_deref(), Ok(expected));
        }
        for wrong in ["", "https://x", "x:0", "x:y", "a b", "x:70000", "a/b"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
