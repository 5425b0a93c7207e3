//! The Unix socket that only the agent's own user may open.

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// How long open requests may take to finish when the agent stops.
const DRAIN: Duration = Duration::from_secs(2);

/// The admin socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another agent listens on it.
    #[error(
        "another agent is already listening on {0}: stop it first, or give this one its own --admin-socket"
    )]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{0} exists and is not a socket: remove it, or choose another --admin-socket")]
    NotASocket(PathBuf),
    /// A file operation failed.
    #[error("cannot {operation} {path} for the admin socket: check that its folder is writable")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The socket or its folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A bound admin socket.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Opens it, as [`super::AdminServer::bind`] says.
    pub(super) async fn bind(path: &Path) -> Result<Self, ServerError> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ServerError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                return Err(ServerError::InUse(path.to_owned()));
            }
            _ => {}
        }
        ensure_folder(path)?;
        // Bind under another name and rename, so that the socket never has a wider mode, and an old one is
        // replaced atomically.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        // An earlier process with the same pid may have left one.
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(fail("bind", &fresh))?;
        let publish = || {
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&fresh, path)?;
            Ok(std::fs::symlink_metadata(path)?.ino())
        };
        let inode = publish()
            .inspect_err(|_| drop(std::fs::remove_file(&fresh)))
            .map_err(fail("create", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// Serves until `stop` is cancelled, then removes the socket.
    pub(super) async fn serve(self, router: Router, stop: CancellationToken) {
        let stopped = stop.clone();
        let serve = axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { stopped.cancelled().await });
        let give_up = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            // axum's accept loop retries by itself and ends only at the shutdown signal.
            _ = serve => {}
            () = give_up => {}
        }
        // The next agent may already have its socket here.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The folder of a socket, created with mode 0755 if it is missing.
///
/// # Errors
/// When a file operation fails.
pub(crate) fn ensure_folder(socket: &Path) -> Result<&Path, ServerError> {
    let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(Path::new("."));
    };
    if !folder.exists() {
        std::fs::create_dir_all(folder).map_err(fail("create", folder))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder, mode).map_err(fail("set the mode of", folder))?;
    }
    Ok(folder)
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Io {
        operation,
        path,
        source,
    }
}
