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

use super::subject::{Subject, SubjectError};

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
    #[error(
        "the node key {} is encrypted because the Swarm uses autolock; the agent cannot use it: run \
         'docker swarm update --autolock=false' on a manager, then 'docker swarm ca --rotate'",
        path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
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
    /// Reads `swarm-node.crt`, `swarm-node.key` and `swarm-root-ca.crt` of a folder.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or the key is encrypted (autolock).
    pub fn load(directory: &Path) -> Result<Self, CertificateError> {
        let path = directory.join(CERTIFICATE);
        let chain = certificates(&path)?;
        let leaf = chain.first().ok_or_else(|| CertificateError::Pem {
            path: path.clone(),
            source: pem::Error::NoItemsFound,
        })?;
        let subject = Subject::of(leaf).map_err(|source| CertificateError::Subject { path, source })?;

        let path = directory.join(KEY);
        let key = private_key(&read(&path)?, &path)?;

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
        self.key = private_key(&read(&path)?, &path)?;
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

fn private_key(text: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let text = String::from_utf8_lossy(text);
    if text.contains("ENCRYPTED") {
        return Err(CertificateError::Encrypted {
            path: path.to_owned(),
        });
    }
    // Swarm adds headers (`kek-version`, and `raft-dek` on managers), which the PEM reader refuses.
    let plain: String = text
        .lines()
        .filter(|line| !line.contains(':'))
        .flat_map(|line| [line, "\n"])
        .collect();
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
        let identity = NodeIdentity::load(directory.path()).unwrap();
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
        NodeIdentity::load(directory.path()).unwrap();
    }

    #[test]
    fn an_encrypted_key_names_the_remedy_and_shows_nothing_of_the_key() {
        let directory = written(&Authority::new("cluster-1"), "node-1");
        let text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(directory.path().join(KEY), text).unwrap();
        let error = NodeIdentity::load(directory.path()).unwrap_err();
        assert!(matches!(error, CertificateError::Encrypted { .. }), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("--autolock=false") && !shown.contains("c2VjcmV0"),
            "{shown}"
        );
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = NodeIdentity::load(directory.path()).unwrap_err();
        assert!(error.to_string().contains(CERTIFICATE), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let directory = written(&Authority::new("cluster-1"), "node-1");
        let identity = NodeIdentity::load(directory.path()).unwrap();
        assert!(!format!("{identity:?}").contains("key"));
    }
}
