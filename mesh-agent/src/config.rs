//! The settings of `mesh-agent run`: its flags, their environment variables and defaults; `file` is the file
//! that completes them. Imports the model, the data path's choices and the orchestrator's options; binds no
//! port.

mod file;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, ValueEnum};

pub use file::{ConfigError, ConfigFlag, Reloader, Settings};

#[cfg(feature = "orchestrator")]
use crate::orchestrator::OrchestratorOptions;
use crate::{
    datapath::{DatapathChoice, TcChoice, XdpChoice},
    model::{PolicyRule, ReturnMode},
};

/// The default of `--geneve-port`.
pub const DEFAULT_GENEVE_PORT: u16 = 6081;
/// The default of `--feed-port`.
pub const DEFAULT_FEED_PORT: u16 = 9468;
/// The smallest flow table that makes sense, and the largest that kernel memory should be used for.
const FLOW_CAPACITY: std::ops::RangeInclusive<u32> = 1024..=16_777_216;
/// The kernel's limit for an interface name.
const INTERFACE_NAME_BYTES: usize = 15;

/// The options of `mesh-agent run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Docker's Unix socket.
    #[arg(
        long,
        env = "MESH_DOCKER_SOCKET",
        value_name = "PATH",
        default_value = "/var/run/docker.sock",
        help_heading = "Docker"
    )]
    pub docker_socket: PathBuf,

    /// Docker's data root as this process sees it, which contains Swarm's node certificates
    /// [default: as reported by `docker info`].
    #[arg(long, env = "MESH_DOCKER_ROOT", value_name = "PATH", help_heading = "Docker")]
    pub docker_root: Option<PathBuf>,

    /// Another interface on which traffic from outside arrives; repeatable, or a comma-separated list. Always
    /// used are the interfaces of the default routes, of the node's Swarm address and of the routes to the
    /// other nodes.
    #[arg(
        long = "uplink",
        env = "MESH_UPLINK",
        value_name = "INTERFACE",
        value_delimiter = ',',
        value_parser = interface_name,
        help_heading = "Data path"
    )]
    pub uplinks: Vec<String>,

    /// How replies from a replica on another node reach the client: through the node that the client
    /// connected to, or directly from the replica's node.
    #[arg(
        long,
        env = "MESH_RETURN_MODE",
        value_name = "MODE",
        default_value = "tunnel",
        help_heading = "Data path"
    )]
    pub return_mode: ReturnMode,

    /// What forwards the traffic: eBPF, the kernel's IPVS, or the best of them that works on this node.
    #[arg(
        long,
        env = "MESH_DATAPATH",
        value_name = "KIND",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub datapath: DatapathChoice,

    /// XDP hook to use on the uplinks.
    #[arg(
        long,
        env = "MESH_XDP",
        value_name = "HOOK",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub xdp: XdpChoice,

    /// Kind of tc hook to use.
    #[arg(
        long,
        env = "MESH_TC",
        value_name = "HOOK",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub tc: TcChoice,

    /// UDP port for encapsulated packets between nodes; must be the same on every node.
    #[arg(long, env = "MESH_GENEVE_PORT", value_name = "PORT", default_value_t = DEFAULT_GENEVE_PORT,
          value_parser = clap::value_parser!(u16).range(1..), help_heading = "Data path")]
    pub geneve_port: u16,

    /// Address to which connections of local processes to published ports are redirected; must not be used
    /// for anything else.
    #[arg(
        long,
        env = "MESH_SERVICE_ADDRESS",
        value_name = "IPV4",
        default_value = "169.254.96.1",
        value_parser = service_address,
        help_heading = "Data path"
    )]
    pub service_address: Ipv4Addr,

    /// Number of open connections that the flow table holds (one to a replica of the same node counts twice);
    /// when it is full, those that have been idle for longest make room.
    #[arg(
        long,
        env = "MESH_FLOW_CAPACITY",
        value_name = "FLOWS",
        default_value_t = 262_144,
        value_parser = flow_capacity,
        help_heading = "Data path"
    )]
    pub flow_capacity: u32,

    /// New connections to a published port per second past which a node keeps no flow entries for them until
    /// they are open, so that a flood pushes out none of those that are about to open (eBPF); 0 for never. If
    /// not given, an eighth of the flow capacity.
    #[arg(
        long,
        env = "MESH_FLOOD_LIMIT",
        value_name = "CONNECTIONS",
        help_heading = "Data path"
    )]
    pub flood_limit: Option<u32>,

    /// Mount point of the bpf file system; what outlives the agent is pinned in its folder `mesh`.
    #[arg(
        long,
        env = "MESH_BPFFS",
        value_name = "PATH",
        default_value = "/sys/fs/bpf",
        help_heading = "Data path"
    )]
    pub bpffs: PathBuf,

    /// The cgroup2 hierarchy whose processes can reach published ports on this node's own addresses
    /// [default: the first cgroup2 in the mount table].
    #[arg(long, env = "MESH_CGROUP", value_name = "PATH", help_heading = "Data path")]
    pub cgroup: Option<PathBuf>,

    /// Folder of the kernel's settings, some of which are changed while IPVS is used. In a container, where
    /// /proc/sys is read-only, pass a mount of the host's.
    #[arg(
        long,
        env = "MESH_SYSCTLS",
        value_name = "PATH",
        default_value = "/proc/sys",
        help_heading = "Data path"
    )]
    pub sysctls: PathBuf,

    /// What happens to the data path when the agent is stopped. It must outlive an agent that is restarted or
    /// updated; `mesh-agent clean` removes it afterwards.
    #[arg(
        long,
        env = "MESH_ON_STOP",
        value_name = "WHAT",
        default_value = "keep",
        help_heading = "Data path"
    )]
    pub on_stop: OnStop,

    /// What becomes of the rules that the node's operator has in the chain DOCKER-USER: they are translated,
    /// or published ports are open whatever they say.
    #[arg(
        long,
        env = "MESH_HOST_FIREWALL",
        value_name = "WHAT",
        default_value = "translate",
        help_heading = "Data path"
    )]
    pub host_firewall: HostFirewall,

    /// Whether published ports are answered at the node's IPv6 addresses: unless the host's rules for IPv6,
    /// which the mesh's packets do not pass, restrict what comes in; whatever they are; or never.
    #[arg(
        long,
        env = "MESH_IPV6",
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub ipv6: Ipv6,

    /// A rule on who may come in to the published ports of this node, whatever service has them, such as
    /// `allow 443/tcp` or `deny any from any on eth0`; repeatable, or a list separated by semicolons. The
    /// first rule that is about a packet decides.
    #[arg(
        long,
        env = "MESH_POLICY",
        value_name = "RULE",
        value_delimiter = ';',
        help_heading = "Data path"
    )]
    pub policy: Vec<PolicyRule>,

    /// TCP port on which managers' agents serve workers' agents; must be the same on every node.
    #[arg(long, env = "MESH_FEED_PORT", value_name = "PORT", default_value_t = DEFAULT_FEED_PORT,
          value_parser = clap::value_parser!(u16).range(1..), help_heading = "Control plane")]
    pub feed_port: u16,

    /// IPv4 address on which a manager's agent listens for the other nodes' agents, where the node's Swarm
    /// address is not one of its own: behind NAT, 0.0.0.0 [default: the node's Swarm address].
    #[arg(
        long,
        env = "MESH_FEED_LISTEN",
        value_name = "IPV4",
        help_heading = "Control plane"
    )]
    pub feed_listen: Option<Ipv4Addr>,

    /// IPv4 address to which other nodes send their packets for this one, in a Swarm that keeps data apart
    /// from control [default: Swarm's --data-path-addr if its settings can be read, otherwise the node's
    /// Swarm address].
    #[arg(
        long,
        env = "MESH_DATA_PATH_ADDRESS",
        value_name = "IPV4",
        value_parser = data_path_address,
        help_heading = "Control plane"
    )]
    pub data_path_address: Option<Ipv4Addr>,

    /// Unix socket for meshctl, created with mode 0600.
    #[arg(
        long,
        env = "MESH_ADMIN_SOCKET",
        value_name = "PATH",
        default_value = "/run/mesh/admin.sock",
        help_heading = "Observation"
    )]
    pub admin_socket: PathBuf,

    /// Address and port to serve Prometheus metrics on, or `off`.
    #[arg(
        long,
        env = "MESH_METRICS_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9469",
        value_parser = metrics_listen,
        help_heading = "Observation"
    )]
    pub metrics_listen: MetricsListen,

    /// Whether to export metrics for each backend in addition to those for each service.
    #[arg(long, env = "MESH_BACKEND_METRICS", value_name = "BOOL", default_value_t = true,
          action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true",
          help_heading = "Observation")]
    pub backend_metrics: bool,

    /// Format of the log.
    #[arg(
        long,
        env = "MESH_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Observation"
    )]
    pub log_format: LogFormat,

    /// Log level: error, warn, info, debug or trace, or a comma-separated list of module=level.
    #[arg(
        long,
        env = "MESH_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = log_level,
        help_heading = "Observation"
    )]
    pub log_level: String,

    /// Whether and how tasks are scheduled without Swarm.
    #[cfg(feature = "orchestrator")]
    #[command(flatten)]
    pub orchestrator: OrchestratorOptions,

    /// Not available: this program was built without the orchestrator.
    #[cfg(not(feature = "orchestrator"))]
    #[arg(
        long = "orchestrator",
        env = "MESH_ORCHESTRATOR",
        help_heading = "Orchestrator"
    )]
    wants_orchestrator: bool,
}

impl RunOptions {
    /// Whether the orchestrator is to schedule this node's tasks, instead of Swarm.
    #[must_use]
    pub fn wants_orchestrator(&self) -> bool {
        #[cfg(feature = "orchestrator")]
        let wanted = self.orchestrator.orchestrator;
        #[cfg(not(feature = "orchestrator"))]
        let wanted = self.wants_orchestrator;
        wanted
    }

    /// The folder of the agent's programs; only the orchestrator replaces the agent.
    #[cfg(feature = "orchestrator")]
    #[must_use]
    pub fn programs_path(&self) -> Option<PathBuf> {
        self.wants_orchestrator()
            .then(|| self.orchestrator.programs_path())
    }
}

/// What happens to the data path when the agent is stopped; `--on-stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnStop {
    /// Leave it in the kernel, where it keeps forwarding; the next agent adopts it.
    #[default]
    Keep,
    /// Remove it; Docker's own mesh takes over again.
    Detach,
}

/// What becomes of the host's own firewall; `--host-firewall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HostFirewall {
    /// The rules of DOCKER-USER hold for published ports; a port that a rule is about which the mesh cannot
    /// express is left to Docker's own mesh.
    #[default]
    Translate,
    /// They do not.
    Ignore,
}

/// Whether IPv6 is served; `--ipv6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    /// Unless the host's rules for IPv6 restrict what comes in.
    #[default]
    Auto,
    /// Whatever those rules are.
    On,
    /// Never.
    Off,
}

/// Format of the log; `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where to serve metrics; `--metrics-listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsListen {
    /// Nowhere.
    Off,
    /// Over plain HTTP at this address.
    At(SocketAddr),
}

fn metrics_listen(text: &str) -> Result<MetricsListen, String> {
    if text == "off" {
        return Ok(MetricsListen::Off);
    }
    text.parse()
        .map(MetricsListen::At)
        .map_err(|_| "expected an address and port such as 127.0.0.1:9469, or off".to_owned())
}

fn interface_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    if (1..=INTERFACE_NAME_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && text != "."
        && text != ".."
    {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "an interface name has 1 to {INTERFACE_NAME_BYTES} characters, without blanks, '/' and ':'"
        ))
    }
}

fn service_address(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| "expected an IPv4 address such as 169.254.96.1".to_owned())?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast() {
        return Err("must be a unicast address outside 127.0.0.0/8".to_owned());
    }
    Ok(address)
}

fn data_path_address(text: &str) -> Result<Ipv4Addr, String> {
    service_address(text)
}

fn flow_capacity(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|flows| FLOW_CAPACITY.contains(flows))
        .ok_or_else(|| {
            format!(
                "expected a number from {} to {}",
                FLOW_CAPACITY.start(),
                FLOW_CAPACITY.end()
            )
        })
}

fn log_level(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(
            "expected error, warn, info, debug or trace, or a list such as info,mesh_agent::source=debug"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, error::ErrorKind};

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: RunOptions,
    }

    fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
        let line = std::iter::once("mesh-agent").chain(arguments.iter().copied());
        CommandLine::try_parse_from(line).map(|line| line.options)
    }

    #[test]
    fn defaults_match_the_help() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.docker_socket, PathBuf::from("/var/run/docker.sock"));
        assert_eq!(options.service_address, Ipv4Addr::new(169, 254, 96, 1));
        assert_eq!(
            options.metrics_listen,
            MetricsListen::At("127.0.0.1:9469".parse().unwrap())
        );
        assert_eq!((options.geneve_port, options.feed_port), (6081, 9468));
        assert_eq!(options.datapath, DatapathChoice::Auto);
        assert_eq!(
            options.on_stop,
            OnStop::Keep,
            "a restart must not interrupt traffic"
        );
        assert!(options.backend_metrics && options.uplinks.is_empty());
        assert_eq!(options.ipv6, Ipv6::Auto);
    }

    #[test]
    fn the_readme_lists_every_setting_with_its_default() {
        let readme = include_str!("../../README.md");
        let command = <RunOptions as Args>::augment_args(clap::Command::new("run"));
        for argument in command.get_arguments() {
            let name = argument.get_long().unwrap();
            let row = readme
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("README.md's table of settings lacks '{name}'"));
            for default in argument.get_default_values() {
                let default = default.to_str().unwrap();
                assert!(row.contains(default), "{name} has the default {default}: {row}");
            }
            let variable = argument.get_env().unwrap().to_str().unwrap();
            let expected = format!("MESH_{}", name.replace('-', "_").to_uppercase());
            assert!(variable == expected || name == "node-label", "{variable}");
        }
    }

    #[test]
    fn lists_and_switches_are_parsed() {
        let options = parse(&[
            "--uplink=eth0,eth1",
            "--uplink",
            "eth2",
            "--backend-metrics",
            "false",
            "--metrics-listen=off",
            "--xdp=generic",
        ])
        .unwrap();
        assert_eq!(options.uplinks, ["eth0", "eth1", "eth2"]);
        assert!(!options.backend_metrics);
        assert_eq!(options.metrics_listen, MetricsListen::Off);
        assert_eq!(options.xdp, XdpChoice::Generic);
    }

    #[test]
    fn a_refusal_names_the_flag_the_value_and_what_is_allowed() {
        for (flag, value, allowed) in [
            ("--metrics-listen", "9469", "127.0.0.1:9469"),
            ("--uplink", "an-interface-too-long", "15 characters"),
            ("--service-address", "127.0.0.9", "unicast"),
            ("--flow-capacity", "12", "1024"),
            ("--geneve-port", "0", "1..=65535"),
            ("--log-level", "a=b=c", "debug"),
            ("--xdp", "fast", "native"),
            ("--datapath", "iptables", "ipvs"),
            ("--return-mode", "nat", "tunnel"),
            ("--ipv6", "yes", "auto"),
            ("--policy", "alow 443", "allow, deny or reject"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue),
                "{text}"
            );
            for part in [flag, value, allowed] {
                assert!(text.contains(part), "'{part}' is missing in: {text}");
            }
        }
    }
}
