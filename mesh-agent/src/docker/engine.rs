//! The engine's description of itself: `docker info`.

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use bollard::models::{LocalNodeState, SystemInfo};

/// The engine's description of itself and of its membership in a Swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// This node's id; empty when it is in no Swarm.
    pub node: String,
    /// Whether the node is an active member of a Swarm.
    pub active: bool,
    /// The Swarm state as the engine names it: `active`, `inactive`, `pending`, `error`, `locked`.
    pub state: String,
    /// Whether services and tasks can be listed here: the node is a manager, and there is a quorum.
    pub manager: bool,
    /// The node's own Swarm address (`--advertise-addr`).
    pub node_address: Option<Ipv4Addr>,
    /// The managers this node knows. Their ports are Swarm's own; agents listen on the feed port.
    pub remote_managers: Vec<RemoteManager>,
    /// The TCP ports on which those managers serve Swarm.
    pub manager_ports: BTreeSet<u16>,
    /// The UDP port of overlay networks; managers only.
    pub data_path_port: Option<u16>,
    /// The cluster's id; managers only, and only while there is a quorum (the engine's own answer is empty
    /// without one). Workers find it in their certificate (O).
    pub cluster_id: Option<String>,
    /// Docker's data root, e.g. `/var/lib/docker`.
    pub root: PathBuf,
    /// The engine's version, e.g. `20.10.24`.
    pub version: String,
}

impl EngineInfo {
    /// Whether the engine is in no Swarm.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.state == "inactive"
    }

    /// Whether this is a manager of an autolocked Swarm whose engine was restarted: until it is unlocked, it
    /// is no member.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.state == "locked"
    }

    /// Where Swarm keeps this node's certificate, key and root bundle.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.root.join("swarm/certificates")
    }
}

/// A manager of the Swarm as `docker info` lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteManager {
    /// Its node id.
    pub node: String,
    /// Its address, without Swarm's port.
    pub address: Ipv4Addr,
}

impl From<SystemInfo> for EngineInfo {
    fn from(info: SystemInfo) -> Self {
        let swarm = info.swarm.unwrap_or_default();
        let state = swarm.local_node_state.unwrap_or(LocalNodeState::INACTIVE);
        let managers = swarm.remote_managers.unwrap_or_default();
        let manager_ports = managers
            .iter()
            .filter_map(|peer| peer.addr.as_ref()?.rsplit_once(':')?.1.parse().ok())
            .collect();
        let mut remote_managers: Vec<_> = managers
            .into_iter()
            .filter_map(|peer| {
                Some(RemoteManager {
                    node: peer.node_id.filter(|id| !id.is_empty())?,
                    address: host(&peer.addr?)?,
                })
            })
            .collect();
        remote_managers.sort();
        Self {
            node: swarm.node_id.unwrap_or_default(),
            active: state == LocalNodeState::ACTIVE,
            state: state.to_string(),
            manager: swarm.control_available.unwrap_or_default(),
            node_address: swarm.node_addr.as_deref().and_then(host),
            remote_managers,
            manager_ports,
            data_path_port: swarm
                .cluster
                .as_ref()
                .and_then(|cluster| u16::try_from(cluster.data_path_port?).ok())
                .filter(|port| *port != 0),
            cluster_id: swarm
                .cluster
                .and_then(|cluster| cluster.id)
                .filter(|id| !id.is_empty()),
            root: info
                .docker_root_dir
                .map_or_else(|| PathBuf::from("/var/lib/docker"), PathBuf::from),
            version: info.server_version.unwrap_or_default(),
        }
    }
}

/// The IPv4 address in `address` or `address:port`; `None` for one that no packet can be sent to.
pub(crate) fn host(text: &str) -> Option<Ipv4Addr> {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    host.parse()
        .ok()
        .filter(|address: &Ipv4Addr| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_ids_of_an_engine_without_a_quorum_are_no_ids() {
        let text = r#"{"Swarm": {"NodeID": "", "NodeAddr": "192.0.2.1", "LocalNodeState": "active",
            "ControlAvailable": true, "Cluster": {"ID": "", "DataPathPort": 7789},
            "RemoteManagers": [{"NodeID": "", "Addr": "192.0.2.2:2377"}]}}"#;
        let info = EngineInfo::from(serde_json::from_str::<SystemInfo>(text).unwrap());
        assert_eq!(info.cluster_id, None);
        assert!(info.manager && info.active && info.node.is_empty());
        assert_eq!(info.remote_managers, []);
        assert_eq!(
            (info.manager_ports, info.data_path_port),
            ([2377].into(), Some(7789))
        );
    }

    #[test]
    fn host_is_read_with_and_without_port() {
        assert_eq!(host("10.1.0.1:2377"), Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!(host("10.1.0.1"), Some(Ipv4Addr::new(10, 1, 0, 1)));
    }

    #[test]
    fn host_refuses_what_no_packet_can_be_sent_to() {
        for text in ["", "0.0.0.0", "0.0.0.0:2377", "[fd00::1]:2377", "manager:2377"] {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
