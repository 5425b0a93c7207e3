//! Unpacks the single file in the tar archive that Docker returns for a container's file. Bounded, as the
//! image is not trusted.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{ProgramError, on_the_side};

/// The largest program accepted from an image: about ten times today's size.
pub const MAX_PROGRAM_BYTES: u64 = 256 << 20;
/// Room for the archive's headers.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Writes the archive's file to `to`, executable by all users, and syncs it to disk.
///
/// # Errors
/// When the archive is malformed or truncated, its first entry is not a regular file, or the file is too
/// large.
pub async fn unpack(archive: BoxStream<'static, io::Result<Bytes>>, to: PathBuf) -> Result<(), ProgramError> {
    let reader = SyncIoBridge::new(StreamReader::new(archive.fuse()));
    on_the_side(move || unpack_from(reader, &to)).await
}

fn unpack_from(archive: impl Read, to: &Path) -> Result<(), ProgramError> {
    let mut archive = tar::Archive::new(archive.take(MAX_PROGRAM_BYTES + MAX_HEADER_BYTES));
    let mut entries = archive.entries().map_err(ProgramError::Archive)?;
    let Some(entry) = entries.next() else {
        return Err(ProgramError::Image("is missing".to_owned()));
    };
    let entry = entry.map_err(ProgramError::Archive)?;
    if !entry.header().entry_type().is_file() {
        return Err(ProgramError::Image("is not a regular file".to_owned()));
    }
    let size = entry.size();
    if size > MAX_PROGRAM_BYTES {
        return Err(ProgramError::Image(format!(
            "has {size} bytes, more than the {MAX_PROGRAM_BYTES} allowed"
        )));
    }
    write(entry, size, to).inspect_err(|_| drop(fs::remove_file(to)))
}

fn write(entry: impl Read, size: u64, to: &Path) -> Result<(), ProgramError> {
    let failed = || ProgramError::file("write", to);
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o700);
    let mut file = options.open(to).map_err(failed())?;
    let mut source = Source { entry, broken: None };
    let copied = io::copy(&mut source, &mut file);
    if let Some(error) = source.broken {
        return Err(ProgramError::Archive(error));
    }
    if copied.map_err(failed())? != size {
        return Err(ProgramError::Archive(io::ErrorKind::UnexpectedEof.into()));
    }
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .and_then(|()| file.sync_all())
        .map_err(failed())
}

/// Tells read errors of the archive apart from write errors of the disk.
struct Source<R> {
    entry: R,
    broken: Option<io::Error>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.entry.read(buffer).or_else(|error| {
            self.broken = Some(error);
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn archive(kind: tar::EntryType, bytes: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        if kind.is_symlink() {
            archive
                .append_link(&mut header, "mesh-agent", "elsewhere")
                .unwrap();
        } else {
            archive.append_data(&mut header, "mesh-agent", bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    async fn unpacked(archive: &[u8], to: &Path) -> Result<(), ProgramError> {
        let pieces: Vec<io::Result<Bytes>> = archive
            .chunks(700)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        unpack(stream::iter(pieces).boxed(), to.to_owned()).await
    }

    #[tokio::test]
    async fn a_file_arrives_whole_and_executable() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("program");
        let bytes = vec![7; 5000];
        unpacked(&archive(tar::EntryType::Regular, &bytes), &to)
            .await
            .unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes);
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[tokio::test]
    async fn anything_but_one_whole_file_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("program");
        let whole = archive(tar::EntryType::Regular, &[7; 5000]);
        let link = archive(tar::EntryType::Symlink, &[]);
        let mut large = tar::Header::new_gnu();
        large.set_path("mesh-agent").unwrap();
        large.set_size(MAX_PROGRAM_BYTES + 1);
        large.set_cksum();
        for (bytes, expected) in [
            (&whole[..3000], "from Docker"),
            (&link[..], "not a regular file"),
            (large.as_bytes(), "more than"),
            (&[], "is missing"),
            (&[7; 2000], "from Docker"),
        ] {
            let error = unpacked(bytes, &to).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!to.exists(), "{expected}");
        }
    }
}
