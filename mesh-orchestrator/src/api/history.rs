//! A service's history: its revisions and their authors, differences between them, and rollbacks.

use std::sync::Arc;

use axum::{http::StatusCode, response::Response};

use super::{
    call::Call,
    error::ApiError,
    files,
    respond::{ok, tagged},
    service_access::{changed_answer, find},
    types::{HistoryEntry, RevisionView, RollbackRequest},
    webhooks,
};
use crate::objects::Timestamp;

pub(super) async fn history(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let revisions = call.api.cluster().history(&id).await?;
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
        .chain(
            calls
                .into_iter()
                .map(|call| (call.at, HistoryEntry::Webhook(call))),
        )
        .collect();
    // The sort is stable: revisions with the same time keep their order.
    entries.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let entries: Vec<HistoryEntry> = entries.into_iter().map(|(_, entry)| entry).collect();
    ok(&entries)
}

pub(super) async fn revision(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let number = number("revision", call.segment("revision"))?;
    let revised = call.api.cluster().revision_of(&id, number).await?;
    let view = RevisionView {
        revision: revised.revision,
        author: revised.author,
        spec: Arc::clone(&revised.value.spec),
    };
    tagged(StatusCode::OK, &revised.revision, &view)
}

/// The differences between the specifications of two revisions; without arguments, those of the last change.
pub(super) async fn difference(call: Call) -> Result<Response, ApiError> {
    let id = find(&call)?.id.clone();
    let history = call.api.cluster().history(&id).await?;
    let mut numbers = history.iter().map(|revised| revised.revision.number);
    let to = match call.argument("to") {
        Some(text) => number("to", text)?,
        None => numbers.clone().next().unwrap_or_default(),
    };
    let from = match call.argument("from") {
        Some(text) => number("from", text)?,
        None => numbers
            .find(|number| *number < to)
            .ok_or_else(|| ApiError::conflict(format!("no revision before {to} is kept to compare with")))?,
    };
    ok(&call.api.cluster().diff(&id, from, to).await?)
}

pub(super) async fn roll_back(call: Call) -> Result<Response, ApiError> {
    let RollbackRequest { revision } = call.json()?;
    let id = find(&call)?.id.clone();
    let action = match revision {
        Some(number) => format!("rollback to {number}"),
        None => "rollback".to_owned(),
    };
    // What it refers to may have been removed since.
    let older = match revision {
        Some(number) => Some(
            call.api
                .cluster()
                .revision_of(&id, number)
                .await?
                .value
                .spec
                .clone(),
        ),
        None => find(&call)?
            .previous
            .as_ref()
            .map(|previous| previous.spec.clone()),
    };
    if let Some(spec) = older {
        call.caller.admit(&spec)?;
        files::check_references(&call.api, &spec).await?;
    }
    let author = call.author(action);
    let changed = call.api.cluster().roll_back(author, &id, revision).await?;
    changed_answer(&call.api, StatusCode::OK, id, &changed)
}

fn number(field: &str, text: &str) -> Result<u64, ApiError> {
    // Answers show it as `3-9f2c04ab`.
    let number = text.split_once('-').map_or(text, |(number, _)| number);
    number
        .parse()
        .map_err(|_| ApiError::invalid(field, text, "the number of a revision"))
}
