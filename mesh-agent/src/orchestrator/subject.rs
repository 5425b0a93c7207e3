//! What agents read from certificates that TLS has verified: the node's name, and who has issued an
//! authority.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest name of a node.
const MAX_NAME: usize = 63;

/// The name of the node that a certificate is of: the only common name of its subject.
pub(super) fn name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed);
    (is_name && names.next().is_none()).then(|| name.to_owned())
}

/// Whether one of some authorities is, or was issued by, one of others. One that cannot be parsed is left for
/// TLS to refuse.
pub(super) fn is_issued_by(authorities: &[CertificateDer<'_>], issuers: &[CertificateDer<'_>]) -> bool {
    fn parse<'a>(all: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
        let parsed = all.iter().map(|one| X509Certificate::from_der(one));
        parsed.filter_map(|parsed| Some(parsed.ok()?.1)).collect()
    }
    let (authorities, issuers) = (parse(authorities), parse(issuers));
    authorities.iter().any(|authority| {
        issuers.iter().any(|issuer| {
            // Chains are built by names.
            authority.public_key().raw == issuer.public_key().raw
                || authority.issuer().as_raw() == issuer.subject().as_raw()
        })
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        CertifiedIssuer::self_signed(parameters(&[name], true), KeyPair::generate().unwrap()).unwrap()
    }

    fn parameters(names: &[&str], is_authority: bool) -> CertificateParams {
        let mut parameters = CertificateParams::default();
        for name in names {
            parameters.distinguished_name.push(DnType::CommonName, *name);
        }
        if is_authority {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        parameters
    }

    fn named(name: &str) -> Option<String> {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters(&[name], false)
            .signed_by(&key, &authority("ca"))
            .unwrap();
        super::name(certificate.der())
    }

    #[test]
    fn a_node_is_named_by_the_common_name() {
        assert_eq!(named("edge-1.example").as_deref(), Some("edge-1.example"));
        for wrong in ["", "a b", "a/b", &"x".repeat(64)] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_authority_of_managers_is_recognised() {
        let (managers, workers) = (authority("managers"), authority("workers"));
        let der = |issuer: &CertifiedIssuer<'static, KeyPair>| vec![issuer.der().clone()];
        assert!(!is_issued_by(&der(&workers), &der(&managers)));
        assert!(is_issued_by(&der(&managers), &der(&managers)));
        let between = CertifiedIssuer::signed_by(
            parameters(&["between"], true),
            KeyPair::generate().unwrap(),
            &managers,
        );
        assert!(is_issued_by(&der(&between.unwrap()), &der(&managers)));
    }
}
