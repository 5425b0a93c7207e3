//! A real etcd cluster on loopback: three members, TLS between them and towards clients.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mesh_orchestrator::store::etcd::{EtcdConfig, EtcdTls};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

/// How long a cluster may take to come up.
const BOOT: Duration = Duration::from_secs(60);

/// The cluster that stories share which do it no harm; made when the first asks.
pub(crate) type Shared = Arc<Mutex<Option<Arc<Cluster>>>>;

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "etcd-ca");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    fn sign(&self, name: &str) -> Result<(String, String)> {
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A client's certificate; the servers' must be signed by `servers`.
    pub(crate) fn client(&self, servers: &Self) -> Result<EtcdTls> {
        let (certificate, key) = self.sign("mesh")?;
        Ok(EtcdTls {
            authority: servers.issuer.pem().into_bytes(),
            certificate: certificate.into_bytes(),
            key: key.into_bytes().into(),
        })
    }
}

/// Ports that nobody has, and that the kernel gives nobody as the near end of a connection: a member that is
/// killed must have its own again.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    const FIRST: usize = 20_000;
    const LAST: usize = 32_000;
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 97;
    let mut held = Vec::new();
    for _ in FIRST..LAST {
        let number = (start + TRIED.fetch_add(1, Ordering::Relaxed)) % (LAST - FIRST);
        let port = u16::try_from(FIRST + number)?;
        held.extend(TcpListener::bind(("127.0.0.1", port)).map(|listener| (port, listener)));
        if held.len() == count {
            return Ok(held.into_iter().map(|(port, _)| port).collect());
        }
    }
    bail!("there are no {count} free ports from {FIRST} to {LAST}")
}

struct Member {
    client_url: String,
    peer_url: String,
    child: Mutex<Option<Child>>,
}

/// Three members; killed when dropped.
pub(crate) struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    pub(crate) authority: Authority,
    client: EtcdTls,
}

impl Cluster {
    /// The shared one.
    pub(crate) fn shared(shared: &Shared) -> Result<Arc<Self>> {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some(cluster) => Ok(Arc::clone(cluster)),
            None => Ok(Arc::clone(shared.insert(Arc::new(Self::start()?)))),
        }
    }

    pub(crate) fn start() -> Result<Self> {
        let authority = Authority::new()?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("ca.pem"), authority.issuer.pem())?;
        let (certificate, key) = authority.sign("etcd")?;
        fs::write(folder.path().join("server.pem"), certificate)?;
        fs::write(folder.path().join("server.key"), key)?;
        let client = authority.client(&authority)?;
        fs::write(folder.path().join("client.pem"), &client.certificate)?;
        fs::write(folder.path().join("client.key"), client.key.as_slice())?;
        let ports = free_ports(6)?;
        let members = ports
            .chunks(2)
            .map(|ports| Member {
                client_url: format!("https://127.0.0.1:{}", ports[0]),
                peer_url: format!("https://127.0.0.1:{}", ports[1]),
                child: Mutex::default(),
            })
            .collect();
        let cluster = Self {
            folder,
            members,
            authority,
            client,
        };
        for number in 0..3 {
            cluster.start_member(number)?;
        }
        cluster.wait_for_health()?;
        Ok(cluster)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a member, for the first time or again with what it has on its disk.
    pub(crate) fn start_member(&self, number: usize) -> Result<()> {
        let member = &self.members[number];
        let name = format!("member{number}");
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("member{number}={}", member.peer_url))
            .collect();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file(&format!("{name}.log")))?;
        let child = Command::new("etcd")
            .args(["--name", &name, "--initial-cluster", &peers.join(",")])
            .args([
                "--initial-cluster-state",
                "new",
                "--initial-cluster-token",
                "mesh-test",
            ])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000"])
            .args(["--listen-client-urls", &member.client_url])
            .args(["--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url])
            .args(["--initial-advertise-peer-urls", &member.peer_url])
            .args(["--client-cert-auth", "--peer-client-cert-auth"])
            .args(["--logger", "zap"])
            .arg("--data-dir")
            .arg(self.file(&name))
            .args(
                ["--trusted-ca-file", "--peer-trusted-ca-file"]
                    .map(Path::new)
                    .into_iter()
                    .flat_map(|option| [option.to_owned(), self.file("ca.pem")]),
            )
            .args(
                ["--cert-file", "--peer-cert-file"]
                    .map(Path::new)
                    .into_iter()
                    .flat_map(|option| [option.to_owned(), self.file("server.pem")]),
            )
            .args(
                ["--key-file", "--peer-key-file"]
                    .map(Path::new)
                    .into_iter()
                    .flat_map(|option| [option.to_owned(), self.file("server.key")]),
            )
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("could not start etcd; `cargo xtask setup` installs it")?;
        *member.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Kills a member, as a lost machine would be.
    pub(crate) fn kill_member(&self, number: usize) -> Result<()> {
        let child = self.members[number]
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut child = child.context("the member does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops a member without a word, as a cut cable would, or lets it go on.
    pub(crate) fn freeze_member(&self, number: usize, frozen: bool) -> Result<()> {
        let child = self.members[number]
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let id = child.as_ref().context("the member does not run")?.id();
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(i32::try_from(id)?), signal)?;
        Ok(())
    }

    /// The number of the member that leads.
    pub(crate) fn leader(&self) -> Result<usize> {
        let output = self
            .control(&["endpoint", "status", "--write-out", "json"])
            .output()
            .context("could not run etcdctl; `cargo xtask setup` installs it")?;
        let statuses: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        for status in statuses.as_array().into_iter().flatten() {
            let id = &status["Status"]["header"]["member_id"];
            if *id == status["Status"]["leader"] {
                let url = status["Endpoint"].as_str().unwrap_or_default();
                return self
                    .members
                    .iter()
                    .position(|member| member.client_url == url)
                    .context("an unknown member leads");
            }
        }
        bail!("nobody leads: {statuses}")
    }

    fn control(&self, arguments: &[&str]) -> Command {
        let endpoints: Vec<&str> = self
            .members
            .iter()
            .map(|member| member.client_url.as_str())
            .collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(endpoints.join(","))
            .arg("--cacert")
            .arg(self.file("ca.pem"))
            .arg("--cert")
            .arg(self.file("client.pem"))
            .arg("--key")
            .arg(self.file("client.key"))
            .args(arguments);
        command
    }

    pub(crate) fn wait_for_health(&self) -> Result<()> {
        let end = Instant::now() + BOOT;
        loop {
            let output = self
                .control(&["endpoint", "health"])
                .output()
                .context("could not run etcdctl; `cargo xtask setup` installs it")?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.file("member0.log")).unwrap_or_default();
                bail!(
                    "etcd does not come up: {}\n{log}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How to reach it, below a root of one's own.
    pub(crate) fn config(&self, root: &str) -> EtcdConfig {
        let endpoints = self
            .members
            .iter()
            .map(|member| member.client_url.clone())
            .collect();
        EtcdConfig {
            root: root.to_owned(),
            ..EtcdConfig::new(endpoints, Some(self.client.clone()))
        }
    }

    /// The folder with `ca.pem`, `client.pem` and `client.key`.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &self.members {
            let child = member.child.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
