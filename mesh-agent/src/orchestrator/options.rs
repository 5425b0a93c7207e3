//! The flags of `mesh-agent run --orchestrator`: this node's properties, and where the cluster's objects are
//! stored. Opens no port and reads no file.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use mesh_orchestrator::spec::duration;

/// The shortest heartbeat: etcd's leases last whole seconds, at least two.
pub(super) const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
/// The longest heartbeat.
pub(super) const MAX_HEARTBEAT: Duration = Duration::from_secs(300);
/// Heartbeats that a node may miss before it is down.
pub(super) const MISSED_HEARTBEATS: u32 = 3;
/// Longer drains only delay updates.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(600);

/// How the orchestrator runs on this node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Orchestrator")]
pub struct OrchestratorOptions {
    /// Schedule tasks without Swarm: run services on this node, as leader or follower of a cluster. Refused
    /// on a node that is in a Swarm.
    #[arg(long, env = "MESH_ORCHESTRATOR")]
    pub orchestrator: bool,

    /// Folder for this node's state: its id, the key of its secrets, backups, agent programs.
    #[arg(
        long,
        env = "MESH_STATE_DIR",
        value_name = "PATH",
        default_value = "/var/lib/mesh"
    )]
    pub state_dir: PathBuf,

    /// File with the cluster's objects, for a single node [default: orchestrator.redb in --state-dir].
    #[arg(long, env = "MESH_STORE", value_name = "PATH", conflicts_with = "etcd")]
    pub store: Option<PathBuf>,

    /// Client URLs of the etcd cluster with the cluster's objects, for several nodes; comma-separated.
    #[arg(long, env = "MESH_ETCD", value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,

    /// PEM file with the certificate authorities of etcd.
    #[arg(
        long,
        env = "MESH_ETCD_CA",
        value_name = "PATH",
        requires = "etcd_certificate"
    )]
    pub etcd_ca: Option<PathBuf>,

    /// PEM file with this node's client certificate for etcd.
    #[arg(
        long,
        env = "MESH_ETCD_CERTIFICATE",
        value_name = "PATH",
        requires = "etcd_key"
    )]
    pub etcd_certificate: Option<PathBuf>,

    /// PEM file of that certificate's key.
    #[arg(long, env = "MESH_ETCD_KEY", value_name = "PATH", requires = "etcd_ca")]
    pub etcd_key: Option<PathBuf>,

    /// Managers of this node, HOST:PORT of their agents (--feed-port), comma-separated: it is a worker
    /// without access to the store, whose name is in its certificate, and which `meshctl node admit` has
    /// admitted.
    #[arg(
        long,
        env = "MESH_MANAGERS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = manager,
        requires_all = ["orchestrator", "agents_ca"],
        conflicts_with_all = ["etcd", "store", "api_listen", "workers_ca", "secrets_key", "node_name", "node_labels"]
    )]
    pub managers: Vec<String>,

    /// PEM file with the authorities of the certificates of agents with access to the store [default:
    /// --etcd-ca].
    #[arg(
        long,
        env = "MESH_AGENTS_CA",
        value_name = "PATH",
        requires = "agents_certificate"
    )]
    pub agents_ca: Option<PathBuf>,

    /// PEM file with the certificate that this node's agent shows other agents [default: --etcd-certificate].
    #[arg(
        long,
        env = "MESH_AGENTS_CERTIFICATE",
        value_name = "PATH",
        requires = "agents_key"
    )]
    pub agents_certificate: Option<PathBuf>,

    /// PEM file of that certificate's key [default: --etcd-key].
    #[arg(long, env = "MESH_AGENTS_KEY", value_name = "PATH", requires = "agents_ca")]
    pub agents_key: Option<PathBuf>,

    /// PEM file with the authorities of workers' certificates, which must not be etcd's: this manager serves
    /// workers without access to the store.
    #[arg(long, env = "MESH_WORKERS_CA", value_name = "PATH", requires = "orchestrator")]
    pub workers_ca: Option<PathBuf>,

    /// This node's name [default: the engine's host name].
    #[arg(long, env = "MESH_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,

    /// The IPv4 address at which other nodes reach this one [default: the source address of its default
    /// route].
    #[arg(long, env = "MESH_NODE_ADDRESS", value_name = "IPV4")]
    pub node_address: Option<Ipv4Addr>,

    /// Whether this node may become the cluster's leader [default: manager, with --managers worker].
    #[arg(long, env = "MESH_NODE_ROLE", value_name = "ROLE")]
    pub node_role: Option<Role>,

    /// A label for this node when it joins, NAME=VALUE; repeatable or comma-separated.
    #[arg(
        long = "node-label",
        env = "MESH_NODE_LABELS",
        value_name = "LABEL",
        value_delimiter = ',',
        value_parser = label
    )]
    pub node_labels: Vec<(String, String)>,

    /// Time between heartbeats; a node that misses three is down. Must be the same on every node.
    #[arg(long, env = "MESH_HEARTBEAT", value_name = "TIME", default_value = "5s", value_parser = heartbeat)]
    pub heartbeat: Duration,

    /// How long a stopping replica may keep its open connections before it gets its stop signal.
    #[arg(long, env = "MESH_DRAIN_TIME", value_name = "TIME", default_value = "5s", value_parser = drain_time)]
    pub drain_time: Duration,

    /// Folder for the files of containers' secrets and configs; must be on a tmpfs.
    #[arg(
        long,
        env = "MESH_TASK_FILES",
        value_name = "PATH",
        default_value = "/run/mesh/tasks"
    )]
    pub task_files: PathBuf,

    /// File with the key that encrypts secrets [default: secrets.key in --state-dir].
    #[arg(long, env = "MESH_SECRETS_KEY", value_name = "PATH")]
    pub secrets_key: Option<PathBuf>,

    /// Address and port of the HTTP API for external tools, with TLS and tokens; the admin socket always
    /// serves it.
    #[arg(
        long,
        env = "MESH_API_LISTEN",
        value_name = "ADDRESS:PORT",
        requires = "api_certificate"
    )]
    pub api_listen: Option<SocketAddr>,

    /// PEM file with the HTTP API's certificate.
    #[arg(long, env = "MESH_API_CERTIFICATE", value_name = "PATH", requires = "api_key")]
    pub api_certificate: Option<PathBuf>,

    /// PEM file of that certificate's key.
    #[arg(long, env = "MESH_API_KEY", value_name = "PATH", requires = "api_listen")]
    pub api_key: Option<PathBuf>,

    /// Base of webhook URLs [default: https:// and --api-listen, with the node's address in place of
    /// 0.0.0.0].
    #[arg(long, env = "MESH_API_URL", value_name = "URL")]
    pub api_url: Option<String>,

    /// Folder for a manager's hourly backups [default: backups in --state-dir].
    #[arg(long, alias = "snapshots", env = "MESH_BACKUPS", value_name = "PATH")]
    pub backups: Option<PathBuf>,
}

/// PEM files for mutual TLS between this node and etcd, or other agents.
#[derive(Clone, Copy, Debug)]
pub(super) struct TlsPaths<'a> {
    /// The certificate authorities of etcd, or of the other agents.
    pub(super) authority: &'a Path,
    /// This node's certificate.
    pub(super) certificate: &'a Path,
    /// That certificate's key.
    pub(super) key: &'a Path,
}

/// This node's role in the cluster; `--node-role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// May become the leader.
    #[default]
    Manager,
    /// Only runs tasks.
    Worker,
}

impl OrchestratorOptions {
    /// The file with a single node's objects.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        let default = || self.state_dir.join("orchestrator.redb");
        self.store.clone().unwrap_or_else(default)
    }

    /// The files for TLS with etcd; all three or none.
    pub(super) fn etcd_tls(&self) -> Option<TlsPaths<'_>> {
        Some(TlsPaths {
            authority: self.etcd_ca.as_deref()?,
            certificate: self.etcd_certificate.as_deref()?,
            key: self.etcd_key.as_deref()?,
        })
    }

    /// The files for TLS with other agents; all three or none.
    pub(super) fn agents_tls(&self) -> Option<TlsPaths<'_>> {
        let own = || {
            Some(TlsPaths {
                authority: self.agents_ca.as_deref()?,
                certificate: self.agents_certificate.as_deref()?,
                key: self.agents_key.as_deref()?,
            })
        };
        own().or_else(|| self.etcd_tls())
    }

    /// The flags that were given and have no effect on a worker without access to the store. Those that clap
    /// refuses together with `--managers` are not among them.
    pub(super) fn without_effect(&self) -> Vec<&'static str> {
        if !self.is_worker() {
            return Vec::new();
        }
        [
            (self.node_role == Some(Role::Manager), "--node-role manager"),
            (self.backups.is_some(), "--backups"),
            (self.api_url.is_some(), "--api-url"),
            (self.etcd_ca.is_some(), "--etcd-ca"),
            (self.etcd_certificate.is_some(), "--etcd-certificate"),
            (self.etcd_key.is_some(), "--etcd-key"),
        ]
        .into_iter()
        .filter_map(|(is_given, flag)| is_given.then_some(flag))
        .collect()
    }

    /// Whether this node is a worker without access to the store.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        !self.managers.is_empty()
    }

    /// The base of webhook URLs; `None` if the API has no port. One that listens on all addresses is
    /// reached at the node's.
    #[must_use]
    pub fn public_url(&self, node: Ipv4Addr) -> Option<String> {
        let listen = || {
            let mut at = self.api_listen?;
            if at.ip().is_unspecified() {
                at.set_ip(node.into());
            }
            Some(format!("https://{at}"))
        };
        self.api_url.clone().or_else(listen)
    }

    /// The file with the key of the secrets.
    #[must_use]
    pub fn secrets_key_path(&self) -> PathBuf {
        let default = || self.state_dir.join("secrets.key");
        self.secrets_key.clone().unwrap_or_else(default)
    }

    /// The folder of agent programs.
    #[must_use]
    pub fn programs_path(&self) -> PathBuf {
        self.state_dir.join("agent")
    }

    /// The folder of backups.
    #[must_use]
    pub fn backups_path(&self) -> PathBuf {
        let default = || self.state_dir.join("backups");
        self.backups.clone().unwrap_or_else(default)
    }
}

fn node_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a node's name has 1 to 63 letters, digits, '-', '_' and '.'".to_owned())
    }
}

fn manager(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        _ => Err("expected HOST:PORT".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    duration::parse(text).and_then(|time| {
        if (MIN_HEARTBEAT..=MAX_HEARTBEAT).contains(&time) {
            Ok(time)
        } else {
            Err("expected 500ms to 5m".to_owned())
        }
    })
}

fn drain_time(text: &str) -> Result<Duration, String> {
    duration::parse(text).and_then(|time| {
        if time <= MAX_DRAIN_TIME {
            Ok(time)
        } else {
            Err("expected 0s to 10m".to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: OrchestratorOptions,
    }

    fn parse(arguments: &[&str]) -> Result<OrchestratorOptions, clap::Error> {
        let line = std::iter::once("mesh-agent").chain(arguments.iter().copied());
        CommandLine::try_parse_from(line).map(|line| line.options)
    }

    #[test]
    fn a_webhook_has_an_address_that_others_can_reach() {
        let node = Ipv4Addr::new(10, 0, 0, 7);
        let url = |listen: &str, more: &[&str]| {
            let certificate = ["--api-certificate", "c.pem", "--api-key", "k.pem"];
            let arguments = [
                &["--orchestrator", "--api-listen", listen],
                &certificate[..],
                more,
            ]
            .concat();
            parse(&arguments).unwrap().public_url(node)
        };
        assert_eq!(url("0.0.0.0:9470", &[]).as_deref(), Some("https://10.0.0.7:9470"));
        assert_eq!(
            url("10.9.9.9:9470", &[]).as_deref(),
            Some("https://10.9.9.9:9470")
        );
        let named = ["--api-url", "https://mesh.example"];
        assert_eq!(
            url("0.0.0.0:9470", &named).as_deref(),
            Some("https://mesh.example")
        );
        assert_eq!(parse(&["--orchestrator"]).unwrap().public_url(node), None);
    }

    #[test]
    fn every_path_defaults_to_the_state_folder() {
        let options = parse(&["--orchestrator", "--state-dir", "/srv/mesh"]).unwrap();
        assert!(options.orchestrator);
        assert_eq!(options.store_path(), PathBuf::from("/srv/mesh/orchestrator.redb"));
        assert_eq!(options.secrets_key_path(), PathBuf::from("/srv/mesh/secrets.key"));
        assert_eq!(options.backups_path(), PathBuf::from("/srv/mesh/backups"));
        assert_eq!(options.node_role, None);
        assert_eq!(options.drain_time, Duration::from_secs(5));
    }

    #[test]
    fn lists_are_parsed() {
        let options = parse(&[
            "--etcd=https://10.0.0.1:2379,https://10.0.0.2:2379",
            "--node-label",
            "zone=a,disk=",
        ])
        .unwrap();
        assert_eq!(options.etcd.len(), 2);
        assert_eq!(options.node_labels[1], ("disk".to_owned(), String::new()));
    }

    #[test]
    fn a_worker_has_managers_and_certificates_and_neither_store_nor_labels() {
        let tls = [
            "--agents-ca",
            "/ca",
            "--agents-certificate",
            "/c",
            "--agents-key",
            "/k",
        ];
        let worker = |managers: &str, more: &[&str]| {
            parse(&[&["--orchestrator", "--managers", managers], &tls[..], more].concat())
        };
        let options = worker("10.0.0.1:9468,manager2:9468", &[]).unwrap();
        assert!(options.is_worker() && options.managers.len() == 2);
        assert!(options.agents_tls().is_some() && options.etcd_tls().is_none());
        assert!(worker("10.0.0.1", &[]).is_err());
        // Without it the agent would wait for a Swarm.
        assert!(parse(&[&["--managers", "10.0.0.1:9468"], &tls[..]].concat()).is_err());
        assert!(parse(&["--workers-ca", "/ca"]).is_err());
        for more in [
            ["--etcd", "http://x:1"],
            ["--store", "/a"],
            ["--node-label", "a=b"],
            ["--node-name", "a"],
            ["--workers-ca", "/ca"],
            ["--secrets-key", "/key"],
        ] {
            assert!(worker("10.0.0.1:9468", &more).is_err(), "{more:?}");
        }
        let without_effect = |more: &[&str]| worker("10.0.0.1:9468", more).unwrap().without_effect();
        assert_eq!(without_effect(&["--node-role", "worker"]), [""; 0]);
        assert_eq!(
            without_effect(&["--node-role", "manager"]),
            ["--node-role manager"]
        );
        let given = ["--backups", "/b", "--api-url", "https://x"];
        assert_eq!(without_effect(&given), ["--backups", "--api-url"]);
        let etcd = ["--etcd-ca", "/ca", "--etcd-certificate", "/c", "--etcd-key", "/k"];
        assert_eq!(
            without_effect(&etcd),
            ["--etcd-ca", "--etcd-certificate", "--etcd-key"]
        );
        let manager = parse(&[&["--orchestrator"], &given[..]].concat()).unwrap();
        assert_eq!(manager.without_effect(), [""; 0]);
    }

    #[test]
    fn invalid_values_and_combinations_are_refused() {
        for arguments in [
            &["--store", "/a", "--etcd", "http://x:1"][..],
            &["--etcd", "http://x:1", "--etcd-ca", "/ca"],
            &["--node-label", "zone"],
            &["--api-listen", "127.0.0.1:1"],
            &["--node-name", "a b"],
            &["--heartbeat", "1ms"],
            &["--drain-time", "1h"],
            &["--node-role", "king"],
            &["--managers", "10.0.0.1:9468"],
            &["--agents-ca", "/ca"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
