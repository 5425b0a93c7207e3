//! The call of a webhook: resolves the image's tag again and updates the service by its update policy.

use std::{sync::Arc, time::Duration};

use axum::{http::StatusCode, response::Response};
use mesh_support::error_chain;

use super::{
    calls,
    stored::{Stored, bucket_key},
};
use crate::{
    api::{
        Api,
        call::Call,
        credentials::{fingerprint, is_secret},
        error::ApiError,
        images::{resolve, tagged},
        limits::{Bucket, RateLimit},
        records,
        respond::ok,
        service_access::update_anyway,
        types::{WebhookAnswer, WebhookCall},
    },
    commands::{CommandError, known_service},
    objects::{ObjectChange, ServiceId, State, Timestamp},
    spec::{ServiceMode, ServiceSpec},
    store::{Expected, Key, Revision, StoreError, Transaction},
};

/// Six calls of a webhook are accepted in a burst, then one every ten seconds.
const LIMIT: RateLimit = RateLimit {
    burst: 6,
    interval: Duration::from_secs(10),
};

pub(in crate::api) async fn call(call: Call) -> Result<Response, ApiError> {
    let api = &call.api;
    // The same answer for unknown and disabled webhooks, so that it does not reveal which exist.
    let unknown = || ApiError::not_found("no such webhook, or it is disabled");
    if !is_secret(call.segment("secret")) {
        return Err(unknown());
    }
    let fingerprint = fingerprint(call.segment("secret"));
    let key = Key::new(["webhook-urls", &fingerprint])?;
    let found = {
        let _permit = api.look_ups().permit().await?;
        records::get::<Stored>(api.store(), &key).await?
    };
    let Some((stored, revision)) = found else {
        return Err(unknown());
    };
    if !stored.enabled {
        return Err(unknown());
    }
    let service = api
        .cluster()
        .read(|state| state.service(&stored.service).cloned());
    let service = service.ok_or_else(unknown)?;
    take(api, &fingerprint).await?;
    // Whatever it says: a client that is cut off while it sends does not read the answer.
    call.skip_body().await?;
    let image = service.spec.task_template.container_spec.image.clone();
    let (fresh, mut warnings) = look_up(api, &image).await;
    if matches!(service.spec.mode, ServiceMode::Replicated(settings) if settings.replicas == 0) {
        warnings.push(
            "the service is paused (0 replicas): the update takes effect when it is resumed".to_owned(),
        );
    }
    let author = api
        .cluster()
        .author(format!("webhook {}", stored.name), "webhook");
    let at = author.at;
    let outcome = api
        .cluster()
        .change(author, |state, now| {
            roll(state, &stored.service, &image, &fresh, now)
        })
        .await;
    let (revision_made, error) = match &outcome {
        Ok(changed) => (changed.services.get(&stored.service).copied(), None),
        Err(error) => (None, Some(error_chain(error))),
    };
    let record = WebhookCall {
        webhook: stored.name.clone(),
        at,
        image: fresh,
        revision: revision_made,
        warnings: warnings.clone(),
        error,
    };
    calls::remember(api, &stored.service, &record).await;
    record_time(api, key, stored, revision, at).await;
    outcome?;
    ok(&WebhookAnswer {
        warnings: (!warnings.is_empty()).then_some(warnings),
    })
}

/// Takes one call from the webhook's bucket, which all nodes share.
async fn take(api: &Api, fingerprint: &str) -> Result<(), ApiError> {
    let key = bucket_key(fingerprint)?;
    loop {
        let found = records::get::<Bucket>(api.store(), &key).await?;
        let (bucket, expected) = match found {
            Some((bucket, revision)) => (bucket, Expected::At(revision)),
            None => (Bucket::default(), Expected::Absent),
        };
        let left = LIMIT.take(bucket, api.cluster().clock().now()).map_err(|wait| {
            let seconds = wait.as_secs() + 1;
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("the webhook was called too often: try again in {seconds} s"),
            )
            .retry_after(seconds)
        })?;
        let transaction = Transaction::new()
            .expect(key.clone(), expected)
            .put(key.clone(), records::encode(&key, &left)?);
        match api.store().commit(transaction).await {
            // Called by another node at the same time.
            Err(StoreError::Conflict { .. }) => {}
            committed => return committed.map(drop).map_err(ApiError::from),
        }
    }
}

/// The image with the digest that its tag refers to now. Without a digest if the tag cannot be resolved: then
/// each node asks the registry itself.
async fn look_up(api: &Api, image: &str) -> (String, Vec<String>) {
    let Some(tagged) = tagged(image) else {
        let warning = format!(
            "{image} has no tag that could be resolved again: its tasks are replaced by ones with the same image"
        );
        return (image.to_owned(), vec![warning]);
    };
    let why = match resolve(api.images(), tagged).await {
        Ok(pinned) => return (pinned, Vec::new()),
        Err(why) => why,
    };
    let warning =
        format!("{tagged}: {why}; each node resolves the tag itself, so nodes may run different images");
    (tagged.to_owned(), vec![warning])
}

/// Replaces the tasks even if the image is the same.
fn roll(
    state: &State,
    id: &ServiceId,
    seen: &str,
    fresh: &str,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    let mut spec: ServiceSpec = (*service.spec).clone();
    let task = Arc::make_mut(&mut spec.task_template);
    // If the image has been changed meanwhile, the new one is used.
    if task.container_spec.image == seen {
        fresh.clone_into(&mut task.container_spec.image);
    }
    task.force_update = task.force_update.wrapping_add(1);
    update_anyway(state, id, spec, now)
}

/// Records the time of the last call, which shows whether a webhook is still used. A failure is only logged.
async fn record_time(api: &Api, key: Key, stored: Stored, revision: Revision, at: Timestamp) {
    let noted = Stored {
        called_at: Some(at),
        ..stored
    };
    let Ok(value) = records::encode(&key, &noted) else {
        return;
    };
    let transaction = Transaction::new()
        .expect(key.clone(), Expected::At(revision))
        .put(key, value);
    if let Err(error) = api.store().commit(transaction).await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "could not record when a webhook was called"
        );
    }
}
