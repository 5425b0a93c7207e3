//! A real etcd cluster on loopback: three members, with TLS between them and to clients. Needs `etcd` and
//! `etcdctl`.

use std::{
    fmt,
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

/// How long a cluster may take to become healthy.
const BOOT: Duration = Duration::from_secs(60);

/// The cluster shared by the stories that do not stop its members; started for the first that needs it.
pub type Shared = Arc<Mutex<Option<Arc<Cluster>>>>;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Generates one.
    ///
    /// # Errors
    /// When its certificate cannot be generated.
    pub fn new() -> Result<Self> {
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

    /// A client's certificate, which trusts servers signed by `servers`.
    ///
    /// # Errors
    /// When the certificate cannot be generated.
    pub fn client(&self, servers: &Self) -> Result<EtcdTls> {
        let (certificate, key) = self.sign("mesh")?;
        Ok(EtcdTls {
            authority: servers.issuer.pem().into_bytes(),
            certificate: certificate.into_bytes(),
            key: key.into_bytes().into(),
        })
    }
}

/// Free ports outside the kernel's ephemeral range: a killed member must be able to bind its own again.
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
pub struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    /// Who signed the members' and the client's certificates.
    pub authority: Authority,
    client: EtcdTls,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The shared one, started if it is not running yet.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared(shared: &Shared) -> Result<Arc<Self>> {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some(cluster) => Ok(Arc::clone(cluster)),
            None => Ok(Arc::clone(shared.insert(Arc::new(Self::start()?)))),
        }
    }

    /// Starts one and waits until it is healthy.
    ///
    /// # Errors
    /// When etcd cannot be started, or does not become healthy in time.
    pub fn start() -> Result<Self> {
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

    /// Starts a member, for the first time or again with the data on its disk.
    ///
    /// # Errors
    /// When etcd cannot be started.
    pub fn start_member(&self, number: usize) -> Result<()> {
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

    /// Kills a member, as if its machine were lost.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_member(&self, number: usize) -> Result<()> {
        let child = self.members[number]
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut child = child.context("the member is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Freezes a member, as if its cable were cut, or lets it continue.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze_member(&self, number: usize, frozen: bool) -> Result<()> {
        let child = self.members[number]
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let id = child.as_ref().context("the member is not running")?.id();
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(i32::try_from(id)?), signal)?;
        Ok(())
    }

    /// The number of the member that leads.
    ///
    /// # Errors
    /// When there is no leader.
    pub fn leader(&self) -> Result<usize> {
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
        bail!("no member leads: {statuses}")
    }

    /// The size of the largest member's file.
    ///
    /// # Errors
    /// When the members do not say.
    pub fn database_bytes(&self) -> Result<u64> {
        let output = self
            .control(&["endpoint", "status", "--write-out", "json"])
            .output()
            .context("could not run etcdctl; `cargo xtask setup` installs it")?;
        let statuses: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let sizes = statuses.as_array().into_iter().flatten();
        sizes
            .filter_map(|status| status["Status"]["dbSize"].as_u64())
            .max()
            .context("etcd does not say how large it is")
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

    /// Waits until all members are healthy.
    ///
    /// # Errors
    /// When they do not become healthy in time.
    pub fn wait_for_health(&self) -> Result<()> {
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
                    "etcd did not become healthy: {}\n{log}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How to connect to it, with keys below a root.
    #[must_use]
    pub fn config(&self, root: &str) -> EtcdConfig {
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
    #[must_use]
    pub fn folder(&self) -> &Path {
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
