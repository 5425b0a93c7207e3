//! What the doctor checks on a node without access to the store: its files, its certificate, and whether each
//! manager serves it. Imports `exchange`, `tls` and `workers`' paths.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use mesh_orchestrator::{
    commands,
    store::{
        Key,
        remote::wire::{Answer, Failure, Request},
    },
};
use mesh_support::error_chain;

use super::{
    OrchestratorOptions,
    managers::ask,
    options::TlsPaths,
    tls::{Client, Credentials, own_name},
};
use crate::doctor::{Check, WorkerChecks};

/// How long before its end a certificate is reported.
const SOON: Duration = Duration::from_secs(7 * 24 * 3_600);

const CERTIFICATE: &str = "this node's certificate";

/// The checks of a node that runs with these options, if it has managers.
#[must_use]
pub fn worker_checks(options: &OrchestratorOptions) -> Option<Arc<dyn WorkerChecks>> {
    options
        .is_worker()
        .then(|| Arc::new(Examined(options.clone())) as Arc<dyn WorkerChecks>)
}

#[derive(Debug)]
struct Examined(OrchestratorOptions);

#[async_trait]
impl WorkerChecks for Examined {
    async fn checks(&self) -> Vec<Check> {
        // clap asks for the files together with the managers.
        let Some(paths) = self.0.agents_tls() else {
            return Vec::new();
        };
        let (mut checks, client) = files(&paths, SystemTime::now());
        if let (Some(client), Ok(name)) = (client, own_name(paths.certificate)) {
            let managers = self.0.managers.iter();
            let asked = managers.map(|address| manager(&client, address, &name));
            checks.extend(join_all(asked).await);
        }
        checks
    }
}

/// The files and the certificate's dates and name; the client that they make.
fn files(paths: &TlsPaths<'_>, now: SystemTime) -> (Vec<Check>, Option<Arc<Client>>) {
    let name = "certificate files";
    let loaded = Credentials::load(Some(paths.authority), None, paths.certificate, paths.key);
    let made = loaded.and_then(|credentials| Ok((credentials.client()?, credentials)));
    let (client, credentials) = match made {
        Ok(made) => made,
        Err(error) => {
            let remedy =
                "repair the file, or name another one: --agents-ca, --agents-certificate, --agents-key";
            return (vec![Check::fail(name, error_chain(&error), remedy)], None);
        }
    };
    let shown = |path: &Path| path.display().to_string();
    let all = [paths.authority, paths.certificate, paths.key]
        .map(shown)
        .join(", ");
    let mut checks = vec![Check::ok(name, all)];
    checks.push(match own_name(paths.certificate) {
        Ok(name) => Check::ok("this node's name", format!("{name}, as its certificate says")),
        Err(error) => Check::fail(
            "this node's name",
            error_chain(&error),
            "issue a certificate whose subject has one common name, the node's",
        ),
    });
    let renew = "have it renewed by what issues it; the agent reads the new file without a restart";
    checks.extend(credentials.validity().map(|validity| {
        let until = validity.until();
        match validity.not_valid(now) {
            Some(reason) => Check::fail(
                CERTIFICATE,
                format!("{} {reason}", shown(paths.certificate)),
                renew,
            ),
            None if validity.left(now) < SOON => Check::warn(
                CERTIFICATE,
                format!("valid until {until}, for less than a week"),
                renew,
            ),
            None => Check::ok(CERTIFICATE, format!("valid until {until}")),
        }
    }));
    (checks, Some(client))
}

/// Asks a manager for this node's object, which each worker may read.
async fn manager(client: &Client, address: &str, name: &str) -> Check {
    let check = format!("manager {address}");
    let id = commands::worker_id(name);
    let key = match Key::new(["nodes", id.as_str()]) {
        Ok(key) => key,
        Err(error) => {
            return Check::fail(
                &check,
                error_chain(&error),
                "issue a certificate with another name",
            );
        }
    };
    // Text only: this cannot fail.
    let body = serde_json::to_vec(&Request::Get { key }).unwrap_or_default();
    match ask(client, address, &body).await {
        Ok(Answer::Failed(Failure::Refused(why))) => Check::fail(
            &check,
            why,
            format!("admit this node on a manager: meshctl node admit {name}"),
        ),
        Ok(Answer::Failed(Failure::Unavailable(why) | Failure::OutcomeUnknown(why))) => Check::warn(
            &check,
            why,
            "look into that manager's agent: meshctl status there",
        ),
        Ok(_) => Check::ok(&check, "it serves this node"),
        Err(error) => Check::fail(
            &check,
            error_chain(&error),
            "start the agent there, open its feed port, and compare the authorities on both sides: --agents-ca here, \
             --workers-ca there",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{doctor::Outcome, orchestrator::testing::Certificates};

    #[test]
    fn unreadable_files_and_an_expired_certificate_are_found() {
        let certificates = Certificates::new();
        let made = certificates.files("edge1", true);
        let authority = made.authority.clone().unwrap();
        let paths = TlsPaths {
            authority: &authority,
            certificate: &made.certificate,
            key: &made.key,
        };
        let worst = |now| {
            files(&paths, now)
                .0
                .into_iter()
                .max_by_key(|check| check.outcome)
                .unwrap()
        };
        assert_eq!(worst(SystemTime::now()).outcome, Outcome::Ok);
        let later = worst(SystemTime::now() + Duration::from_secs(3_600 * 24 * 365 * 10_000));
        assert!(
            later.outcome == Outcome::Fail && later.detail.contains("expired on"),
            "{later:?}"
        );
        fs::write(&made.key, "no key").unwrap();
        let broken = worst(SystemTime::now());
        let named = broken.detail.contains(&made.key.display().to_string());
        assert!(broken.outcome == Outcome::Fail && named, "{broken:?}");
    }
}
