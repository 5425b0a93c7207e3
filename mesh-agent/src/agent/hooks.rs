//! Which peers' packets would pass an interface without a hook of the mesh, and what follows from it. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::{
    discovery::NetworkState,
    model::{Cluster, NoHook},
};

/// The peers to which packets leave by an interface without a hook: one that cannot be an uplink, or on which
/// the data path has refused to attach (`refused`, with the reasons).
pub(super) fn peers_without_hook(
    network: &NetworkState,
    refused: &BTreeMap<String, String>,
) -> BTreeMap<Ipv4Addr, NoHook> {
    let no_hook = |interface: &String| {
        let reason = network
            .unusable_uplinks
            .get(interface)
            .or(refused.get(interface))?;
        Some(NoHook {
            interface: interface.clone(),
            reason: reason.clone(),
        })
    };
    network
        .peer_interfaces
        .iter()
        .filter_map(|(peer, interface)| Some((*peer, no_hook(interface)?)))
        .collect()
}

/// Whether this node may announce a data path: not if packets of any ready node would come in where there is
/// no hook. What the other nodes announce must not matter: two nodes that both lack a hook
/// would announce in turns.
pub(super) fn may_announce(cluster: &Cluster, own: &str, without_hook: &BTreeMap<Ipv4Addr, NoHook>) -> bool {
    !cluster
        .nodes
        .iter()
        .any(|(id, node)| id != own && node.ready && without_hook.contains_key(&node.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Node, NodeDatapath, NodeRole};

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn node(last: u8, ready: bool) -> Node {
        Node {
            ready,
            datapath: NodeDatapath::Ebpf,
            ..Node::new(format!("n{last}"), address(last), NodeRole::Worker)
        }
    }

    /// A node with two cards and a VPN, one peer behind each.
    fn network() -> NetworkState {
        NetworkState {
            unusable_uplinks: [("wg0".to_owned(), "no MAC address".to_owned())].into(),
            peer_interfaces: [
                (address(1), "eth0".to_owned()),
                (address(2), "eth1".to_owned()),
                (address(3), "wg0".to_owned()),
            ]
            .into(),
            ..NetworkState::default()
        }
    }

    #[test]
    fn a_peer_behind_an_interface_without_a_hook_is_named_with_the_reason() {
        let found = peers_without_hook(&network(), &BTreeMap::new());
        assert_eq!(found.keys().collect::<Vec<_>>(), [&address(3)]);
        assert_eq!(found[&address(3)].interface, "wg0");
        assert_eq!(found[&address(3)].reason, "no MAC address");

        let refused = [("eth1".to_owned(), "device or resource busy".to_owned())].into();
        let found = peers_without_hook(&network(), &refused);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&address(2), &address(3)]);
        assert_eq!(found[&address(2)].reason, "device or resource busy");
    }

    #[test]
    fn a_node_announces_no_data_path_while_there_is_no_hook_towards_a_ready_node() {
        let without_hook = peers_without_hook(&network(), &BTreeMap::new());
        let cluster = |ready| Cluster {
            nodes: (1..4)
                .map(|last| (format!("n{last}"), node(last, last != 3 || ready)))
                .collect(),
            ..Cluster::default()
        };
        assert!(!may_announce(&cluster(true), "n1", &without_hook));
        assert!(may_announce(&cluster(false), "n1", &without_hook), "it is down");
        assert!(may_announce(&cluster(true), "n1", &BTreeMap::new()));
    }
}
