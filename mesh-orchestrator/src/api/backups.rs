//! Backups in this node's directory: list, create, inspect, restore.

use std::path::PathBuf;

use axum::{http::StatusCode, response::Response};
use serde::Deserialize;

use super::{
    Api,
    call::Call,
    error::ApiError,
    respond::{json, ok},
    types::{BackupContent, BackupDetail, BackupView, RestoreRequest},
};
use crate::{
    backups::{self, BackupError, BackupInfo, BackupKind, BackupName, RestoreInto},
    store::Key,
};

/// Maximum number of services that are listed for a backup.
const MAX_SERVICES: usize = 10_000;

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let folder = call.api.backup_folder().to_owned();
    let views = blocking(move || {
        let mut views = Vec::new();
        for name in backups::list(&folder)? {
            // Skip a backup that the schedule has just removed.
            if let Ok(file) = std::fs::metadata(folder.join(name.to_string())) {
                views.push(view(name, file.len()));
            }
        }
        Ok(views)
    })
    .await?;
    ok(&views)
}

pub(super) async fn create(call: Call) -> Result<Response, ApiError> {
    let cluster = call.api.cluster();
    let info = cluster
        .backup(call.api.backup_folder(), BackupKind::Manual)
        .await?;
    let name = BackupName {
        kind: BackupKind::Manual,
        at: info.header.created_at,
    };
    json(StatusCode::CREATED, &view(name, info.bytes))
}

pub(super) async fn inspect(call: Call) -> Result<Response, ApiError> {
    let name = name(&call)?;
    let path = path(&call.api, name);
    let (info, content) = blocking(move || read(path)).await?;
    ok(&detail(name, info, content))
}

pub(super) async fn restore(call: Call) -> Result<Response, ApiError> {
    let RestoreRequest { replace } = call.json()?;
    let name = name(&call)?;
    let path = path(&call.api, name);
    let services = call.api.cluster().read(|state| state.services().len());
    if services > 0 && !replace {
        return Err(ApiError::conflict(format!(
            "restoring would replace the {services} services in the store by those of the backup: confirm with \
             {{\"replace\": true}} (meshctl backup restore --replace)"
        )));
    }
    // Read the whole backup first, so that only an intact one replaces the content of the store.
    let reading = path.clone();
    let (info, content) = blocking(move || read(reading)).await?;
    // Even without services the store contains the nodes and the name of the key.
    call.api.cluster().restore(&path, RestoreInto::Replace).await?;
    tracing::info!(backup = %name, by = call.caller.name(), "restored a backup");
    ok(&detail(name, info, content))
}

/// Parses the name, so that it cannot refer to a file outside the directory.
fn name(call: &Call) -> Result<BackupName, ApiError> {
    let text = call.segment("backup");
    text.parse()
        .map_err(|error: backups::InvalidName| ApiError::not_found(error.to_string()).about("backup", text))
}

fn path(api: &Api, name: BackupName) -> PathBuf {
    api.backup_folder().join(name.to_string())
}

fn read(path: PathBuf) -> Result<(BackupInfo, BackupContent), BackupError> {
    /// The part of a stored service that is needed here.
    #[derive(Deserialize)]
    struct Stored {
        value: Service,
    }
    #[derive(Deserialize)]
    struct Service {
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        name: String,
    }
    let mut content = BackupContent::default();
    let info = backups::read(&path, |key: Key, value| {
        let kind = key.segments().next().unwrap_or_default().to_owned();
        if kind == "services"
            && content.services.len() < MAX_SERVICES
            && let Ok(stored) = serde_json::from_slice::<Stored>(&value)
        {
            content.services.push(stored.value.spec.name);
        }
        *content.entries.entry(kind).or_default() += 1;
    })?;
    content.services.sort_unstable();
    Ok((info, content))
}

fn view(name: BackupName, bytes: u64) -> BackupView {
    let kind = match name.kind {
        BackupKind::Hourly => "hourly",
        BackupKind::Manual => "manual",
    };
    BackupView {
        name: name.to_string(),
        kind: kind.to_owned(),
        created_at: name.at,
        bytes,
    }
}

fn detail(name: BackupName, info: BackupInfo, content: BackupContent) -> BackupDetail {
    BackupDetail {
        backup: view(name, info.bytes),
        store: info.header.store,
        revision: info.header.revision,
        release: info.header.release,
        format: info.header.format,
        schema: info.header.schema,
        entries: info.entries,
        sha256: info.sha256,
        content,
    }
}

/// Reads files off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("reading a backup failed before it finished: {error}"),
        )),
    }
}
