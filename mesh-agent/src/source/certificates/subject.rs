//! The subject of a node's certificate: which node of which cluster, and its role.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::model::{NodeId, NodeRole};

/// A certificate's subject is not a Swarm node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It is not an X.509 certificate.
    #[error("it cannot be parsed")]
    Malformed,
    /// A part of the subject is missing, empty, duplicated, or not text.
    #[error("its subject does not have exactly one {0}")]
    Missing(&'static str),
    /// The OU is not one of Swarm's node roles.
    #[error("its role (OU) is '{0}', neither swarm-manager nor swarm-worker")]
    Role(String),
}

/// The subject of a node's certificate.
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
    /// Reads the subject of a DER certificate, which TLS has to verify.
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
        (Some(part), None) => part
            .as_str()
            .ok()
            .filter(|part| !part.is_empty())
            .ok_or(SubjectError::Missing(what)),
        _ => Err(SubjectError::Missing(what)),
    }
}
