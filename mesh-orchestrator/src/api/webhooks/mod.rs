//! Webhooks: secret URLs whose call updates a service to the image that its tag refers to now.
//!
//! The secret is in the vault, so that the URL can be shown again. A call is looked up by the hash of the
//! secret, at `/webhook-urls/<hash>`; `/webhook-limits/<hash>` says how often it was called. The last
//! calls are at `/webhook-calls/<service>/<time>`.

mod calls;
mod roll;
mod stored;

use axum::{http::StatusCode, response::Response};

use self::stored::{Found, Stored, bucket_key, look_up, sealed_name, url_key};
pub(super) use self::{calls::calls, roll::call};
use super::{
    Api,
    call::Call,
    credentials::new_secret,
    error::ApiError,
    records,
    respond::{json, no_content, ok},
    service_access::find,
    types::{WebhookCreate, WebhookPatch, WebhookView},
};
use crate::{
    objects::{ServiceId, Timestamp},
    secrets::{Kind, Plaintext, VaultError},
    spec::name::check_name,
    store::{Expected, Transaction},
};

/// What is missing where webhooks have no complete URL.
const NO_URL: &str = "this node's agent serves no API that others can call, so that only the webhook's path is known: start it \
                      with --api-listen, --api-certificate and --api-key, or set --api-url to the API of another node";

/// Maximum number of webhooks of one service.
const MAX_WEBHOOKS: usize = 50;

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let service = find(&call)?.id.clone();
    let mut views = Vec::new();
    for name in names(&call.api, &service).await? {
        if let Some(found) = look_up(&call.api, &service, &name).await? {
            views.push(view(&call.api, &found)?);
        }
    }
    ok(&views)
}

pub(super) async fn create(call: Call) -> Result<Response, ApiError> {
    let WebhookCreate { name } = call.json()?;
    check_name("name", &name)?;
    let service = find(&call)?.id.clone();
    let api = &call.api;
    if names(api, &service).await?.len() >= MAX_WEBHOOKS {
        return Err(ApiError::conflict(format!(
            "the service already has {MAX_WEBHOOKS} webhooks: remove those that are not used"
        )));
    }
    if look_up(api, &service, &name).await?.is_some() {
        return Err(exists(&name));
    }
    let secret = Plaintext::new(new_secret()?.as_bytes().to_vec());
    let now = api.cluster().clock().now();
    let sealed_name = sealed_name(&service, &name);
    let mut kept = keep(api, &sealed_name, &secret, now).await;
    if let Err(VaultError::Exists { .. }) = kept {
        // Left by a creation that was interrupted between its two steps: no URL uses it.
        api.vault().remove(Kind::Webhook, &sealed_name).await?;
        kept = keep(api, &sealed_name, &secret, now).await;
    }
    match kept {
        Err(VaultError::Exists { .. }) => return Err(exists(&name)),
        kept => kept?,
    }
    let stored = Stored {
        service,
        name,
        enabled: true,
        created_at: now,
        called_at: None,
    };
    let key = url_key(&secret)?;
    let transaction = Transaction::new()
        .expect(key.clone(), Expected::Absent)
        .put(key.clone(), records::encode(&key, &stored)?);
    let revision = api.store().commit(transaction).await?;
    let found = Found {
        stored,
        revision,
        key,
        secret,
    };
    json(StatusCode::CREATED, &view(api, &found)?)
}

async fn keep(api: &Api, name: &str, secret: &Plaintext, now: Timestamp) -> Result<(), VaultError> {
    let labels = std::collections::BTreeMap::new();
    api.vault().create(Kind::Webhook, name, labels, secret, now).await
}

fn exists(name: &str) -> ApiError {
    ApiError::conflict(format!(
        "a webhook named {name} already exists for this service: choose another name"
    ))
    .about("name", name)
}

pub(super) async fn modify(call: Call) -> Result<Response, ApiError> {
    let WebhookPatch { enabled } = call.json()?;
    let service = find(&call)?.id.clone();
    let mut found = existing(&call, &service).await?;
    found.stored.enabled = enabled;
    let transaction = Transaction::new()
        .expect(found.key.clone(), Expected::At(found.revision))
        .put(found.key.clone(), records::encode(&found.key, &found.stored)?);
    call.api.store().commit(transaction).await?;
    ok(&view(&call.api, &found)?)
}

pub(super) async fn remove(call: Call) -> Result<Response, ApiError> {
    let service = find(&call)?.id.clone();
    let found = existing(&call, &service).await?;
    forget_one(&call.api, &service, &found.stored.name).await?;
    no_content()
}

/// Removes all webhooks of a removed service. Those that remain after a failure have no effect, so it is only
/// logged.
pub(super) async fn forget(api: &Api, service: &ServiceId) {
    let forgotten = async {
        for name in names(api, service).await? {
            forget_one(api, service, &name).await?;
        }
        calls::forget(api, service).await
    };
    if let Err(error) = forgotten.await {
        tracing::warn!(%service, ?error, "could not remove the webhooks of a removed service");
    }
}

/// Removes the URL first, without which the webhook cannot be called.
async fn forget_one(api: &Api, service: &ServiceId, name: &str) -> Result<(), ApiError> {
    if let Some(found) = look_up(api, service, name).await? {
        let transaction = Transaction::new()
            .delete(bucket_key(found.key.name())?)
            .delete(found.key);
        api.store().commit(transaction).await?;
    }
    match api
        .vault()
        .remove(Kind::Webhook, &sealed_name(service, name))
        .await
    {
        Ok(()) | Err(VaultError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn existing(call: &Call, service: &ServiceId) -> Result<Found, ApiError> {
    let name = call.segment("webhook");
    look_up(&call.api, service, name)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("no such webhook: {name}")))
}

/// The names of a service's webhooks.
async fn names(api: &Api, service: &ServiceId) -> Result<Vec<String>, ApiError> {
    let records = api.vault().list(Kind::Webhook).await?;
    let beginning = sealed_name(service, "");
    Ok(records
        .iter()
        .filter_map(|record| record.name.strip_prefix(&beginning))
        .map(str::to_owned)
        .collect())
}

fn view(api: &Api, found: &Found) -> Result<WebhookView, ApiError> {
    let secret = std::str::from_utf8(found.secret.expose()).map_err(|_| {
        ApiError::conflict("the secret of the webhook is damaged: remove the webhook and create another one")
    })?;
    let base = api.public_url().map(|url| url.trim_end_matches('/'));
    Ok(WebhookView {
        name: found.stored.name.clone(),
        enabled: found.stored.enabled,
        url: format!("{}/v1/webhooks/{secret}", base.unwrap_or_default()),
        note: base.is_none().then(|| NO_URL.to_owned()),
        created_at: found.stored.created_at,
        called_at: found.stored.called_at,
    })
}
