//! Shared by the handlers of services, their history, logs and webhooks: finding a service, and the answer
//! after a change.

use std::sync::Arc;

use axum::{http::StatusCode, response::Response};

use super::{
    Api,
    call::Call,
    error::ApiError,
    reference,
    respond::tagged,
    types::{ServiceChanged, ServiceView},
    views,
};
use crate::{
    cluster::Changed,
    commands,
    objects::{ObjectChange, Service, ServiceId, State, Timestamp},
    spec::ServiceSpec,
    store::revisions::RevisionId,
};

/// The service that the path refers to.
pub(super) fn find(call: &Call) -> Result<Arc<Service>, ApiError> {
    let name = call.segment("service");
    call.api
        .cluster()
        .read(|state| reference::service(state, name).cloned())
}

pub(super) fn known_version(state: &State, id: &ServiceId) -> u64 {
    state.service(id).map_or(0, |service| service.version)
}

pub(super) fn revision(api: &Api, id: &ServiceId) -> Result<RevisionId, ApiError> {
    let (revision, _) = api.cluster().service_revision(id).ok_or_else(|| gone(id))?;
    Ok(revision)
}

pub(super) fn gone(id: &ServiceId) -> ApiError {
    ApiError::not_found(format!("service {id} no longer exists"))
}

pub(super) fn view(api: &Api, id: &ServiceId) -> Option<ServiceView> {
    let (revision, author) = api.cluster().service_revision(id)?;
    let registrations = api.cluster().registrations();
    api.cluster().read(|state| {
        let service = state.service(id)?;
        let silent = views::silent(state, &registrations);
        Some(views::service(state, service, revision, author, &silent))
    })
}

pub(super) fn changed_answer(
    api: &Api,
    status: StatusCode,
    id: ServiceId,
    changed: &Changed,
) -> Result<Response, ApiError> {
    changed_with(api, status, id, changed, Vec::new())
}

/// As [`changed_answer`], with warnings of the handler's own.
pub(super) fn changed_with(
    api: &Api,
    status: StatusCode,
    id: ServiceId,
    changed: &Changed,
    mut all: Vec<String>,
) -> Result<Response, ApiError> {
    let revision = match changed.services.get(&id) {
        Some(revision) => *revision,
        None => revision(api, &id)?,
    };
    let warnings = api.cluster().read(|state| {
        let service = state.service(&id)?;
        views::warnings(state, &service.spec)
    });
    all.extend(warnings.unwrap_or_default());
    let answer = ServiceChanged {
        id,
        revision,
        warnings: (!all.is_empty()).then_some(all),
    };
    tagged(status, &revision, &answer)
}

/// Updates a service regardless of its version.
pub(super) fn update_anyway(
    state: &State,
    id: &ServiceId,
    spec: ServiceSpec,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, commands::CommandError> {
    commands::update_service(state, id, known_version(state, id), spec, now)
}
