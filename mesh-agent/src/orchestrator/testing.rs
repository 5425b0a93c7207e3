//! A task and certificates for this module's tests.

use std::{fs, sync::Arc};

use mesh_orchestrator::{
    objects::{NodeId, ServiceId, Slot, Task, TaskId, TaskState, TaskStatus, Timestamp},
    spec::TaskSpec,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

use super::{
    certificates::{Files, Followed},
    tls::{Client, Credentials},
};

/// Task `t1`, the first of service `s1` (`web`), assigned to node `n1` and wanted running.
pub(super) fn task(spec: Arc<TaskSpec>) -> Task {
    Task {
        id: TaskId::from("t1"),
        service: ServiceId::from("s1"),
        service_name: "web".into(),
        slot: Slot::Number(1),
        spec,
        spec_version: 1,
        host_ports: Vec::new(),
        node: Some(NodeId::from("n1")),
        desired: TaskState::Running,
        status: TaskStatus::new(TaskState::Assigned, Timestamp(0), ""),
        created_at: Timestamp(0),
        started_at: None,
        finished_at: None,
        not_before: None,
        restarts: Vec::new(),
        failures: 0,
        update_began: None,
        given_up: false,
    }
}

/// Certificates in a folder: `managers-ca`, `workers-ca`, and pairs.
pub(super) struct Certificates {
    folder: tempfile::TempDir,
    managers: CertifiedIssuer<'static, KeyPair>,
    workers: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub(super) fn new() -> Self {
        let authority = |name: &str| {
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name.push(DnType::CommonName, name);
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
        };
        let (managers, workers) = (authority("managers"), authority("workers"));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("managers-ca"), managers.pem()).unwrap();
        fs::write(folder.path().join("workers-ca"), workers.pem()).unwrap();
        Self {
            folder,
            managers,
            workers,
        }
    }

    /// The files of a manager, or of a worker.
    pub(super) fn files(&self, name: &str, is_worker: bool) -> Files {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let issuer = if is_worker { &self.workers } else { &self.managers };
        let issued = parameters.signed_by(&key, issuer).unwrap();
        let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}"));
        fs::write(path("pem"), issued.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        Files {
            authority: Some(self.folder.path().join("managers-ca")),
            workers: (!is_worker).then(|| self.folder.path().join("workers-ca")),
            certificate: path("pem"),
            key: path("key"),
        }
    }

    /// For connections of a manager, or of a worker.
    pub(super) fn client(&self, name: &str, is_worker: bool) -> Followed<Client> {
        Followed::start(self.files(name, is_worker), Credentials::client).unwrap()
    }
}
