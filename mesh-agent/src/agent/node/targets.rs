//! Whom the agent probes, and by what. Pure.

use std::collections::BTreeMap;

use crate::{
    datapath::{DatapathKind, ipvs::address::peers_mesh_addresses},
    model::{Cluster, Node, NodeDatapath},
    probes::{Geneve, Medium, Targets},
};

/// The peers whose data path can answer, and those that have not announced theirs: an answer proves that
/// there is one. `None` until the cluster and this node's address are known.
pub(super) fn probe_targets(
    cluster: &Cluster,
    own: &str,
    kind: DatapathKind,
    geneve: impl FnOnce() -> Geneve,
) -> Option<Targets> {
    if cluster.cluster_id.is_empty() {
        return None;
    }
    let may_answer = |node: &Node| match node.datapath {
        NodeDatapath::Unknown => node.ready && !node.address.is_unspecified(),
        NodeDatapath::Ebpf => kind == DatapathKind::Ebpf,
        NodeDatapath::Ipvs => kind == DatapathKind::Ipvs,
        NodeDatapath::None | NodeDatapath::Leaving => false,
    };
    let others = || cluster.nodes.iter().filter(|(id, _)| *id != own);
    let node_address = cluster.nodes.get(own)?.address;
    let mut peers: BTreeMap<_, _> = others()
        .filter(|(_, node)| may_answer(node))
        .map(|(_, node)| (node.address, node.hostname.clone()))
        .collect();
    let medium = match kind {
        DatapathKind::Ebpf => Medium::Geneve(geneve()),
        DatapathKind::Ipvs => {
            let others = others().map(|(_, node)| node.address);
            let addresses = peers_mesh_addresses(node_address, others);
            peers.retain(|peer, _| addresses.contains_key(peer));
            Medium::Tunnel(addresses)
        }
    };
    Some(Targets {
        node_address,
        peers,
        medium,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::NodeRole;

    #[test]
    fn peers_of_this_nodes_kind_are_probed_and_those_that_have_announced_none() {
        let node = |last, ready, datapath| {
            let node = Node {
                ready,
                datapath,
                ..Node::new(
                    format!("n{last}"),
                    Ipv4Addr::new(192, 0, 2, last),
                    NodeRole::Worker,
                )
            };
            (format!("id{last}"), node)
        };
        let mut cluster = Cluster {
            cluster_id: "cluster".to_owned(),
            nodes: [
                node(1, true, NodeDatapath::Unknown),
                node(2, true, NodeDatapath::Unknown),
                node(3, false, NodeDatapath::Unknown),
                node(4, true, NodeDatapath::Ebpf),
                node(5, true, NodeDatapath::Ipvs),
                node(6, true, NodeDatapath::None),
                node(7, true, NodeDatapath::Leaving),
            ]
            .into(),
            ..Cluster::default()
        };
        let targets = |cluster: &Cluster, kind| probe_targets(cluster, "id1", kind, Geneve::default);
        for (kind, expected) in [
            (DatapathKind::Ebpf, ["n2", "n4"]),
            (DatapathKind::Ipvs, ["n2", "n5"]),
        ] {
            let targets = targets(&cluster, kind).unwrap();
            assert_eq!(targets.node_address, Ipv4Addr::new(192, 0, 2, 1));
            assert_eq!(targets.peers.values().collect::<Vec<_>>(), expected);
            if let Medium::Tunnel(addresses) = targets.medium {
                let n2 = Ipv4Addr::new(192, 0, 2, 2);
                assert_eq!(addresses[&n2], Ipv4Addr::new(251, 0, 2, 2));
            }
        }

        cluster.cluster_id.clear();
        let targets = targets(&cluster, DatapathKind::Ebpf);
        assert_eq!(targets, None, "there is no snapshot yet");
    }
}
