//! Swarm's node certificate, key and roots as the agent's own credentials, reloaded when Swarm renews them.

mod identity;
mod subject;
mod unlock;

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_support::error_chain;
use notify::{RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::{
    identity::{CertificateError, NodeIdentity},
    subject::{Subject, SubjectError},
    unlock::UnlockError,
};
use super::HintHandle;
use crate::docker::Docker;

/// The files are reread this often even if no change was reported.
const POLL: Duration = Duration::from_secs(60);
/// Swarm renames one file after the other: wait until all are there.
const SETTLE: Duration = Duration::from_millis(200);

/// Reloads the identity when Swarm renews it.
pub struct CertificateWatcher {
    directory: PathBuf,
    docker: Docker,
    identity: watch::Sender<Arc<NodeIdentity>>,
    reload: HintHandle,
    // Watches until it is dropped.
    _watcher: notify::RecommendedWatcher,
}

impl CertificateWatcher {
    /// Loads the identity; [`CertificateWatcher::run`] keeps it current. The handle requests a reload
    /// (SIGHUP). The engine is asked to unlock an encrypted key.
    ///
    /// # Errors
    /// When the credentials cannot be loaded, or their folder cannot be watched.
    pub async fn new(
        directory: PathBuf,
        docker: Docker,
    ) -> Result<(Self, watch::Receiver<Arc<NodeIdentity>>, HintHandle), CertificateError> {
        let reload = HintHandle::new();
        let watch = |source| CertificateError::Watch {
            path: directory.clone(),
            source,
        };
        let hint = reload.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too; reacting to it would never end.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                hint.hint();
            }
        })
        .map_err(watch)?;
        watcher
            .watch(&directory, RecursiveMode::NonRecursive)
            .map_err(watch)?;
        // Load after the watch has started, so that no renewal is missed.
        let (identity, receiver) = watch::channel(Arc::new(NodeIdentity::load(&directory, &docker).await?));
        let this = Self {
            directory,
            docker,
            identity,
            reload: reload.clone(),
            _watcher: watcher,
        };
        Ok((this, receiver, reload))
    }

    /// Watches the folder until cancelled. A failed reload is logged, and the last identity stays in use.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let wait = tokio::time::timeout(POLL, self.reload.hinted());
            let Some(hinted) = shutdown.run_until_cancelled(wait).await else {
                return;
            };
            if hinted.is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
            match NodeIdentity::load(&self.directory, &self.docker).await {
                Ok(identity) => {
                    let renewed = self.identity.send_if_modified(|current| {
                        let renewed = **current != identity;
                        if renewed {
                            *current = Arc::new(identity);
                        }
                        renewed
                    });
                    if renewed {
                        info!(directory = %self.directory.display(), "node certificate renewed");
                    }
                }
                Err(error) if hinted.is_ok() => {
                    warn!(
                        error = error_chain(&error),
                        "cannot reload the node certificate; keeping the last one"
                    );
                }
                Err(error) => debug!(error = error_chain(&error), "node certificate still unreadable"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::test_authority::{Authority, written};

    #[tokio::test]
    async fn a_renewed_certificate_is_loaded() {
        let authority = Authority::new("cluster-1");
        let directory = written(&authority, "node-1");
        let docker = Docker::new("/nonexistent/docker.sock");
        let (watcher, mut identity, _reload) = CertificateWatcher::new(directory.path().to_owned(), docker)
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(watcher.run(shutdown.clone()));
        let renewed = written(&authority, "node-1");
        for file in ["swarm-node.key", "swarm-node.crt"] {
            let temporary = directory.path().join("new");
            std::fs::copy(renewed.path().join(file), &temporary).unwrap();
            std::fs::rename(temporary, directory.path().join(file)).unwrap();
        }
        let expected = NodeIdentity::read(renewed.path(), None).unwrap();
        let wait = identity.wait_for(|identity| **identity == expected);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the renewal was not noticed")
            .unwrap();
        shutdown.cancel();
        running.await.unwrap();
    }
}
