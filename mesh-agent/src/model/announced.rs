//! What a node assumes about the others' data paths while its source does not know them. Pure.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use super::{Cluster, Node, NodeDatapath, NodeId};

/// Copies what nodes announced from `last` to the nodes whose data path is unknown in `cluster`.
///
/// A manager's agent that has just started has received no announcements yet. Its followers must not stop
/// sending to every node because of that.
pub fn keep_known(cluster: &mut Arc<Cluster>, last: &Cluster) {
    let known = |id| {
        let last = last.nodes.get(id)?;
        (last.datapath != NodeDatapath::Unknown).then(|| last.clone())
    };
    let missing: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|(_, node)| node.datapath == NodeDatapath::Unknown)
        .filter_map(|(id, _)| Some((id.clone(), known(id)?)))
        .collect();
    if missing.is_empty() {
        // The snapshot may be large and is shared: it is copied only if it changes.
        return;
    }
    let cluster = Arc::make_mut(cluster);
    for (id, last) in missing {
        if let Some(node) = cluster.nodes.get_mut(&id) {
            node.datapath = last.datapath;
            node.address = last.address;
            node.release = last.release;
            node.keys = last.keys;
            node.drained = last.drained;
            node.failed = last.failed;
        }
    }
}

/// The nodes but `own` that may have a data path of which nothing is known: it was not announced, and it is
/// none of those that have `answered` this node's probes. A node that is not ready counts if it has tasks:
/// what managers do not hear of may work.
pub fn unknown_nodes<'a>(
    cluster: &'a Cluster,
    own: &'a str,
    answered: &'a BTreeSet<Ipv4Addr>,
) -> impl Iterator<Item = &'a Node> {
    let others = cluster.nodes.iter().filter(move |(id, _)| *id != own);
    let unknown = others
        .filter(|(_, node)| node.datapath == NodeDatapath::Unknown && !answered.contains(&node.address));
    let has_tasks = |id: &NodeId| cluster.tasks.values().any(|task| task.node == *id);
    unknown
        .filter(move |(id, node)| node.ready || has_tasks(id))
        .map(|(_, node)| node)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::*;
    use crate::model::{KeyId, NodeRole};

    const KINDS: [NodeDatapath; 5] = [
        NodeDatapath::Unknown,
        NodeDatapath::None,
        NodeDatapath::Leaving,
        NodeDatapath::Ebpf,
        NodeDatapath::Ipvs,
    ];

    fn any_cluster() -> impl Strategy<Value = Cluster> {
        let node = (select(KINDS.as_slice()), any::<bool>()).prop_map(|(datapath, ready)| Node {
            ready,
            datapath,
            ..Node::new("host".to_owned(), Ipv4Addr::new(192, 0, 2, 1), NodeRole::Worker)
        });
        btree_map("[a-f]", node, 0..6).prop_map(|nodes| Cluster {
            nodes,
            ..Cluster::default()
        })
    }

    proptest! {
        #[test]
        fn only_unknown_data_paths_are_copied(now in any_cluster(), last in any_cluster()) {
            let mut kept = Arc::new(now.clone());
            keep_known(&mut kept, &last);
            prop_assert!(kept.nodes.keys().eq(now.nodes.keys()), "no node is added");
            for (id, node) in &kept.nodes {
                let announced = now.nodes[id].datapath;
                let remembered = last.nodes.get(id).map_or(NodeDatapath::Unknown, |node| node.datapath);
                let expected = if announced == NodeDatapath::Unknown { remembered } else { announced };
                prop_assert_eq!(node.datapath, expected);
                let same = Node { datapath: announced, ..node.clone() };
                prop_assert_eq!(&same, &now.nodes[id], "nothing else is touched");
            }
        }

        #[test]
        fn snapshots_of_several_sources_keep_the_last_announcement(snapshots in prop::collection::vec(any_cluster(), 1..6)) {
            let mut last = Arc::new(Cluster::default());
            for snapshot in &snapshots {
                let mut now = Arc::new(snapshot.clone());
                keep_known(&mut now, &last);
                last = now;
            }
            for (id, node) in &last.nodes {
                // The newest snapshot that knows it, since the node was last missing.
                let expected = snapshots
                    .iter()
                    .rev()
                    .map_while(|snapshot| snapshot.nodes.get(id))
                    .map(|node| node.datapath)
                    .find(|kind| *kind != NodeDatapath::Unknown)
                    .unwrap_or_default();
                prop_assert_eq!(node.datapath, expected);
            }
        }
    }

    #[test]
    fn the_keys_that_a_node_takes_are_remembered_with_its_data_path() {
        let node = |datapath, keys| Node {
            datapath,
            keys,
            ..Node::new("host".to_owned(), Ipv4Addr::new(192, 0, 2, 1), NodeRole::Worker)
        };
        let cluster = |node| Cluster {
            nodes: [("a".to_owned(), node)].into(),
            ..Cluster::default()
        };
        let last = cluster(node(NodeDatapath::Ebpf, Some(vec![KeyId::default()])));
        let mut now = Arc::new(cluster(node(NodeDatapath::Unknown, None)));
        keep_known(&mut now, &last);
        assert_eq!(*now, last);
    }

    #[test]
    fn a_snapshot_that_knows_everything_is_not_copied() {
        let mut now = Arc::new(Cluster::default());
        let same = Arc::clone(&now);
        keep_known(&mut now, &Cluster::default());
        assert!(Arc::ptr_eq(&now, &same));
    }
}
