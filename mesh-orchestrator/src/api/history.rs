//! A service's past: who changed it when, what it was, what differs, and the way back.

use std::sync::Arc;

use axum::{http::StatusCode, response::Response};
use serde_json::Value;

use super::{
    Api,
    call::{Call, ok, tagged},
    error::ApiError,
    services::{changed_answer, find, update_anyway},
    types::{HistoryEntry, RevisionView, RollbackRequest},
    webhooks,
};
use crate::{
    commands,
    objects::{Service, ServiceId, Timestamp},
    store::{
        diff,
        revisions::{Revised, Revisions},
    },
};

impl Api {
    /// The revisions of a service that are kept, the current one first.
    pub(super) async fn history(&self, id: &ServiceId) -> Result<Vec<Revised<Arc<Service>>>, ApiError> {
        Ok(self.revisions().history(id.as_str()).await?)
    }

    async fn revision(&self, id: &ServiceId, number: u64) -> Result<Revised<Arc<Service>>, ApiError> {
        Ok(self.revisions().at(id.as_str(), number).await?)
    }

    fn revisions(&self) -> Revisions<Arc<Service>> {
        Revisions::new(Arc::clone(self.store()), "services")
    }
}

pub(super) async fn history(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let revisions = call.api.history(&id).await?;
    let calls = webhooks::calls(&call.api, &id).await?;
    let mut entries: Vec<(Timestamp, HistoryEntry)> = revisions
        .into_iter()
        .map(|revised| {
            let at = revised.author.at;
            let entry = HistoryEntry::Revision {
                revision: revised.revision,
                author: revised.author,
            };
            (at, entry)
        })
        .chain(calls.into_iter().map(|call| (call.at, HistoryEntry::Webhook(call))))
        .collect();
    // Stable: revisions of one moment stay in their order.
    entries.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let entries: Vec<HistoryEntry> = entries.into_iter().map(|(_, entry)| entry).collect();
    ok(&entries)
}

pub(super) async fn revision(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let number = number("revision", call.segment("revision"))?;
    let revised = call.api.revision(&id, number).await?;
    let view = RevisionView {
        revision: revised.revision,
        author: revised.author,
        spec: Arc::clone(&revised.value.spec),
    };
    tagged(StatusCode::OK, &revised.revision, &view)
}

/// What differs between two revisions' specifications; without arguments, what the last change has changed.
pub(super) async fn difference(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let history = call.api.history(&id).await?;
    let numbers: Vec<u64> = history.iter().map(|revised| revised.revision.number).collect();
    let newest = numbers.first().copied().unwrap_or_default();
    let to = match call.argument("to") {
        Some(text) => number("to", text)?,
        None => newest,
    };
    let from = match call.argument("from") {
        Some(text) => number("from", text)?,
        None => numbers
            .iter()
            .copied()
            .find(|number| *number < to)
            .ok_or_else(|| ApiError::conflict(format!("there is no revision before {to} to compare with")))?,
    };
    let document = |wanted: u64, name: &str| -> Result<Value, ApiError> {
        let revised = history
            .iter()
            .find(|revised| revised.revision.number == wanted)
            .ok_or_else(|| {
                let kept: Vec<String> = numbers.iter().map(u64::to_string).collect();
                ApiError::not_found(format!(
                    "the service has no revision {wanted}; kept are {}",
                    kept.join(", ")
                ))
                .about(name, wanted)
                .allowing(kept.join(", "))
            })?;
        serde_json::to_value(&revised.value.spec)
            .map_err(|error| ApiError::caused(StatusCode::INTERNAL_SERVER_ERROR, &error))
    };
    ok(&diff(&document(from, "from")?, &document(to, "to")?))
}

pub(super) async fn roll_back(call: Call) -> Result<Response, ApiError> {
    let RollbackRequest { revision } = call.json()?;
    let id = find(&call)?.id.clone();
    let changed = match revision {
        None => {
            let author = call.author("rollback");
            let plan = |state: &_, now| commands::rollback_service(state, &id, now);
            call.api.cluster().change(author, plan).await?
        }
        Some(number) => {
            let old = call.api.revision(&id, number).await?;
            let spec = (*old.value.spec).clone();
            let author = call.author(format!("rollback to {number}"));
            let plan = |state: &_, now| update_anyway(state, &id, spec.clone(), now);
            call.api.cluster().change(author, plan).await?
        }
    };
    changed_answer(&call.api, StatusCode::OK, id, &changed)
}

fn number(field: &str, text: &str) -> Result<u64, ApiError> {
    // `3-9f2c04ab` is what answers call it.
    let number = text.split_once('-').map_or(text, |(number, _)| number);
    number
        .parse()
        .map_err(|_| ApiError::invalid(field, text, "the number of a revision"))
}
