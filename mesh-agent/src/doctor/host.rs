//! Checks of the process and of Docker: capabilities, Docker's socket, Swarm membership, node certificates,
//! and the containers' network namespaces.

use std::{
    fs,
    io::{self, Read},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use caps::{CapSet, Capability};
use mesh_support::error_chain;
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::{Check, Options, Outcome, feed};
use crate::{
    docker::{
        Docker, DockerError,
        api::{ContainerDetail, ContainerSummary},
    },
    source::{CertificateError, NodeIdentity},
};

/// The engine answers these questions from memory.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(3);
/// No certificate or key is longer.
const CERTIFICATE_LIMIT: u64 = 256 * 1024;

/// The capabilities that every data path needs.
pub(super) fn capability_checks() -> Vec<Check> {
    vec![
        capability(
            has(Capability::CAP_NET_ADMIN),
            "CAP_NET_ADMIN",
            "attach programs and create devices, routes and rules",
        ),
        capability(
            has(Capability::CAP_SYS_ADMIN),
            "CAP_SYS_ADMIN",
            "enter containers' network namespaces to read their addresses",
        ),
    ]
}

/// The capabilities that eBPF needs in addition.
pub(super) fn ebpf_capability_checks() -> Vec<Check> {
    let admin = has(Capability::CAP_SYS_ADMIN);
    vec![
        capability(
            has(Capability::CAP_BPF) || admin,
            "CAP_BPF",
            "load programs and create maps",
        ),
        capability(
            has(Capability::CAP_PERFMON) || admin,
            "CAP_PERFMON",
            "load programs that use packet pointers",
        ),
    ]
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

fn capability(granted: bool, name: &str, purpose: &str) -> Check {
    if granted {
        return Check::ok(name, purpose);
    }
    Check::fail(
        name,
        format!("missing: needed to {purpose}"),
        format!("run as root; add {name} to cap_add in a stack file, or to CapabilityBoundingSet in a unit"),
    )
}

/// What Docker says.
pub(super) struct DockerChecks {
    pub(super) checks: Vec<Check>,
    /// The address by which the Swarm's other nodes reach this one.
    pub(super) node_address: Option<Ipv4Addr>,
}

/// What the agent can find out from Docker, and from the managers that Docker knows.
pub(super) async fn docker_checks(options: &Options) -> DockerChecks {
    let mut found = DockerChecks {
        checks: Vec::new(),
        node_address: None,
    };
    if let Err(check) = ask_docker(options, &mut found).await {
        found.checks.push(check);
    }
    found
}

/// An error is the check that failed, and that rules out later ones.
async fn ask_docker(options: &Options, found: &mut DockerChecks) -> Result<(), Check> {
    let docker = Docker::new(&options.docker_socket).with_timeout(DOCKER_TIMEOUT);
    let info = match docker.info().await {
        Ok(info) => info,
        Err(error) => {
            return Err(Check::fail(
                "Docker socket",
                mesh_support::error_chain(&error),
                "start Docker, or pass its socket as --docker-socket; in a container, bind-mount it",
            ));
        }
    };
    found.checks.push(Check::ok(
        "Docker socket",
        format!("{}, Docker {}", options.docker_socket.display(), info.version),
    ));
    let membership = membership(options.orchestrator, &info.state, info.manager);
    if membership.outcome != Outcome::Ok {
        return Err(membership);
    }
    found.checks.push(membership);
    found.checks.push(namespaces(&docker).await);
    if options.orchestrator {
        return Ok(());
    }
    found.node_address = info.node_address;
    let root = options.docker_root.as_ref().unwrap_or(&info.root);
    let folder = root.join("swarm/certificates");
    let mut certificates = certificates(&folder);
    if certificates.outcome == Outcome::Ok {
        certificates = usable(certificates, &folder, &docker).await;
    }
    if certificates.outcome == Outcome::Fail {
        return Err(certificates);
    }
    found.checks.push(certificates);
    found
        .checks
        .extend(feed::checks(&docker, &info, &folder, options.feed_port).await);
    Ok(())
}

/// An agent needs a Swarm; with `--orchestrator` it must be outside one.
fn membership(orchestrator: bool, state: &str, is_manager: bool) -> Check {
    let name = "Swarm membership";
    match (orchestrator, state) {
        (true, "inactive") => Check::ok(name, "none: the orchestrator schedules this node's tasks"),
        (true, _) => Check::fail(
            name,
            format!("this node's Swarm state is '{state}', but the agent runs with --orchestrator"),
            "docker swarm leave, or run the agent without --orchestrator",
        ),
        (false, "active") if is_manager => Check::ok(name, "active manager"),
        (false, "active") => Check::ok(name, "active worker"),
        (false, "locked") => Check::fail(
            name,
            "this manager is locked: its engine was restarted in an autolocked Swarm",
            "docker swarm unlock",
        ),
        (false, _) => Check::fail(
            name,
            format!("this node's Swarm state is '{state}'"),
            "docker swarm init, or docker swarm join; without Swarm, run the agent with --orchestrator",
        ),
    }
}

fn certificates(folder: &Path) -> Check {
    let name = "node certificates";
    let remedy = "pass Docker's data root as --docker-root; in a container, bind-mount its swarm/certificates \
                  folder read-only";
    for file in ["swarm-node.crt", "swarm-root-ca.crt"] {
        let path = folder.join(file);
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) => return Check::fail(name, format!("{}: {error}", path.display()), remedy),
        };
        if let Err(trouble) = valid_certificate(&text) {
            return Check::fail(
                name,
                format!("{}: {trouble}", path.display()),
                "run docker swarm ca --rotate on a manager to renew it; check this machine's clock",
            );
        }
    }
    let path = folder.join("swarm-node.key");
    match read_bounded(&path) {
        Err(error) => Check::fail(name, format!("{}: {error}", path.display()), remedy),
        Ok(_) => Check::ok(name, folder.display().to_string()),
    }
}

/// Checks that the agent can use what is there: an autolocked Swarm's keys have to be decrypted.
async fn usable(check: Check, folder: &Path, docker: &Docker) -> Check {
    match NodeIdentity::load(folder, docker).await {
        Ok(_) => check,
        Err(error @ CertificateError::Encrypted { .. }) => Check::fail(
            &check.name,
            error_chain(&error),
            "docker swarm unlock on this node, if it is locked; otherwise give the agent the engine's own socket, \
             not a proxy that refuses GET /swarm/unlockkey",
        ),
        Err(error) => Check::fail(&check.name, error_chain(&error), "docker swarm ca --rotate"),
    }
}

/// Checks that the first certificate in the file is valid now.
fn valid_certificate(text: &[u8]) -> Result<(), String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text).map_err(|error| format!("is not PEM: {error}"))?;
    let certificate = pem
        .parse_x509()
        .map_err(|error| format!("is not a certificate: {error}"))?;
    let validity = certificate.validity();
    if validity.is_valid() {
        Ok(())
    } else {
        Err(format!(
            "is valid only from {} to {}",
            validity.not_before, validity.not_after
        ))
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?
        .take(CERTIFICATE_LIMIT)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// Opens the namespace of a running container: only that shows whether the mount is visible to this process.
async fn namespaces(docker: &Docker) -> Check {
    let name = "network namespaces";
    let remedy = "in a container, bind-mount Docker's netns folder with propagation rslave at the same path";
    match sandbox_keys(docker).await {
        Err(error) => Check::warn(
            name,
            format!("cannot list containers: {}", mesh_support::error_chain(&error)),
            "see Docker's log",
        ),
        Ok(keys) if keys.is_empty() => Check::ok(name, "not tested: no container is running"),
        Ok(keys) => {
            let opens = |key: &&PathBuf| {
                statfs(key.as_path()).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
            };
            // A container may have stopped since it was listed.
            match keys.iter().find(opens) {
                Some(key) => Check::ok(name, key.display().to_string()),
                None => Check::fail(
                    name,
                    format!("{} is not a network namespace here", keys[0].display()),
                    remedy,
                ),
            }
        }
    }
}

async fn sandbox_keys(docker: &Docker) -> Result<Vec<PathBuf>, DockerError> {
    /// More than one, as a container may stop at any moment.
    const TRIES: usize = 3;
    let containers: Vec<ContainerSummary> = docker.get("/containers/json").await?;
    let mut keys = Vec::new();
    for container in containers.iter().take(TRIES) {
        let found: Result<ContainerDetail, _> =
            docker.get(&format!("/containers/{}/json", container.id)).await;
        let Ok(detail) = found else { continue };
        let key = detail.network_settings.sandbox_key;
        // Containers on the host's network have no namespace of their own.
        if !key.as_os_str().is_empty() && !key.ends_with("default") {
            keys.push(key);
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, key: &str) {
        let pair = rcgen::generate_simple_self_signed(vec!["swarm-worker".to_owned()]).unwrap();
        let certificate = pair.cert.pem();
        for file in ["swarm-node.crt", "swarm-root-ca.crt"] {
            fs::write(folder.join(file), &certificate).unwrap();
        }
        fs::write(folder.join("swarm-node.key"), key).unwrap();
    }

    #[test]
    fn a_node_is_either_in_a_swarm_or_runs_the_orchestrator() {
        let outcome = |orchestrator, state: &str| membership(orchestrator, state, false).outcome;
        assert_eq!(outcome(false, "active"), Outcome::Ok);
        assert_eq!(outcome(false, "inactive"), Outcome::Fail);
        assert_eq!(outcome(true, "inactive"), Outcome::Ok);
        assert_eq!(outcome(true, "active"), Outcome::Fail);
        assert_eq!(outcome(true, "locked"), Outcome::Fail);
    }

    #[test]
    fn readable_valid_certificates_pass() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "-----BEGIN EC PRIVATE KEY-----");
        let check = certificates(folder.path());
        assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_unlocked_is_reported_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        let check = certificates(folder.path());
        assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
        let check = usable(check, folder.path(), &Docker::new("/nonexistent/docker.sock")).await;
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.detail.contains("autolock"), "{}", check.detail);
        assert!(check.remedy.contains("docker swarm unlock"));
        assert!(!check.detail.contains("c2VjcmV0"));
    }

    #[test]
    fn missing_certificates_name_the_file_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let check = certificates(folder.path());
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.detail.contains("swarm-node.crt"), "{}", check.detail);
        assert!(check.remedy.contains("--docker-root"));
    }
}
