//! A backup's file: a header line, a line for each entry, and a line with the checksum of the rest.
//! Depends on `schedule` and the store's trait.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::io::{AsyncWriteExt, BufWriter};

use super::schedule::BackupName;
use crate::{
    objects::Timestamp,
    store::{Entry, Key, Revision, SCHEMA, Store, StoreError, is_ephemeral},
};

/// The version of the file's format.
pub const FORMAT: u32 = 1;

/// Identifies the format in the header.
const MAGIC: &str = "mesh-backup";

/// [`MAGIC`] of files from releases that called backups snapshots.
const OLD_MAGIC: &str = "mesh-snapshot";

/// The longest line: the largest value as text, its key and syntax.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// A backup's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    magic: String,
    /// The version of the file's format.
    pub format: u32,
    /// The version of the stored data.
    pub schema: u64,
    /// The store's revision of the entries.
    pub revision: Revision,
    /// When it was made.
    pub created_at: Timestamp,
    /// The store from which it was made.
    pub store: String,
    /// The release that made it.
    pub release: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Key,
    value: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    entries: u64,
    sha256: String,
}

/// A complete backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// The file.
    pub path: PathBuf,
    /// Its first line.
    pub header: Header,
    /// How many entries it has.
    pub entries: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its checksum: SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Why a backup was not made, read or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The file cannot be written. Nothing of it is left.
    #[error("could not write the backup {path}; its folder must exist, be writable and have room")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("could not read the backup {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a backup.
    #[error("{0} is not a backup")]
    NotABackup(PathBuf),
    /// The file is truncated or was changed.
    #[error("the backup {path} is damaged ({detail}); use another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A newer release made it.
    #[error("the backup {path} was made by a newer release ({release}); install that one to restore it")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The release that made it.
        release: String,
    },
    /// The store is not empty.
    #[error("{0} is not empty; restore into an empty store, or ask for its content to be replaced")]
    NotEmpty(String),
    /// The store.
    #[error("the store could not be read or written")]
    Store(#[from] StoreError),
}

/// Writes all entries of a store, at one revision, to a new file in a folder.
///
/// # Errors
/// When the store cannot be read or the file cannot be written. Nothing of the file is left then.
pub async fn create(store: &dyn Store, folder: &Path, name: BackupName) -> Result<BackupInfo, BackupError> {
    let path = folder.join(name.to_string());
    let failed = |source: io::Error| BackupError::Write {
        path: path.clone(),
        source,
    };
    let mut listing = store.snapshot().await?;
    let header = Header {
        magic: MAGIC.to_owned(),
        format: FORMAT,
        schema: SCHEMA,
        revision: listing.revision,
        created_at: name.at,
        store: store.describe(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Readable by its owner only: not everything confidential is a secret object.
    let (file, temporary) = NamedTempFile::with_prefix_in(".backup-", folder)
        .map_err(failed)?
        .into_parts();
    let mut output = Output {
        file: BufWriter::new(tokio::fs::File::from_std(file)),
        digest: Sha256::new(),
        bytes: 0,
    };
    output.line(&header).await.map_err(failed)?;
    let mut entries = 0;
    while let Some(page) = listing.next_page().await? {
        for Entry { key, value, .. } in page {
            // Registrations and leadership are not worth keeping.
            if is_ephemeral(&key) {
                continue;
            }
            let value = STANDARD.encode(value);
            output.line(&Line { key, value }).await.map_err(failed)?;
            entries += 1;
        }
    }
    let sha256 = hexadecimal(&output.digest.clone().finalize());
    let trailer = Trailer {
        entries,
        sha256: sha256.clone(),
    };
    output.line(&trailer).await.map_err(failed)?;
    output.file.flush().await.map_err(failed)?;
    output.file.get_ref().sync_all().await.map_err(failed)?;
    temporary
        .persist_noclobber(&path)
        .map_err(|refused| failed(refused.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(BackupInfo {
        bytes: output.bytes,
        path,
        header,
        entries,
        sha256,
    })
}

struct Output {
    file: BufWriter<tokio::fs::File>,
    digest: Sha256,
    bytes: u64,
}

impl Output {
    async fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.bytes += text.len() as u64;
        self.file.write_all(&text).await
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The backups in a folder, oldest first. Other files are ignored.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<BackupName>, BackupError> {
    let failed = |source| BackupError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for file in fs::read_dir(folder).map_err(failed)? {
        if let Some(name) = file.map_err(failed)?.file_name().to_str()
            && let Ok(name) = name.parse::<BackupName>()
        {
            names.push(name);
        }
    }
    names.sort_by_key(|name| (name.at, name.kind));
    Ok(names)
}

/// Reads and checks a whole backup. Blocking.
///
/// # Errors
/// When it cannot be read, is not a backup, is damaged, or was made by a newer release.
pub fn inspect(path: &Path) -> Result<BackupInfo, BackupError> {
    read(path, |_, _| {})
}

/// Reads a whole backup. The entries passed to `each` are valid only if there is no error. Blocking.
///
/// # Errors
/// As [`inspect`].
pub fn read(path: &Path, mut each: impl FnMut(Key, Vec<u8>)) -> Result<BackupInfo, BackupError> {
    let failed = |source| BackupError::Read {
        path: path.to_owned(),
        source,
    };
    let damaged = |detail: &str| BackupError::Damaged {
        path: path.to_owned(),
        detail: detail.to_owned(),
    };
    let mut input = Input {
        file: BufReader::new(File::open(path).map_err(failed)?),
        digest: Sha256::new(),
        bytes: 0,
    };
    let first = input.line().map_err(failed)?;
    let header = header(path, &first)?;
    input.digest.update(&first);
    let mut entries = 0;
    loop {
        let line = input.line().map_err(failed)?;
        if line.last() != Some(&b'\n') {
            return Err(damaged("it is truncated"));
        }
        if let Ok(Line { key, value }) = serde_json::from_slice(&line) {
            let value = STANDARD
                .decode(value)
                .map_err(|_| damaged("an entry was changed"))?;
            each(key, value);
            entries += 1;
            input.digest.update(&line);
            continue;
        }
        let trailer: Trailer = serde_json::from_slice(&line).map_err(|_| damaged("a line was changed"))?;
        let sha256 = hexadecimal(&input.digest.clone().finalize());
        if trailer.sha256 != sha256 || trailer.entries != entries {
            return Err(damaged("its checksum does not match"));
        }
        if !input.line().map_err(failed)?.is_empty() {
            return Err(damaged("there is data after its end"));
        }
        return Ok(BackupInfo {
            path: path.to_owned(),
            header,
            entries,
            bytes: input.bytes,
            sha256,
        });
    }
}

fn header(path: &Path, line: &[u8]) -> Result<Header, BackupError> {
    /// The part of the header that all releases share.
    #[derive(Deserialize)]
    struct Any {
        magic: String,
        format: u32,
        schema: u64,
        #[serde(default)]
        release: String,
    }
    let any: Any = serde_json::from_slice(line).map_err(|_| BackupError::NotABackup(path.to_owned()))?;
    if any.magic != MAGIC && any.magic != OLD_MAGIC {
        return Err(BackupError::NotABackup(path.to_owned()));
    }
    if any.format > FORMAT || any.schema > SCHEMA {
        return Err(BackupError::TooNew {
            path: path.to_owned(),
            release: any.release,
        });
    }
    serde_json::from_slice(line).map_err(|error| BackupError::Damaged {
        path: path.to_owned(),
        detail: format!("its header was changed: {error}"),
    })
}

struct Input {
    file: BufReader<File>,
    digest: Sha256,
    bytes: u64,
}

impl Input {
    /// The next line, with its end; empty at the end of the file.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let count = io::Read::take(&mut self.file, MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        self.bytes += count as u64;
        Ok(line)
    }
}
