//! Who else of this node serves a port that a service publishes: the mesh takes the clients of a process that
//! listens there, and of a container that publishes it by itself. Looks again every few seconds, by dumps of
//! sockets that are bound and by the engine's list of containers. Imports the model, `docker` and the data
//! paths' netlink.

mod owner;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use mesh_support::{error_chain, watched::Newest as _};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::{
    owner::{Owner, Owners},
    sockets::Socket,
};
use crate::{
    datapath::netlink::NetlinkError,
    docker::{Docker, api::ContainerSummary},
    model::{OccupiedPort, Protocol, ServiceKey},
};

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks for who else serves published ports.
pub struct PortObserver {
    docker: Docker,
    /// A cgroup2 hierarchy, whose folders name who a socket belongs to where processes cannot be seen.
    cgroup: Option<PathBuf>,
}

impl PortObserver {
    /// An observer; nothing happens before [`PortObserver::run`].
    #[must_use]
    pub fn new(docker: Docker, cgroup: Option<PathBuf>) -> Self {
        Self { docker, cgroup }
    }

    /// Looks every few seconds, and whenever other ports are published, until cancelled.
    pub async fn run(
        self,
        mut published: watch::Receiver<BTreeSet<ServiceKey>>,
        occupied: watch::Sender<Vec<OccupiedPort>>,
        shutdown: CancellationToken,
    ) {
        let mut seen = BTreeSet::new();
        loop {
            let ports = published.newest();
            let found = if ports.is_empty() {
                Vec::new()
            } else {
                self.look(&ports, &mut seen).await
            };
            occupied.send_if_modified(|known| report(known, found));
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = published.changed() => {}
                () = sleep(INTERVAL) => {}
            }
        }
    }

    /// `seen` has the UDP sockets that were found the last time.
    async fn look(&self, published: &BTreeSet<ServiceKey>, seen: &mut BTreeSet<u32>) -> Vec<OccupiedPort> {
        let containers: Vec<ContainerSummary> = match self.docker.get("/containers/json").await {
            Ok(containers) => containers,
            Err(error) => {
                debug!(
                    error = error_chain(&error),
                    "the containers' own ports are not known"
                );
                Vec::new()
            }
        };
        let (wanted, cgroup) = (published.clone(), self.cgroup.clone());
        let bound = tokio::task::spawn_blocking(move || {
            let sockets = sockets::bound()?;
            let owners = Owners::new(&sockets, cgroup);
            let sockets: Vec<(Socket, Owner)> = sockets
                .into_iter()
                .filter(|socket| wanted.contains(&socket.key))
                .map(|socket| (socket, owners.of(&socket)))
                .collect();
            Ok::<_, NetlinkError>(sockets)
        });
        let bound = match bound.await {
            Ok(Ok(bound)) => bound,
            Ok(Err(error)) => {
                debug!(error = error_chain(&error), "the node's sockets cannot be listed");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        let before = std::mem::take(seen);
        seen.extend(bound.iter().map(|(socket, _)| socket.inode));
        occupied(published, &bound, &containers, &before)
    }
}

/// Logs what is new, and keeps what was found; true if that has changed.
fn report(known: &mut Vec<OccupiedPort>, found: Vec<OccupiedPort>) -> bool {
    if *known == found {
        return false;
    }
    for port in found.iter().filter(|port| !known.contains(port)) {
        warn!(
            port = %port.service,
            owner = port.owner,
            "a published port is also served by something else of this node: its clients reach the service"
        );
    }
    *known = found;
    true
}

/// The published ports that sockets or containers serve as well. A UDP socket counts when it was there the
/// last time (`before`): clients are bound to any port for a moment.
fn occupied(
    published: &BTreeSet<ServiceKey>,
    bound: &[(Socket, Owner)],
    containers: &[ContainerSummary],
    before: &BTreeSet<u32>,
) -> Vec<OccupiedPort> {
    let named: BTreeMap<&str, String> = containers
        .iter()
        .map(|container| (container.id.as_str(), format!("container {}", name(container))))
        .collect();
    let by_sockets = bound
        .iter()
        .filter(|(socket, _)| socket.key.protocol == Protocol::Tcp || before.contains(&socket.inode))
        .filter_map(|(socket, owner)| {
            let owner = match owner {
                Owner::Engine => return None,
                Owner::Container(id) => named.get(id.as_str()).cloned(),
                Owner::Other(owner) => Some(owner.clone()),
            };
            Some(OccupiedPort {
                service: socket.key,
                owner: owner.unwrap_or_else(|| "a container".to_owned()),
            })
        });
    let by_containers = containers.iter().flat_map(|container| {
        let ports = container.ports.iter().filter_map(|port| {
            Some(ServiceKey {
                protocol: match port.protocol.as_str() {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return None,
                },
                port: port.public_port?,
            })
        });
        ports
            .filter(|key| published.contains(key))
            .map(|key| OccupiedPort {
                service: key,
                owner: format!("container {}", name(container)),
            })
    });
    let found: BTreeSet<OccupiedPort> = by_sockets.chain(by_containers).collect();
    found.into_iter().collect()
}

fn name(container: &ContainerSummary) -> &str {
    let name = container
        .names
        .first()
        .map_or(container.id.as_str(), String::as_str);
    name.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(protocol: Protocol, port: u16) -> ServiceKey {
        ServiceKey { protocol, port }
    }

    fn container(id: &str, name: &str, ports: &str) -> ContainerSummary {
        let text = format!(r#"{{"Id": "{id}", "Names": ["/{name}"], "Ports": {ports}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn socket(key: ServiceKey, inode: u32) -> Socket {
        Socket {
            key,
            inode,
            user: 0,
            cgroup: None,
        }
    }

    fn found(
        bound: &[(Socket, Owner)],
        containers: &[ContainerSummary],
        before: &[u32],
    ) -> Vec<(String, String)> {
        let published = [
            key(Protocol::Tcp, 2222),
            key(Protocol::Tcp, 8080),
            key(Protocol::Udp, 53),
        ];
        occupied(
            &published.into(),
            bound,
            containers,
            &before.iter().copied().collect(),
        )
        .into_iter()
        .map(|port| (port.service.to_string(), port.owner))
        .collect()
    }

    #[test]
    fn a_listening_process_is_named_and_the_engines_own_listener_is_not() {
        let sshd = Owner::Other("process 812 (sshd)".to_owned());
        let bound = [
            (socket(key(Protocol::Tcp, 2222), 1), sshd),
            (socket(key(Protocol::Tcp, 8080), 2), Owner::Engine),
        ];
        assert_eq!(
            found(&bound, &[], &[]),
            [("tcp/2222".to_owned(), "process 812 (sshd)".to_owned())]
        );
    }

    #[test]
    fn a_container_that_publishes_the_port_itself_is_named_also_without_a_socket() {
        let ports = r#"[{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 8080, "Type": "udp"}, {"PrivatePort": 1, "PublicPort": 9, "Type": "sctp"}]"#;
        let containers = [
            container("a1", "old-web", ports),
            container("b2", "host-net", "[]"),
        ];
        assert_eq!(
            found(&[], &containers, &[]),
            [("tcp/8080".to_owned(), "container old-web".to_owned())]
        );
        let on_host_network = [(
            socket(key(Protocol::Tcp, 2222), 1),
            Owner::Container("b2".to_owned()),
        )];
        assert_eq!(
            found(&on_host_network, &containers[1..], &[]),
            [("tcp/2222".to_owned(), "container host-net".to_owned())]
        );
    }

    #[test]
    fn a_udp_socket_counts_when_it_stays() {
        let dns = || Owner::Other("process 9 (dnsmasq)".to_owned());
        let bound = [(socket(key(Protocol::Udp, 53), 7), dns())];
        assert_eq!(found(&bound, &[], &[]), []);
        assert_eq!(found(&bound, &[], &[7]).len(), 1);
    }
}
