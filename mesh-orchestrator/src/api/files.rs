//! Secrets and configs: stored encrypted in the vault, and removed only when no service uses them. No answer
//! contains the data of a secret.

use std::collections::BTreeMap;

use axum::{http::StatusCode, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Api,
    call::Call,
    error::ApiError,
    respond::{json, no_content, ok},
    types::{
        Confidential, ConfigCreate, ConfigView, KeyRotation, KeyRotationRequest, SecretCreate, SecretView,
    },
};
use crate::{
    objects::{Service, TaskId},
    secrets::{Kind, Plaintext, Record, VaultError},
    spec::{FileReference, ServiceSpec, SpecError, name::check_name},
};

/// Maximum size of a request that creates a secret or config: the largest one in base64, with its labels.
pub(super) const MAX_BODY_BYTES: usize = 2 << 20;

pub(super) async fn list_secrets(call: Call) -> Result<Response, ApiError> {
    let records = call.api.vault().list(Kind::Secret).await?;
    let views: Vec<SecretView> = records
        .into_iter()
        .map(|record| secret_view(&call.api, record))
        .collect();
    ok(&views)
}

pub(super) async fn inspect_secret(call: Call) -> Result<Response, ApiError> {
    let record = find(&call, Kind::Secret, "secret").await?;
    ok(&secret_view(&call.api, record))
}

pub(super) async fn create_secret(call: Call) -> Result<Response, ApiError> {
    let SecretCreate { name, labels, data } = call.json()?;
    let record = create(&call, Kind::Secret, &name, labels, &data).await?;
    json(StatusCode::CREATED, &secret_view(&call.api, record))
}

pub(super) async fn remove_secret(call: Call) -> Result<Response, ApiError> {
    remove(&call, Kind::Secret, "secret").await
}

pub(super) async fn list_configs(call: Call) -> Result<Response, ApiError> {
    let records = call.api.vault().list(Kind::Config).await?;
    let views: Vec<ConfigView> = records
        .into_iter()
        .map(|record| config_view(&call.api, record, None))
        .collect();
    ok(&views)
}

pub(super) async fn inspect_config(call: Call) -> Result<Response, ApiError> {
    let record = find(&call, Kind::Config, "config").await?;
    let data = call.api.vault().reveal(Kind::Config, &record.name).await?;
    ok(&config_view(&call.api, record, Some(&data)))
}

pub(super) async fn create_config(call: Call) -> Result<Response, ApiError> {
    let ConfigCreate { name, labels, data } = call.json()?;
    let record = create(&call, Kind::Config, &name, labels, &data).await?;
    json(StatusCode::CREATED, &config_view(&call.api, record, None))
}

pub(super) async fn remove_config(call: Call) -> Result<Response, ApiError> {
    remove(&call, Kind::Config, "config").await
}

/// Replaces the key that encrypts secrets; in one step where there is one node.
pub(super) async fn rotate_key(call: Call) -> Result<Response, ApiError> {
    let KeyRotationRequest { finish } = call.json()?;
    let (cluster, vault) = (call.api.cluster(), call.api.vault());
    let now = cluster.clock().now();
    let mut rotated = vault.rotate(now, finish).await?;
    if !finish && cluster.read(|state| state.nodes().len()) <= 1 {
        rotated = vault.rotate(now, true).await?;
    }
    let (key, encrypted) = rotated;
    ok(&KeyRotation {
        finished: encrypted.is_some(),
        key,
        file: vault.key_file().display().to_string(),
        encrypted: encrypted.unwrap_or_default(),
    })
}

async fn create(
    call: &Call,
    kind: Kind,
    name: &str,
    labels: BTreeMap<String, String>,
    data: &Confidential,
) -> Result<Record, ApiError> {
    check_name("name", name)?;
    // The decoder's error is not passed on: it would reveal part of the data.
    let bytes = STANDARD
        .decode(data.expose())
        .map_err(|_| SpecError::invalid("data", "", "base64 (RFC 4648, with padding)"))?;
    if bytes.is_empty() {
        return Err(SpecError::invalid("data", "", "base64 of at least one byte").into());
    }
    let value = Plaintext::new(bytes);
    let now = call.api.cluster().clock().now();
    match call.api.vault().create(kind, name, labels, &value, now).await {
        Ok(()) => Ok(call.api.vault().inspect(kind, name).await?),
        Err(error @ VaultError::Exists { .. }) => Err(ApiError::from(error)
            .about("name", name)
            .allowing(format!("a name that no other {kind} has"))),
        Err(error) => Err(error.into()),
    }
}

async fn remove(call: &Call, kind: Kind, segment: &str) -> Result<Response, ApiError> {
    let name = find(call, kind, segment).await?.name;
    let users = users(&call.api, kind, &name);
    if !users.is_empty() {
        return Err(ApiError::conflict(format!(
            "{kind} {name} is in use by {}: change or remove {} first",
            users.join(", "),
            if users.len() == 1 {
                "that service"
            } else {
                "these services"
            }
        )));
    }
    call.api.vault().remove(kind, &name).await?;
    no_content()
}

/// Finds one by its name, or by a prefix of the id in answers.
async fn find(call: &Call, kind: Kind, segment: &str) -> Result<Record, ApiError> {
    let reference = call.segment(segment);
    match call.api.vault().inspect(kind, reference).await {
        Err(missing @ VaultError::Missing { .. }) => {
            let mut found = call.api.vault().list(kind).await?;
            found.retain(|record| id(kind, record).starts_with(reference));
            match (found.pop(), found.is_empty()) {
                (Some(record), true) => Ok(record),
                (Some(_), false) => Err(ApiError::bad_request(format!(
                    "{reference} matches several {kind}s: use a longer prefix of the id"
                ))),
                (None, _) => Err(missing.into()),
            }
        }
        other => Ok(other?),
    }
}

/// Docker's users expect an id, but the vault has only names. This one is derived from name and creation
/// time.
fn id(kind: Kind, record: &Record) -> String {
    let seed = u128::from(record.created_at.0);
    TaskId::derive(seed, &[kind.segment(), &record.name]).to_string()
}

/// The names of the services that use a secret or config.
fn users(api: &Api, kind: Kind, name: &str) -> Vec<String> {
    let uses = |service: &Service| {
        references(&service.spec, kind)
            .iter()
            .any(|file| file.source == name)
            || service.previous.as_ref().is_some_and(|previous| {
                service.is_updating()
                    && references(&previous.spec, kind)
                        .iter()
                        .any(|file| file.source == name)
            })
    };
    api.cluster().read(|state| {
        let users = state.services().values().filter(|service| uses(service));
        let mut names: Vec<String> = users.map(|service| service.spec.name.clone()).collect();
        names.sort_unstable();
        names
    })
}

fn references(spec: &ServiceSpec, kind: Kind) -> &[FileReference] {
    let container = &spec.task_template.container_spec;
    match kind {
        Kind::Secret => &container.secrets,
        Kind::Config => &container.configs,
        Kind::RegistryCredential | Kind::Webhook | Kind::Agents => &[],
    }
}

/// Checks that all secrets and configs that a specification refers to exist.
pub(super) async fn check_references(api: &Api, spec: &ServiceSpec) -> Result<(), ApiError> {
    for (kind, field) in [(Kind::Secret, "secrets"), (Kind::Config, "configs")] {
        for (index, file) in references(spec, kind).iter().enumerate() {
            match api.vault().inspect(kind, &file.source).await {
                Ok(_) => {}
                Err(VaultError::Missing { .. }) => {
                    return Err(SpecError::invalid(
                        format!("task_template.container_spec.{field}[{index}].source"),
                        &file.source,
                        format!("the name of an existing {kind}: create it first"),
                    )
                    .into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn secret_view(api: &Api, record: Record) -> SecretView {
    SecretView {
        id: id(Kind::Secret, &record),
        services: users(api, Kind::Secret, &record.name),
        name: record.name,
        labels: record.labels,
        created_at: record.created_at,
        updated_at: record.updated_at,
        size: record.size,
    }
}

fn config_view(api: &Api, record: Record, data: Option<&Plaintext>) -> ConfigView {
    ConfigView {
        id: id(Kind::Config, &record),
        services: users(api, Kind::Config, &record.name),
        name: record.name,
        labels: record.labels,
        created_at: record.created_at,
        updated_at: record.updated_at,
        size: record.size,
        data: data.map(|data| STANDARD.encode(data.expose())),
    }
}
