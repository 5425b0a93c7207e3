//! Keeps the last calls of a service's webhooks for its history.

use crate::{
    api::{Api, error::ApiError, records, types::WebhookCall},
    objects::ServiceId,
    store::{InvalidKey, Key, PAGE, Prefix, Transaction},
};

/// Number of calls that are kept for each service.
const KEPT: usize = 50;

/// The kept calls, the oldest first.
pub(in crate::api) async fn calls(api: &Api, service: &ServiceId) -> Result<Vec<WebhookCall>, ApiError> {
    let calls = records::list::<WebhookCall>(api.store(), &prefix(service)?).await?;
    Ok(calls.into_iter().map(|(_, call, _)| call).collect())
}

/// Keeps one more call. As the call has already had its effect, a failure is only logged.
pub(super) async fn remember(api: &Api, service: &ServiceId, call: &WebhookCall) {
    let remembered = async {
        let when = format!("{:020}-{:08x}", call.at.0, api.cluster().clock().seed() as u32);
        let key = Key::new(["webhook-calls", service.as_str(), &when])?;
        let mut transaction = Transaction::new().put(key.clone(), records::encode(&key, call)?);
        let kept = keys(api, service).await?;
        let surplus = (kept.len() + 1).saturating_sub(KEPT);
        // Keys are ordered by time, so the oldest come first. Removing a bounded number per call is enough.
        for old in kept.into_iter().take(surplus.min(KEPT)) {
            transaction = transaction.delete(old);
        }
        api.store().commit(transaction).await?;
        Ok::<_, ApiError>(())
    };
    if let Err(error) = remembered.await {
        tracing::warn!(%service, webhook = call.webhook, ?error, "could not record the call of a webhook");
    }
}

/// Removes all calls of a service.
pub(super) async fn forget(api: &Api, service: &ServiceId) -> Result<(), ApiError> {
    let mut transaction = Transaction::new();
    for key in keys(api, service)
        .await?
        .into_iter()
        .take(crate::store::MAX_OPERATIONS)
    {
        transaction = transaction.delete(key);
    }
    api.store().commit(transaction).await?;
    Ok(())
}

async fn keys(api: &Api, service: &ServiceId) -> Result<Vec<Key>, ApiError> {
    let listing = api.store().list(&prefix(service)?, PAGE).await?;
    let entries = listing.entries().await?;
    Ok(entries.into_iter().map(|entry| entry.key).collect())
}

fn prefix(service: &ServiceId) -> Result<Prefix, InvalidKey> {
    Prefix::new(["webhook-calls", service.as_str()])
}
