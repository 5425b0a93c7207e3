//! The ports that the mesh, Swarm and the orchestrator use themselves: a service that published one of them
//! would cut nodes off from each other. Pure; from the settings in force.

use crate::{
    config::{MetricsListen, RunOptions},
    docker::EngineInfo,
    model::{Protocol, ReservedPort},
};

/// Where Swarm's managers listen by default.
const SWARM_MANAGERS: u16 = 2377;
/// Where the engines of a Swarm gossip. No flag changes it.
const SWARM_GOSSIP: u16 = 7946;
/// The default of `docker swarm init --data-path-port`.
const SWARM_DATA_PATH: u16 = 4789;

/// The ports of this node that are never frontends. `engine` is the engine's last answer, and
/// `data_path_port` what the cluster's source knows of Swarm's overlay networks.
pub(super) fn reserved_ports(
    options: &RunOptions,
    engine: Option<&EngineInfo>,
    data_path_port: Option<u16>,
) -> Vec<ReservedPort> {
    let mut ports = vec![
        reserved(Protocol::Tcp, options.feed_port, "the mesh's feed (--feed-port)"),
        reserved(
            Protocol::Udp,
            options.geneve_port,
            "the mesh's tunnel between nodes (--geneve-port)",
        ),
    ];
    if let MetricsListen::At(address) = options.metrics_listen {
        ports.push(reserved(
            Protocol::Tcp,
            address.port(),
            "the agent's metrics (--metrics-listen)",
        ));
    }
    if options.wants_orchestrator() {
        #[cfg(feature = "orchestrator")]
        ports.extend(orchestrator_ports(&options.orchestrator));
        return ports;
    }
    let managers = engine
        .map(|engine| engine.manager_ports.clone())
        .unwrap_or_default();
    let managers = if managers.is_empty() {
        [SWARM_MANAGERS].into()
    } else {
        managers
    };
    for port in managers {
        ports.push(reserved(Protocol::Tcp, port, "the managers of the Swarm"));
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        ports.push(reserved(
            protocol,
            SWARM_GOSSIP,
            "the gossip of the Swarm's engines",
        ));
    }
    ports.push(reserved(
        Protocol::Udp,
        data_path_port.unwrap_or(SWARM_DATA_PATH),
        "the Swarm's overlay networks",
    ));
    ports
}

/// etcd's members among each other. It is etcd's own flag that changes it, which no client learns.
#[cfg(feature = "orchestrator")]
const ETCD_PEERS: u16 = 2380;

#[cfg(feature = "orchestrator")]
fn orchestrator_ports(options: &crate::orchestrator::OrchestratorOptions) -> Vec<ReservedPort> {
    let api = options.api_listen.map(|address| {
        reserved(
            Protocol::Tcp,
            address.port(),
            "the orchestrator's API (--api-listen)",
        )
    });
    let mut clients: Vec<u16> = options.etcd.iter().filter_map(|url| port_of(url)).collect();
    clients.sort_unstable();
    clients.dedup();
    let peers = (!clients.is_empty()).then(|| {
        reserved(
            Protocol::Tcp,
            ETCD_PEERS,
            "the members of the orchestrator's store (etcd)",
        )
    });
    let clients = clients
        .into_iter()
        .map(|port| reserved(Protocol::Tcp, port, "the orchestrator's store (--etcd)"));
    api.into_iter().chain(clients).chain(peers).collect()
}

/// The port of a URL, or the one that etcd's clients use without one.
#[cfg(feature = "orchestrator")]
fn port_of(url: &str) -> Option<u16> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let url = reqwest::Url::parse(&url).ok()?;
    url.port_or_known_default()
}

fn reserved(protocol: Protocol, port: u16, purpose: &str) -> ReservedPort {
    ReservedPort {
        protocol,
        port,
        purpose: purpose.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: RunOptions,
    }

    fn ports(arguments: &[&str], data_path_port: Option<u16>) -> Vec<String> {
        let line = std::iter::once("mesh-agent").chain(arguments.iter().copied());
        let options = CommandLine::parse_from(line).options;
        let mut ports: Vec<String> = reserved_ports(&options, None, data_path_port)
            .into_iter()
            .map(|reserved| format!("{}/{}", reserved.protocol, reserved.port))
            .collect();
        ports.sort();
        ports
    }

    #[test]
    fn the_ports_follow_the_settings() {
        assert_eq!(
            ports(&[], None),
            [
                "tcp/2377", "tcp/7946", "tcp/9468", "tcp/9469", "udp/4789", "udp/6081", "udp/7946"
            ]
        );
        let changed = ["--feed-port=1", "--geneve-port=2", "--metrics-listen=off"];
        assert_eq!(
            ports(&changed, Some(7789)),
            ["tcp/1", "tcp/2377", "tcp/7946", "udp/2", "udp/7789", "udp/7946"]
        );
    }

    #[cfg(feature = "orchestrator")]
    #[test]
    fn the_orchestrators_store_and_api_are_reserved_instead_of_swarms_ports() {
        let flags = [
            "--orchestrator",
            "--etcd=https://10.0.0.1:2379,https://10.0.0.2:2479",
            "--etcd-ca=a",
            "--etcd-certificate=b",
            "--etcd-key=c",
            "--api-listen=0.0.0.0:8443",
            "--api-certificate=d",
            "--api-key=e",
        ];
        assert_eq!(
            ports(&flags, None),
            [
                "tcp/2379", "tcp/2380", "tcp/2479", "tcp/8443", "tcp/9468", "tcp/9469", "udp/6081"
            ]
        );
    }
}
