//! What agents read from certificates: the node's name, from when until when one is valid, and who has issued
//! an authority.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use time::{OffsetDateTime, macros::format_description};
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

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    from: i64,
    until: i64,
}

/// The times in a certificate.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some(Validity {
        from: validity.not_before.timestamp(),
        until: validity.not_after.timestamp(),
    })
}

impl Validity {
    /// Why it is not valid at a time, if so.
    pub(super) fn not_valid(self, now: SystemTime) -> Option<String> {
        let now = seconds(now);
        if now > self.until {
            Some(format!("expired on {}", date(self.until)))
        } else if now < self.from {
            Some(format!(
                "is not valid before {} (is this machine's clock right?)",
                date(self.from)
            ))
        } else {
            None
        }
    }

    /// How long it is still valid.
    pub(super) fn left(self, now: SystemTime) -> Duration {
        Duration::from_secs(u64::try_from(self.until - seconds(now)).unwrap_or(0))
    }

    /// Its last second.
    pub(super) fn until(self) -> String {
        date(self.until)
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn date(seconds: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| format!("second {seconds} of Unix time"))
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
    fn the_dates_say_why_a_certificate_is_not_valid() {
        let validity = Validity {
            from: 1_700_000_000,
            until: 1_800_000_000,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(validity.not_valid(at(1_700_000_000)), None);
        assert_eq!(
            validity.not_valid(at(1_800_000_001)).as_deref(),
            Some("expired on 2027-01-15 08:00:00 UTC")
        );
        let early = validity.not_valid(at(1_699_999_999)).unwrap();
        assert!(early.contains("2023-11-14 22:13:20 UTC"), "{early}");
        assert_eq!(validity.left(at(1_799_999_990)), Duration::from_secs(10));
        assert_eq!(validity.left(at(1_900_000_000)), Duration::ZERO);
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
