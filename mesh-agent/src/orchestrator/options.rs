//! The flags of `mesh-agent run --orchestrator`: what this node is, and where the cluster's objects are.
//! Binds no port and reads no file.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use mesh_orchestrator::spec::duration;

/// The shortest heartbeat: etcd grants leases of whole seconds, two at least.
const MIN_HEARTBEAT: Duration = Duration::from_millis(500);
/// A replica that drains for longer only holds up an update.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(600);

/// How the orchestrator runs on this node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Orchestrator")]
pub struct OrchestratorOptions {
    /// Schedule tasks without Swarm: this agent runs services on this node, and leads the cluster or
    /// follows its leader. Refused on a node that is in a Swarm.
    #[arg(long, env = "MESH_ORCHESTRATOR")]
    pub orchestrator: bool,

    /// Folder of what this node has to remember: its identity, the key of its secrets, snapshots,
    /// the agent's programs.
    #[arg(
        long,
        env = "MESH_STATE_DIR",
        value_name = "PATH",
        default_value = "/var/lib/mesh"
    )]
    pub state_dir: PathBuf,

    /// File of the cluster's objects, for one node alone [default: orchestrator.redb in --state-dir].
    #[arg(long, env = "MESH_STORE", value_name = "PATH", conflicts_with = "etcd")]
    pub store: Option<PathBuf>,

    /// Client URLs of the etcd cluster that holds the cluster's objects, for several nodes; a list with
    /// commas.
    #[arg(long, env = "MESH_ETCD", value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,

    /// PEM file of the authorities that sign etcd's certificates.
    #[arg(
        long,
        env = "MESH_ETCD_CA",
        value_name = "PATH",
        requires = "etcd_certificate"
    )]
    pub etcd_ca: Option<PathBuf>,

    /// PEM file of this node's certificate for etcd.
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

    /// This node's name [default: the engine's host name].
    #[arg(long, env = "MESH_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,

    /// The IPv4 address at which other nodes reach this one [default: the one it sends to the internet
    /// from].
    #[arg(long, env = "MESH_NODE_ADDRESS", value_name = "IPV4")]
    pub node_address: Option<Ipv4Addr>,

    /// Whether this node may lead the cluster.
    #[arg(long, env = "MESH_NODE_ROLE", value_name = "ROLE", default_value = "manager")]
    pub node_role: Role,

    /// A label of a new node, NAME=VALUE; may be given more than once, or as a list with commas.
    #[arg(
        long = "node-label",
        env = "MESH_NODE_LABELS",
        value_name = "LABEL",
        value_delimiter = ',',
        value_parser = label
    )]
    pub node_labels: Vec<(String, String)>,

    /// Time between two signs of life; a node that misses three is down. The same on every node.
    #[arg(long, env = "MESH_HEARTBEAT", value_name = "TIME", default_value = "5s", value_parser = heartbeat)]
    pub heartbeat: Duration,

    /// How long a replica that is to stop may keep its open connections before it gets its stop signal.
    #[arg(long, env = "MESH_DRAIN_TIME", value_name = "TIME", default_value = "5s", value_parser = drain_time)]
    pub drain_time: Duration,

    /// Folder of the files that containers see their secrets and configs in; must be in memory (tmpfs).
    #[arg(
        long,
        env = "MESH_TASK_FILES",
        value_name = "PATH",
        default_value = "/run/mesh/tasks"
    )]
    pub task_files: PathBuf,

    /// File of the key that secrets are encrypted with [default: secrets.key in --state-dir].
    #[arg(long, env = "MESH_SECRETS_KEY", value_name = "PATH")]
    pub secrets_key: Option<PathBuf>,

    /// Address and port of the HTTP API for tools elsewhere, over TLS and with tokens; the admin socket has it
    /// in any case.
    #[arg(
        long,
        env = "MESH_API_LISTEN",
        value_name = "ADDRESS:PORT",
        requires = "api_certificate"
    )]
    pub api_listen: Option<SocketAddr>,

    /// PEM file of the HTTP API's certificate.
    #[arg(long, env = "MESH_API_CERTIFICATE", value_name = "PATH", requires = "api_key")]
    pub api_certificate: Option<PathBuf>,

    /// PEM file of that certificate's key.
    #[arg(long, env = "MESH_API_KEY", value_name = "PATH", requires = "api_listen")]
    pub api_key: Option<PathBuf>,

    /// What webhooks' URLs begin with [default: https:// and --api-listen].
    #[arg(long, env = "MESH_API_URL", value_name = "URL")]
    pub api_url: Option<String>,

    /// Folder of a manager's hourly snapshots [default: snapshots in --state-dir].
    #[arg(long, env = "MESH_SNAPSHOTS", value_name = "PATH")]
    pub snapshots: Option<PathBuf>,
}

/// PEM files by which this node and etcd know each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct EtcdTlsPaths<'a> {
    /// The authorities that sign etcd's certificates.
    pub(super) authority: &'a Path,
    /// This node's certificate.
    pub(super) certificate: &'a Path,
    /// That certificate's key.
    pub(super) key: &'a Path,
}

/// This node's part in the cluster; `--node-role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// May lead the cluster.
    #[default]
    Manager,
    /// Only runs tasks.
    Worker,
}

impl OrchestratorOptions {
    /// Where the objects of a single node are.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        let default = || self.state_dir.join("orchestrator.redb");
        self.store.clone().unwrap_or_else(default)
    }

    /// The files that let this node into etcd, all three or none.
    pub(super) fn etcd_tls(&self) -> Option<EtcdTlsPaths<'_>> {
        Some(EtcdTlsPaths {
            authority: self.etcd_ca.as_deref()?,
            certificate: self.etcd_certificate.as_deref()?,
            key: self.etcd_key.as_deref()?,
        })
    }

    /// What webhooks' URLs begin with; nothing where the API is on no port.
    #[must_use]
    pub fn public_url(&self) -> Option<String> {
        let listen = || Some(format!("https://{}", self.api_listen?));
        self.api_url.clone().or_else(listen)
    }

    /// Where the key of the secrets is.
    #[must_use]
    pub fn secrets_key_path(&self) -> PathBuf {
        let default = || self.state_dir.join("secrets.key");
        self.secrets_key.clone().unwrap_or_else(default)
    }

    /// Where the agent's own programs are.
    #[must_use]
    pub fn programs_path(&self) -> PathBuf {
        self.state_dir.join("agent")
    }

    /// Where snapshots are.
    #[must_use]
    pub fn snapshots_path(&self) -> PathBuf {
        let default = || self.state_dir.join("snapshots");
        self.snapshots.clone().unwrap_or_else(default)
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

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    duration::parse(text).and_then(|time| {
        if (MIN_HEARTBEAT..=Duration::from_secs(300)).contains(&time) {
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
        let words = std::iter::once("mesh-agent").chain(arguments.iter().copied());
        CommandLine::try_parse_from(words).map(|line| line.options)
    }

    #[test]
    fn everything_has_a_place_below_the_state_folder() {
        let options = parse(&["--orchestrator", "--state-dir", "/srv/mesh"]).unwrap();
        assert!(options.orchestrator);
        assert_eq!(options.store_path(), PathBuf::from("/srv/mesh/orchestrator.redb"));
        assert_eq!(options.secrets_key_path(), PathBuf::from("/srv/mesh/secrets.key"));
        assert_eq!(options.snapshots_path(), PathBuf::from("/srv/mesh/snapshots"));
        assert_eq!(options.node_role, Role::Manager);
        assert_eq!(options.drain_time, Duration::from_secs(5));
    }

    #[test]
    fn lists_are_understood() {
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
    fn what_cannot_be_is_refused() {
        for arguments in [
            &["--store", "/a", "--etcd", "http://x:1"][..],
            &["--etcd", "http://x:1", "--etcd-ca", "/ca"],
            &["--node-label", "zone"],
            &["--api-listen", "127.0.0.1:1"],
            &["--node-name", "a b"],
            &["--heartbeat", "1ms"],
            &["--drain-time", "1h"],
            &["--node-role", "king"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
