//! Secrets and configs as files that containers mount, in a tmpfs folder of this node: secrets are never
//! written to a disk.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use mesh_orchestrator::{
    objects::{Task, TaskId},
    secrets::{Kind, Secrets, VaultError},
    spec::FileReference,
};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::orchestrator::runtime::MountedFile;

/// Where containers see secrets without a target of their own.
const SECRETS_FOLDER: &str = "/run/secrets/";

/// A task's files could not be created.
#[derive(Debug, thiserror::Error)]
pub(in crate::orchestrator) enum FilesError {
    /// The vault could not return it.
    #[error("cannot read {kind} {name}")]
    Vault {
        kind: Kind,
        name: String,
        source: VaultError,
    },
    /// The folder is not in memory.
    #[error(
        "secrets are kept in memory only, but {} is on a disk (--task-files): choose a folder on a tmpfs",
        .0.display()
    )]
    Disk(PathBuf),
    /// Writing failed.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl FilesError {
    /// Whether the store is unavailable, so that it may succeed later.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Vault { source: VaultError::Store(error), .. } if error.is_unavailable()
        )
    }
}

/// The folder below which each task's files are.
#[derive(Clone, Debug)]
pub(super) struct TaskFiles {
    root: PathBuf,
}

impl TaskFiles {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Creates the files of a task.
    pub(super) async fn create(
        &self,
        task: &Task,
        values: &dyn Secrets,
    ) -> Result<Vec<MountedFile>, FilesError> {
        let container = &task.spec.container_spec;
        let secrets = container.secrets.iter().map(|file| (Kind::Secret, file));
        let configs = container.configs.iter().map(|file| (Kind::Config, file));
        let mut files = Vec::new();
        for (index, (kind, reference)) in secrets.chain(configs).enumerate() {
            if index == 0 {
                self.create_folder(&task.id)?;
            }
            let name = &reference.source;
            let value = values
                .reveal(kind, name)
                .await
                .map_err(|source| FilesError::Vault {
                    kind,
                    name: name.clone(),
                    source,
                })?;
            let path = self.folder(&task.id).join(index.to_string());
            write(&path, reference, value.expose()).map_err(|source| FilesError::Write {
                path: path.clone(),
                source,
            })?;
            files.push(MountedFile {
                source: path,
                target: target(kind, reference),
            });
        }
        Ok(files)
    }

    /// Removes the files of a task, if there are any.
    pub(super) fn remove(&self, task: &TaskId) {
        let folder = self.folder(task);
        match std::fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, folder = %folder.display(), "cannot remove a task's files"),
        }
    }

    fn folder(&self, task: &TaskId) -> PathBuf {
        self.root.join(task.as_str())
    }

    /// Readable by root alone; containers mount single files of it.
    fn create_folder(&self, task: &TaskId) -> Result<(), FilesError> {
        let folder = self.folder(task);
        let failed = |source| FilesError::Write {
            path: folder.clone(),
            source,
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&folder).map_err(failed)?;
        let in_memory = statfs(&folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
        if in_memory {
            Ok(())
        } else {
            Err(FilesError::Disk(self.root.clone()))
        }
    }
}

/// A file's path inside the container.
fn target(kind: Kind, reference: &FileReference) -> String {
    let name = reference.target.as_ref().unwrap_or(&reference.source);
    match kind {
        _ if name.starts_with('/') => name.clone(),
        Kind::Secret => format!("{SECRETS_FOLDER}{name}"),
        Kind::Config | Kind::RegistryCredential | Kind::Webhook | Kind::Agents => format!("/{name}"),
    }
}

fn write(path: &Path, reference: &FileReference, value: &[u8]) -> io::Result<()> {
    // An earlier attempt may have left the file, with other permissions.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, value)?;
    std::os::unix::fs::fchown(&file, Some(reference.uid), Some(reference.gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(reference.mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(target: Option<&str>) -> FileReference {
        FileReference {
            source: "key".into(),
            target: target.map(Into::into),
            uid: 0,
            gid: 0,
            mode: 0o440,
        }
    }

    #[test]
    fn files_are_where_docker_puts_them() {
        for (kind, given, expected) in [
            (Kind::Secret, None, "/run/secrets/key"),
            (Kind::Secret, Some("other"), "/run/secrets/other"),
            (Kind::Secret, Some("/etc/key"), "/etc/key"),
            (Kind::Config, None, "/key"),
            (Kind::Config, Some("/etc/a.conf"), "/etc/a.conf"),
        ] {
            assert_eq!(target(kind, &reference(given)), expected);
        }
    }

    #[test]
    fn a_file_has_its_mode_and_replaces_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0");
        for value in ["first, and longer", "second"] {
            let mut reference = reference(None);
            reference.uid = nix::unistd::getuid().as_raw();
            reference.gid = nix::unistd::getgid().as_raw();
            write(&path, &reference, value.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o440);
    }
}
