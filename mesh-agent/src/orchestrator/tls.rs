//! TLS for the orchestrator's API: for agents of other nodes, which present a certificate of the managers' or
//! the workers' authority, and for external tools, which present a token.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject},
};

use super::subject::{self, Validity};

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, or is not PEM.
    #[error("cannot read {} as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: pem::Error,
    },
    /// Certificate and key do not match, or are of an unsupported kind.
    #[error("the certificate {} and its key {} cannot be used for TLS", certificate.display(), key.display())]
    Credentials {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// An authority cannot be used.
    #[error("a certificate in {} cannot be used as an authority", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The certificate authorities.
    #[error("the certificate authorities cannot be used for TLS")]
    Roots(#[from] VerifierBuilderError),
    /// The versions of TLS.
    #[error("TLS cannot be set up")]
    Versions(#[source] rustls::Error),
    /// Workers' certificates would be managers' as well.
    #[error(
        "{} has an authority of the managers' certificates, or one that such an authority has signed: what it issues \
         opens the store, so workers need an authority of their own", path.display()
    )]
    Shared {
        /// The file with the workers' authorities.
        path: PathBuf,
    },
    /// The certificate names no node.
    #[error(
        "the certificate {} does not name a node: its subject needs one common name, of 1 to 63 letters, digits, '-', \
         '_' and '.'", path.display()
    )]
    NoName {
        /// The file.
        path: PathBuf,
    },
    /// The port cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
}

/// Who is at the other end of a connection, as its certificate proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Anyone: the listener asks for no certificate.
    Anyone,
    /// An agent with access to the store.
    Agent,
    /// The worker of this name.
    Worker(String),
}

/// A certificate with its key, and the authorities to trust.
pub(super) struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    /// The authorities of workers' certificates.
    workers: Option<Arc<RootCertStore>>,
    certificate: PathBuf,
    key_file: PathBuf,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads them from PEM files; without authorities no peer is trusted.
    pub(super) fn load(
        authority: Option<&Path>,
        workers: Option<&Path>,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, TlsError> {
        if let (Some(authority), Some(path)) = (authority, workers)
            && subject::is_issued_by(&certificates(path)?, &certificates(authority)?)
        {
            return Err(TlsError::Shared {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            chain: certificates(certificate)?,
            key: PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Pem {
                path: key.to_owned(),
                source,
            })?,
            roots: roots(authority)?,
            workers: workers.map(|path| roots(Some(path))).transpose()?,
            certificate: certificate.to_owned(),
            key_file: key.to_owned(),
        })
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        TlsError::Credentials {
            certificate: self.certificate.clone(),
            key: self.key_file.clone(),
            source,
        }
    }

    /// From when until when this node's certificate is valid.
    pub(super) fn validity(&self) -> Option<Validity> {
        subject::validity(self.chain.first()?)
    }

    /// For a listener that accepts any client, or only those with a certificate of the authorities.
    pub(super) fn server(&self, only_known: bool) -> Result<Arc<Server>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?;
        let (builder, known) = if only_known {
            let verifier = |roots: &Arc<RootCertStore>| {
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build()
            };
            let known = Arc::new(Known {
                agents: verifier(&self.roots)?,
                workers: self.workers.as_ref().map(verifier).transpose()?,
                hints: [Some(&self.roots), self.workers.as_ref()]
                    .into_iter()
                    .flatten()
                    .flat_map(|roots| roots.subjects())
                    .collect(),
            });
            let verifier = Arc::clone(&known) as Arc<dyn ClientCertVerifier>;
            (builder.with_client_cert_verifier(verifier), Some(known))
        } else {
            (builder.with_no_client_auth(), None)
        };
        let config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| self.unusable(error))?;
        Ok(Arc::new(Server {
            config: Arc::new(config),
            known,
        }))
    }

    /// For connections to other agents: their certificates must be of the authorities. An agent with access
    /// to the store may have any name; a worker's name is to be compared.
    pub(super) fn client(&self) -> Result<Arc<Client>, TlsError> {
        let verifier = |roots: &Arc<RootCertStore>| {
            WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build()
        };
        let verifier = Arc::new(AnyName {
            agents: verifier(&self.roots)?,
            workers: self.workers.as_ref().map(verifier).transpose()?,
        });
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| self.unusable(error))?;
        Ok(Arc::new(Client {
            config: Arc::new(config),
            verifier,
            certificate: self.certificate.clone(),
            validity: self.validity(),
        }))
    }
}

/// The name in a node's own certificate.
pub(super) fn own_name(certificate: &Path) -> Result<String, TlsError> {
    let chain = certificates(certificate)?;
    let name = chain.first().and_then(subject::name);
    name.ok_or_else(|| TlsError::NoName {
        path: certificate.to_owned(),
    })
}

/// The serving side of TLS.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: Arc<ServerConfig>,
    known: Option<Arc<Known>>,
}

impl Server {
    /// Who a client is after the handshake; `None` if the certificate names no node.
    pub(super) fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
        let Some(known) = &self.known else {
            return Some(Peer::Anyone);
        };
        let (end_entity, intermediates) = chain?.split_first()?;
        known.peer(end_entity, intermediates, UnixTime::now()).ok()?
    }
}

/// The asking side of TLS.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) config: Arc<ClientConfig>,
    verifier: Arc<AnyName>,
    certificate: PathBuf,
    validity: Option<Validity>,
}

impl Client {
    /// Why no one takes this node's own certificate at this time, if that is so.
    pub(super) fn not_valid(&self, now: SystemTime) -> Option<String> {
        let reason = self.validity?.not_valid(now)?;
        let path = self.certificate.display();
        Some(format!(
            "this node's certificate {path} {reason}; a renewed one is read without a restart"
        ))
    }

    /// Who a server is after the handshake; `None` if the certificate names no node.
    pub(super) fn peer(&self, name: &ServerName<'_>, chain: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
        let (end_entity, intermediates) = chain?.split_first()?;
        let verifier = &self.verifier;
        match verifier.verify_worker(end_entity, intermediates, name, UnixTime::now()) {
            Some(Ok(_)) => subject::name(end_entity).map(Peer::Worker),
            Some(Err(_)) | None => Some(Peer::Agent),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn roots(authority: Option<&Path>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authority {
        for root in certificates(path)? {
            roots.add(root).map_err(|source| TlsError::Authority {
                path: path.to_owned(),
                source,
            })?;
        }
    }
    Ok(Arc::new(roots))
}

/// Clients with a certificate of the agents' or the workers' authorities.
#[derive(Debug)]
struct Known {
    agents: Arc<dyn ClientCertVerifier>,
    workers: Option<Arc<dyn ClientCertVerifier>>,
    hints: Vec<DistinguishedName>,
}

impl Known {
    /// A worker's authority counts first: what both have issued has the lesser rights.
    fn peer(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Option<Peer>, rustls::Error> {
        if let Some(workers) = &self.workers
            && workers.verify_client_cert(end_entity, intermediates, now).is_ok()
        {
            return Ok(subject::name(end_entity).map(Peer::Worker));
        }
        self.agents.verify_client_cert(end_entity, intermediates, now)?;
        Ok(Some(Peer::Agent))
    }
}

impl ClientCertVerifier for Known {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.peer(end_entity, intermediates, now)
            .map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.agents.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.agents.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.agents.supported_verify_schemes()
    }
}

/// Verifies an agent's authority but not its name: agents with access to the store can read all of it anyway,
/// and addresses change. A worker's name is compared by who asks it.
#[derive(Debug)]
struct AnyName {
    agents: Arc<WebPkiServerVerifier>,
    workers: Option<Arc<WebPkiServerVerifier>>,
}

impl AnyName {
    /// `None` where there are no workers.
    fn verify_worker(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Option<Result<ServerCertVerified, rustls::Error>> {
        let workers = self.workers.as_ref()?;
        Some(with_any_name(workers.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            &[],
            now,
        )))
    }
}

fn with_any_name(
    verified: Result<ServerCertVerified, rustls::Error>,
) -> Result<ServerCertVerified, rustls::Error> {
    match verified {
        // The name is checked last, after everything else succeeded.
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Ok(ServerCertVerified::assertion()),
        result => result,
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(Ok(verified)) = self.verify_worker(end_entity, intermediates, server_name, now) {
            return Ok(verified);
        }
        let verified =
            self.agents
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        with_any_name(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.agents.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.agents.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.agents.supported_verify_schemes()
    }
}
