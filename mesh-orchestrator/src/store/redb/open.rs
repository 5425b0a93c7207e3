//! Opening the embedded store's file: creating a new one atomically, and distinguishing damaged, newer and
//! unreachable files. Depends on `tables`.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Builder, Database, Error, ReadableDatabase, StorageError, backends::FileBackend};

use super::tables::{self, Failure};
use crate::store::{SCHEMA, StoreError};

/// redb's cache, in bytes: enough for all of a small cluster's state.
const CACHE_BYTES: usize = 64 << 20;

/// Opens the file, or creates it if there is none.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => Err(corrupt(path, "it is empty")),
        Ok(_) => open_existing(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        Err(error) => Err(unavailable(path, "open the store", error)),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    // Finds damage to the file now, rather than in the middle of a later read.
    builder.set_check_integrity_on_open(true);
    builder
}

fn open_existing(path: &Path) -> Result<Database, StoreError> {
    // A damaged file may make redb panic: that must be an error, not the end of the agent.
    let opened = catch_unwind(AssertUnwindSafe(|| -> Result<_, Failure> {
        let database = builder()
            .open(path)
            .map_err(|error| Failure::Redb(error.into()))?;
        let transaction = database
            .begin_read()
            .map_err(|error| Failure::Redb(error.into()))?;
        let schema = tables::schema(&transaction)?;
        Ok((database, schema))
    }));
    let (database, schema) = opened
        .map_err(|_| corrupt(path, "redb panicked while reading it"))?
        .map_err(|failure| error(path, "open the store", failure))?;
    if schema > SCHEMA {
        return Err(StoreError::TooNew {
            store: path.display().to_string(),
            found: schema,
            known: SCHEMA,
        });
    }
    Ok(database)
}

/// Creates the file under a temporary name and renames it when it is complete: an existing file is either a
/// store or damaged, never incomplete.
fn create(path: &Path) -> Result<Database, StoreError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |error: io::Error| unavailable(path, "create the store", error);
    let temporary = tempfile::Builder::new()
        .prefix(".store-")
        .tempfile_in(folder)
        .map_err(failed)?;
    let file = temporary.reopen().map_err(failed)?;
    let database = fill(file).map_err(|failure| error(path, "create the store", failure))?;
    temporary
        .persist_noclobber(path)
        .map_err(|refused| failed(refused.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(database)
}

fn fill(file: File) -> Result<Database, Failure> {
    let backend = FileBackend::new(file).map_err(|error| Failure::Redb(error.into()))?;
    let database = builder()
        .create_with_backend(backend)
        .map_err(|error| Failure::Redb(error.into()))?;
    let transaction = database
        .begin_write()
        .map_err(|error| Failure::Redb(error.into()))?;
    tables::create(&transaction)?;
    transaction
        .commit()
        .map_err(|error| Failure::Redb(error.into()))?;
    Ok(database)
}

/// Translates a failure of an operation for its caller.
pub(super) fn error(path: &Path, operation: &'static str, failure: Failure) -> StoreError {
    match failure {
        Failure::Corrupt(detail) => corrupt(path, &detail),
        Failure::Redb(Error::Corrupted(detail)) => corrupt(path, &detail),
        Failure::Redb(Error::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            corrupt(path, &error.to_string())
        }
        Failure::Redb(Error::RepairAborted) => corrupt(path, "it cannot be repaired"),
        Failure::Redb(
            error @ (Error::TableDoesNotExist(_)
            | Error::TableTypeMismatch { .. }
            | Error::TypeDefinitionChanged { .. }
            | Error::UpgradeRequired(_)),
        ) => corrupt(path, &error.to_string()),
        Failure::Redb(error) => unavailable(path, operation, error),
    }
}

fn corrupt(path: &Path, detail: &str) -> StoreError {
    StoreError::Corrupt {
        store: path.display().to_string(),
        detail: detail.to_owned(),
    }
}

fn unavailable(path: &Path, operation: &'static str, source: impl Into<crate::store::Source>) -> StoreError {
    let source = source.into();
    StoreError::Unavailable {
        operation,
        store: path.display().to_string(),
        advice: advice(source.as_ref()),
        source,
    }
}

fn advice(source: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    let io = source
        .downcast_ref::<io::Error>()
        .or_else(|| match source.downcast_ref::<Error>() {
            Some(Error::Io(error)) => Some(error),
            _ => None,
        });
    if let Some(Error::DatabaseAlreadyOpen) = source.downcast_ref::<Error>() {
        return "another process has it open: is a second agent running?";
    }
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            "make room on its disk"
        }
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            "its folder must be writable for the agent's user"
        }
        Some(io::ErrorKind::NotFound) => "its folder must exist",
        _ => "check its disk and the kernel's log",
    }
}

/// The error of a store that was closed while still in use.
pub(super) fn closed(path: &Path, operation: &'static str) -> StoreError {
    StoreError::Unavailable {
        operation,
        store: path.display().to_string(),
        advice: "it was closed",
        source: Box::new(StorageError::DatabaseClosed),
    }
}
