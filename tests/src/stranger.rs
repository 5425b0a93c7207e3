//! A TLS client with any certificate or none, to see which ones a server accepts. Depends on nothing.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

/// How long a server has to refuse.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connects; returns `kept` if the server sends data or keeps the connection for two seconds, and `refused:
/// …` if it closes it.
///
/// # Errors
/// When the server cannot be reached, or the certificate or key cannot be read.
pub fn dial(address: SocketAddr, identity: Option<(&Path, &Path)>) -> Result<String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("no TLS version")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .with_context(|| format!("could not read {}", certificate.display()))?;
            builder
                .with_client_auth_cert(chain, read_key(key)?)
                .context("certificate and key do not fit")?
        }
    };
    let name = ServerName::try_from("swarm-manager").context("no name")?;
    let connection = ClientConnection::new(Arc::new(config), name).context("no TLS connection")?;
    let socket = TcpStream::connect(address).with_context(|| format!("could not connect to {address}"))?;
    socket.set_read_timeout(Some(PATIENCE)).context("no time limit")?;
    let mut stream = StreamOwned::new(connection, socket);
    let mut byte = [0];
    Ok(match stream.read(&mut byte) {
        Ok(0) => "refused: the server closed the connection".into(),
        Ok(_) => "kept".into(),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => "kept".into(),
        Err(error) => format!("refused: {error}"),
    })
}

/// Swarm's keys have PEM headers, which the parser does not accept.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let plain: String = text
        .lines()
        .filter(|line| !line.is_empty() && !line.contains(": "))
        .flat_map(|line| [line, "\n"])
        .collect();
    PrivateKeyDer::from_pem_slice(plain.as_bytes())
        .with_context(|| format!("{} holds no private key", path.display()))
}

/// Accepts any server: this client has no secrets.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
