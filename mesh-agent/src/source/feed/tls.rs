//! The TLS configuration of both ends of the feed: mutual authentication by Swarm's node certificates,
//! without session resumption, so that every connection is checked against the current certificates.

use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
};

use crate::source::NodeIdentity;

/// The credentials cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("the node's certificate and key cannot be used for TLS")]
    Credentials(#[from] rustls::Error),
    #[error("the cluster's root certificates cannot be used for TLS")]
    Roots(#[from] VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A manager's configuration: clients must present a certificate of the cluster.
pub(super) fn server(identity: &NodeIdentity) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots(), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client's configuration.
pub(super) fn client(identity: &NodeIdentity) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(identity.roots())
        .with_client_auth_cert(identity.chain(), identity.key())?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
