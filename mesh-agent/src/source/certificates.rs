//! Swarm's node certificate, key and root bundle as the agent's own credentials, kept current while
//! Swarm renews them. May be used by the feed; depends on the model only. No key text is ever logged.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::HintHandle;
use crate::model::{NodeId, NodeRole};

const CERTIFICATE: &str = "swarm-node.crt";
const KEY: &str = "swarm-node.key";
const ROOTS: &str = "swarm-root-ca.crt";
/// The files are read again this often even if no change was reported.
const POLL: Duration = Duration::from_secs(60);
/// Swarm renames one file after the other: wait until both are there.
const SETTLE: Duration = Duration::from_millis(200);

/// The node's credentials could not be used.
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
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no PEM of the kind it should.
    #[error("{} is not the PEM file it should be; 'docker swarm ca --rotate' makes it anew", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Swarm keeps the key encrypted.
    #[error(
        "the node key {} is encrypted because the Swarm is locked (autolock); the agent cannot use it: run \
         'docker swarm update --autolock=false' on a manager, then 'docker swarm ca --rotate'",
        path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is not one that Swarm gives to a node.
    #[error("{} is not the certificate of a Swarm node", path.display())]
    Subject {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SubjectError,
    },
    /// A root certificate cannot be trusted.
    #[error("{} holds a root certificate that cannot be used", path.display())]
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
        /// What the system said.
        source: notify::Error,
    },
}

/// A certificate does not say which node of which cluster it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It is no X.509 certificate.
    #[error("it cannot be parsed")]
    Malformed,
    /// A part of the subject is missing, there twice, or no text.
    #[error("its subject has not exactly one {0}")]
    Missing(&'static str),
    /// The OU is neither of Swarm's node roles.
    #[error("its role (OU) is '{0}', neither swarm-manager nor swarm-worker")]
    Role(String),
}

/// What a node's certificate says of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The CN.
    pub node: NodeId,
    /// The OU.
    pub role: NodeRole,
    /// The O.
    pub cluster_id: String,
}

impl Subject {
    /// Reads the subject of a DER certificate. Whether to believe it is for TLS to say.
    ///
    /// # Errors
    /// When it is not a Swarm node's.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, SubjectError> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| SubjectError::Malformed)?;
        let name = certificate.subject();
        let role = match only(name, X509Name::iter_organizational_unit, "OU")? {
            "swarm-manager" => NodeRole::Manager,
            "swarm-worker" => NodeRole::Worker,
            other => return Err(SubjectError::Role(other.chars().take(64).collect())),
        };
        Ok(Self {
            node: only(name, X509Name::iter_common_name, "CN")?.to_owned(),
            role,
            cluster_id: only(name, X509Name::iter_organization, "O")?.to_owned(),
        })
    }
}

fn only<'a, I>(
    name: &'a X509Name<'a>,
    parts: impl Fn(&'a X509Name<'a>) -> I,
    what: &'static str,
) -> Result<&'a str, SubjectError>
where
    I: Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
{
    let mut parts = parts(name);
    match (parts.next(), parts.next()) {
        (Some(part), None) => part.as_str().map_err(|_| SubjectError::Missing(what)),
        _ => Err(SubjectError::Missing(what)),
    }
}

/// Who this node is, and the credentials that prove it. Its `Debug` shows no key.
pub struct NodeIdentity {
    /// What the certificate says.
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

    /// The same identity that shows another folder's certificate, whatever its subject.
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

/// Reloads the identity when Swarm renews it.
#[derive(Debug)]
pub struct CertificateWatcher {
    directory: PathBuf,
    identity: watch::Sender<Arc<NodeIdentity>>,
    reload: HintHandle,
    // Dropping it ends the watch.
    _watcher: notify::RecommendedWatcher,
}

impl CertificateWatcher {
    /// Loads the identity now; [`CertificateWatcher::run`] keeps it current. The handle asks for a
    /// reload at once (SIGHUP).
    ///
    /// # Errors
    /// When the credentials cannot be loaded now, or their folder cannot be watched.
    pub fn new(
        directory: PathBuf,
    ) -> Result<(Self, watch::Receiver<Arc<NodeIdentity>>, HintHandle), CertificateError> {
        let reload = HintHandle::new();
        let watch = |source| CertificateError::Watch {
            path: directory.clone(),
            source,
        };
        let hint = reload.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too; answering it would never end.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                hint.hint();
            }
        })
        .map_err(watch)?;
        watcher
            .watch(&directory, RecursiveMode::NonRecursive)
            .map_err(watch)?;
        // Only now: a renewal between the two is then seen.
        let (identity, receiver) = watch::channel(Arc::new(NodeIdentity::load(&directory)?));
        let this = Self {
            directory,
            identity,
            reload: reload.clone(),
            _watcher: watcher,
        };
        Ok((this, receiver, reload))
    }

    /// Watches the folder until cancelled. A reload that fails is logged; the last identity stays.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let wait = tokio::time::timeout(POLL, self.reload.hinted());
            let Some(hinted) = shutdown.run_until_cancelled(wait).await else {
                return;
            };
            if hinted.is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
            match NodeIdentity::load(&self.directory) {
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
                        error = mesh_support::error_chain(&error),
                        "keeping the node certificate that was loaded before"
                    );
                }
                Err(error) => debug!(
                    error = mesh_support::error_chain(&error),
                    "node certificate still unreadable"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::test_authority::Authority;

    fn written(authority: &Authority, node: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        authority.write(directory.path(), node, "swarm-worker");
        directory
    }

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
    fn swarm_headers_of_the_key_are_passed_over() {
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
    fn encrypted_key_names_the_remedy_and_nothing_of_the_key() {
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
    fn missing_certificate_is_named() {
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

    #[tokio::test]
    async fn renewed_certificate_is_taken_over() {
        let authority = Authority::new("cluster-1");
        let directory = written(&authority, "node-1");
        let (watcher, mut identity, _reload) = CertificateWatcher::new(directory.path().to_owned()).unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(watcher.run(shutdown.clone()));
        let renewed = written(&authority, "node-1");
        for file in [KEY, CERTIFICATE] {
            let temporary = directory.path().join("new");
            std::fs::copy(renewed.path().join(file), &temporary).unwrap();
            std::fs::rename(temporary, directory.path().join(file)).unwrap();
        }
        let expected = NodeIdentity::load(renewed.path()).unwrap();
        let wait = identity.wait_for(|identity| **identity == expected);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the renewal was not noticed")
            .unwrap();
        shutdown.cancel();
        running.await.unwrap();
    }
}
