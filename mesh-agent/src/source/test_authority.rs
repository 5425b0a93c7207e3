//! Certificates like those that Swarm issues to its nodes, for tests.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

use super::NodeIdentity;

/// A cluster's certificate authority.
pub(crate) struct Authority {
    cluster_id: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(cluster_id: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "swarm-ca");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        Self {
            cluster_id: cluster_id.to_owned(),
            issuer,
        }
    }

    /// The same authority, signing for another cluster id.
    pub(crate) fn for_cluster(mut self, cluster_id: &str) -> Self {
        self.cluster_id = cluster_id.to_owned();
        self
    }

    /// Writes a node's three files.
    pub(crate) fn write(&self, directory: &Path, node: &str, role: &str) {
        let mut parameters =
            CertificateParams::new(vec![role.to_owned(), node.to_owned(), "swarm-ca".to_owned()]).unwrap();
        for (kind, value) in [
            (DnType::OrganizationName, self.cluster_id.as_str()),
            (DnType::OrganizationalUnitName, role),
            (DnType::CommonName, node),
        ] {
            parameters.distinguished_name.push(kind, value);
        }
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(directory.join("swarm-node.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.join("swarm-node.key"), key.serialize_pem()).unwrap();
        std::fs::write(directory.join("swarm-root-ca.crt"), self.issuer.pem()).unwrap();
    }

    /// The identity of a node.
    pub(crate) fn identity(&self, node: &str, role: &str) -> NodeIdentity {
        let directory = tempfile::tempdir().unwrap();
        self.write(directory.path(), node, role);
        NodeIdentity::read(directory.path(), None).unwrap()
    }

    /// An identity whose certificate has this role, which need not be a node's.
    pub(crate) fn identity_of_any_role(&self, node: &str, role: &str) -> NodeIdentity {
        let (own, stranger) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        self.write(own.path(), node, "swarm-worker");
        self.write(stranger.path(), node, role);
        NodeIdentity::read(own.path(), None)
            .unwrap()
            .showing(stranger.path())
            .unwrap()
    }
}

/// A folder with a worker's three files.
pub(crate) fn written(authority: &Authority, node: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    authority.write(directory.path(), node, "swarm-worker");
    directory
}
