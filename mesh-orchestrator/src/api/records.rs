//! Small JSON records in the store that the control loops do not use: tokens, webhooks and their calls.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::{Serialize, de::DeserializeOwned};

use super::error::ApiError;
use crate::store::{Entry, Key, PAGE, Prefix, Revision, Store};

/// One record with the revision of its last change.
pub(super) async fn get<T: DeserializeOwned>(
    store: &Arc<dyn Store>,
    key: &Key,
) -> Result<Option<(T, Revision)>, ApiError> {
    match store.get(key).await? {
        Some(entry) => Ok(Some((decode(&entry)?, entry.modified))),
        None => Ok(None),
    }
}

/// All records with a prefix, ordered by key.
pub(super) async fn list<T: DeserializeOwned>(
    store: &Arc<dyn Store>,
    prefix: &Prefix,
) -> Result<Vec<(Key, T, Revision)>, ApiError> {
    let entries = store.list(prefix, PAGE).await?.entries().await?;
    entries
        .into_iter()
        .map(|entry| Ok((entry.key.clone(), decode(&entry)?, entry.modified)))
        .collect()
}

/// The stored form of a record.
pub(super) fn encode(key: &Key, record: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(record).map_err(|error| damaged(key, &error))
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, ApiError> {
    serde_json::from_slice(&entry.value).map_err(|error| damaged(&entry.key, &error))
}

/// Reports where a record is malformed, never its content.
fn damaged(key: &Key, error: &serde_json::Error) -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!(
            "{key} is malformed (line {}, column {}): if the store was not edited by hand, restore the newest backup",
            error.line(),
            error.column()
        ),
    )
}
