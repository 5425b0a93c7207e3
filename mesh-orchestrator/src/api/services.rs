//! Services: list, create, inspect, change, scale, remove. Every change is one of the `commands`, made
//! through the cluster.

use std::sync::Arc;

use axum::{http::StatusCode, response::Response};
use serde_json::Value;

use super::{
    Api,
    call::Call,
    caller::Caller,
    error::ApiError,
    files, patch, pinning,
    respond::{no_content, ok, tagged},
    service_access::{changed_answer, changed_with, find, gone, known_version, revision, view},
    types::{ScaleRequest, ServiceView},
    webhooks,
};
use crate::{
    commands,
    objects::{Service, ServiceId},
    spec::{MAX_SPEC_BYTES, ServiceMode, ServiceSpec, SpecError},
};

/// The label by which `docker stack` marks the services of a stack.
const STACK_LABEL: &str = "com.docker.stack.namespace";

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let labels: Vec<(&str, Option<&str>)> = call
        .arguments("label")
        .map(|label| match label.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (label, None),
        })
        .collect();
    let has_labels = |service: &Service| {
        labels.iter().all(|(name, value)| {
            let found = service.spec.labels.get(*name);
            found.is_some_and(|found| value.is_none_or(|value| value == found))
        })
    };
    let has_name = |service: &Service| {
        let mut names = call.arguments("name").peekable();
        names.peek().is_none() || names.any(|name| service.spec.name.starts_with(name))
    };
    let in_stack = |service: &Service| {
        call.argument("stack").is_none_or(|stack| {
            service
                .spec
                .labels
                .get(STACK_LABEL)
                .is_some_and(|found| found == stack)
        })
    };
    let heads = call.api.cluster().read(|state| {
        let chosen = state
            .services()
            .values()
            .filter(|service| has_labels(service) && has_name(service) && in_stack(service));
        chosen.map(|service| service.id.clone()).collect::<Vec<_>>()
    });
    let mut views: Vec<ServiceView> = heads.iter().filter_map(|id| view(&call.api, id)).collect();
    views.sort_by(|one, other| one.spec.name.cmp(&other.spec.name));
    ok(&views)
}

pub(super) async fn inspect(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let view = view(&call.api, &id).ok_or_else(|| gone(&id))?;
    let revision = view.revision;
    tagged(StatusCode::OK, &revision, &view)
}

pub(super) async fn create(call: Call) -> Result<Response, ApiError> {
    let mut spec = ServiceSpec::from_json(call.body())?;
    call.caller.admit(&spec)?;
    files::check_references(&call.api, &spec).await?;
    let warnings = pinning::pin(&call, &mut spec, None).await?;
    let id = call.api.cluster().new_service_id();
    let changed = call
        .api
        .cluster()
        .change(call.author("create"), |state, now| {
            commands::create_service(state, id.clone(), spec.clone(), now)
        })
        .await?;
    changed_with(&call.api, StatusCode::CREATED, id, &changed, warnings)
}

pub(super) async fn replace(call: Call) -> Result<Response, ApiError> {
    let mut spec = ServiceSpec::from_json(call.body())?;
    call.caller.admit(&spec)?;
    files::check_references(&call.api, &spec).await?;
    let service = find(&call)?;
    let version = expected_version(&call, &service)?;
    let warnings = pinning::pin(&call, &mut spec, Some(&service.spec)).await?;
    let id = service.id.clone();
    let changed = call
        .api
        .cluster()
        .change(call.author("update"), |state, now| {
            commands::update_service(
                state,
                &id,
                version.unwrap_or(known_version(state, &id)),
                spec.clone(),
                now,
            )
        })
        .await
        .map_err(|error| with_current(&call.api, &id, error.into()))?;
    changed_with(&call.api, StatusCode::OK, id, &changed, warnings)
}

pub(super) async fn modify(call: Call) -> Result<Response, ApiError> {
    let patch: Value = call.json()?;
    if !patch.is_object() {
        return Err(ApiError::bad_request(
            "the merge patch of a service must be a JSON object with the fields to change",
        ));
    }
    let service = find(&call)?;
    let version = expected_version(&call, &service)?;
    // Validated once here, where an error is the caller's fault, and again on the current specification
    // below.
    let mut spec = patched(&service.spec, &patch)?;
    call.caller.admit(&spec)?;
    // Another change in between must not bring in what this check has not seen.
    let version = match &call.caller {
        Caller::Token { .. } => version.or(Some(service.version)),
        Caller::Administrator | Caller::Anyone => version,
    };
    files::check_references(&call.api, &spec).await?;
    let unpinned = spec.task_template.container_spec.image.clone();
    let warnings = pinning::pin(&call, &mut spec, Some(&service.spec)).await?;
    let id = service.id.clone();
    let changed = call
        .api
        .cluster()
        .change(call.author("update"), |state, now| {
            let service = commands::known_service(state, &id)?;
            let mut again = patched(&service.spec, &patch)?;
            if again.task_template.container_spec.image == unpinned {
                let image = &spec.task_template.container_spec.image;
                let task = Arc::make_mut(&mut again.task_template);
                task.container_spec.image.clone_from(image);
            }
            let spec = again;
            commands::update_service(state, &id, version.unwrap_or(service.version), spec, now)
        })
        .await
        .map_err(|error| with_current(&call.api, &id, error.into()))?;
    changed_with(&call.api, StatusCode::OK, id, &changed, warnings)
}

/// A specification with a merge patch applied.
pub(super) fn patched(spec: &ServiceSpec, patch: &Value) -> Result<ServiceSpec, SpecError> {
    let malformed = |error: serde_json::Error| SpecError::Malformed {
        path: "specification".to_owned(),
        message: error.to_string(),
    };
    let mut document = serde_json::to_value(spec).map_err(malformed)?;
    patch::merge(&mut document, patch);
    let text = serde_json::to_vec(&document).map_err(malformed)?;
    if text.len() > MAX_SPEC_BYTES {
        return Err(SpecError::TooLarge { size: text.len() });
    }
    ServiceSpec::from_json(&text)
}

pub(super) async fn remove(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    call.api
        .cluster()
        .change(call.author("remove"), |state, _| {
            commands::remove_service(state, &id)
        })
        .await?;
    webhooks::forget(&call.api, &id).await;
    no_content()
}

pub(super) async fn scale(call: Call) -> Result<Response, ApiError> {
    let ScaleRequest { replicas } = call.json()?;
    let id = find(&call)?.id.clone();
    scale_to(&call, id, replicas, &format!("scale to {replicas}")).await
}

pub(super) async fn pause(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    scale_to(&call, id, 0, "pause").await
}

/// Restores the last number of replicas that was not 0, if the history has one, else 1.
pub(super) async fn resume(call: Call) -> Result<Response, ApiError> {
    let service = find(&call)?;
    let mut replicas = replicas(&service.spec);
    if replicas == Some(0) {
        let earlier = call.api.cluster().history(&service.id).await?;
        let earlier = earlier.iter().filter_map(|old| self::replicas(&old.value.spec));
        replicas = Some(earlier.into_iter().find(|number| *number > 0).unwrap_or(1));
    }
    // The command refuses services without replicas.
    scale_to(&call, service.id.clone(), replicas.unwrap_or(1), "resume").await
}

fn replicas(spec: &ServiceSpec) -> Option<u32> {
    match spec.mode {
        ServiceMode::Replicated(settings) => Some(settings.replicas),
        ServiceMode::Global(_) | ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_) => None,
    }
}

async fn scale_to(call: &Call, id: ServiceId, replicas: u32, action: &str) -> Result<Response, ApiError> {
    let changed = call
        .api
        .cluster()
        .change(call.author(action), |state, now| {
            let service = state.service(&id);
            if service.is_some_and(|service| self::replicas(&service.spec) == Some(replicas)) {
                return Ok(Vec::new());
            }
            commands::scale_service(state, &id, replicas, now)
        })
        .await?;
    changed_answer(&call.api, StatusCode::OK, id, &changed)
}

pub(super) async fn rebalance(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let changed = call
        .api
        .cluster()
        .change(call.author("rebalance"), |state, now| {
            commands::rebalance_service(state, &id, now)
        })
        .await?;
    changed_answer(&call.api, StatusCode::OK, id, &changed)
}

/// The version that the request expects, if it names one.
fn expected_version(call: &Call, service: &Service) -> Result<Option<u64>, ApiError> {
    let Some(given) = call.if_match()? else {
        return Ok(None);
    };
    // The service was read before its revision. If that is still the given one, the version is current.
    let current = revision(&call.api, &service.id)?;
    if given == current {
        return Ok(Some(service.version));
    }
    Err(ApiError::new(
        StatusCode::PRECONDITION_FAILED,
        format!(
            "service {} has changed since it was read: revision {given} was read, {current} is current; read it again \
             and repeat the change",
            service.spec.name
        ),
    )
    .about("If-Match", given.to_string())
    .allowing(current.to_string())
    .with_current(current))
}

fn with_current(api: &Api, id: &ServiceId, error: ApiError) -> ApiError {
    match revision(api, id) {
        Ok(current) if error.status() == StatusCode::PRECONDITION_FAILED => error.with_current(current),
        Ok(_) | Err(_) => error,
    }
}
