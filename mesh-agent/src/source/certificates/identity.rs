//! A node's certificate, key and roots, as Swarm keeps them on disk. No key text is ever logged.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{
    subject::{Subject, SubjectError},
    unlock::{UnlockError, UnlockKey},
};
use crate::docker::Docker;

const CERTIFICATE: &str = "swarm-node.crt";
const KEY: &str = "swarm-node.key";
const ROOTS: &str = "swarm-root-ca.crt";

/// The node's credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file could not be read.
    #[error(
        "cannot read {}; is this node in a Swarm, and is its certificates folder mounted (--docker-root)?",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not valid PEM of the expected kind.
    #[error("{} is not a valid PEM file; 'docker swarm ca --rotate' recreates it", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The key is encrypted.
    #[error("cannot decrypt the node key {}, which is encrypted because the Swarm uses autolock", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: UnlockError,
    },
    /// The certificate is not a Swarm node's.
    #[error("{} is not the certificate of a Swarm node", path.display())]
    Subject {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SubjectError,
    },
    /// A root certificate cannot be used.
    #[error("{} contains a root certificate that cannot be used", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The folder cannot be watched.
    #[error("cannot watch {} for renewed certificates", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: notify::Error,
    },
}

/// A node's identity and the credentials that prove it. Its `Debug` shows no key.
pub struct NodeIdentity {
    /// The subject of the certificate.
    pub subject: Subject,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NodeIdentity")
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

impl PartialEq for NodeIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key && self.roots.roots == other.roots.roots
    }
}

impl NodeIdentity {
    /// Reads `swarm-node.crt`, `swarm-node.key` and `swarm-root-ca.crt` of a folder. Asks this node's engine
    /// for the key that decrypts the second, where it is encrypted (autolock).
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or cannot be decrypted.
    pub async fn load(directory: &Path, docker: &Docker) -> Result<Self, CertificateError> {
        let path = directory.join(KEY);
        let unlock = match is_encrypted(&read(&path)?) {
            true => Some(UnlockKey::ask(docker).await),
            false => None,
        };
        let unlock = unlock.transpose();
        Self::read(
            directory,
            unlock
                .map_err(|source| CertificateError::Encrypted { path, source })?
                .as_ref(),
        )
    }

    /// The same, with the key that decrypts the node's, if it is needed.
    pub(crate) fn read(directory: &Path, unlock: Option<&UnlockKey>) -> Result<Self, CertificateError> {
        let path = directory.join(CERTIFICATE);
        let chain = certificates(&path)?;
        let leaf = chain.first().ok_or_else(|| CertificateError::Pem {
            path: path.clone(),
            source: pem::Error::NoItemsFound,
        })?;
        let subject = Subject::of(leaf).map_err(|source| CertificateError::Subject { path, source })?;

        let path = directory.join(KEY);
        let key = private_key(&read(&path)?, &path, unlock)?;

        let path = directory.join(ROOTS);
        let mut roots = RootCertStore::empty();
        for root in certificates(&path)? {
            roots.add(root).map_err(|source| CertificateError::Root {
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self {
            subject,
            chain,
            key,
            roots: Arc::new(roots),
        })
    }

    /// The same identity with another folder's certificate, whatever its subject.
    #[cfg(test)]
    pub(crate) fn showing(mut self, directory: &Path) -> Result<Self, CertificateError> {
        self.chain = certificates(&directory.join(CERTIFICATE))?;
        let path = directory.join(KEY);
        self.key = private_key(&read(&path)?, &path, None)?;
        Ok(self)
    }

    /// The certificate, and the intermediate ones that lead to a root.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The key.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The cluster's roots.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let wrong = |source| CertificateError::Pem {
        path: path.to_owned(),
        source,
    };
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrong)?;
    if certificates.is_empty() {
        return Err(wrong(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// Whether a key's PEM is encrypted.
fn is_encrypted(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).contains("ENCRYPTED")
}

fn private_key(
    pem: &[u8],
    path: &Path,
    unlock: Option<&UnlockKey>,
) -> Result<PrivateKeyDer<'static>, CertificateError> {
    // Swarm adds headers (`kek-version`, and `raft-dek` on managers), which the PEM reader refuses.
    let plain: String = String::from_utf8_lossy(pem)
        .lines()
        .filter(|line| !line.contains(':'))
        .flat_map(|line| [line, "\n"])
        .collect();
    if is_encrypted(pem) {
        // Without a key: it was encrypted after it had been looked at.
        let key = unlock
            .ok_or(UnlockError::NoKey)
            .and_then(|key| key.decrypt(&plain));
        return key.map_err(|source| CertificateError::Encrypted {
            path: path.to_owned(),
            source,
        });
    }
    PrivateKeyDer::from_pem_slice(plain.as_bytes()).map_err(|source| CertificateError::Pem {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::NodeRole,
        source::test_authority::{Authority, written},
    };

    #[test]
    fn node_role_and_cluster_are_read_from_the_certificate() {
        let directory = written(&Authority::new("cluster-1"), "node-1");
        let identity = NodeIdentity::read(directory.path(), None).unwrap();
        let expected = Subject {
            node: "node-1".to_owned(),
            role: NodeRole::Worker,
            cluster_id: "cluster-1".to_owned(),
        };
        assert_eq!(identity.subject, expected);
    }

    #[test]
    fn swarms_headers_in_the_key_are_skipped() {
        let directory = written(&Authority::new("cluster-1"), "node-1");
        let path = directory.path().join(KEY);
        let plain = std::fs::read_to_string(&path).unwrap();
        let (begin, rest) = plain.split_once('\n').unwrap();
        std::fs::write(
            &path,
            format!("{begin}\nkek-version: 7\nraft-dek: c2VjcmV0\n\n{rest}"),
        )
        .unwrap();
        NodeIdentity::read(directory.path(), None).unwrap();
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = NodeIdentity::read(directory.path(), None).unwrap_err();
        assert!(error.to_string().contains(CERTIFICATE), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let directory = written(&Authority::new("cluster-1"), "node-1");
        let identity = NodeIdentity::read(directory.path(), None).unwrap();
        assert!(!format!("{identity:?}").contains("key"));
    }
}
