//! What a node goes on believing of the others' data paths when a source does not know. Pure.

use std::sync::Arc;

use super::{Cluster, NodeDatapath};

/// Puts into `cluster` what `last` knew of nodes that `cluster` has not heard of.
///
/// A manager's agent that has just started has heard of nobody; whoever follows it must not stop
/// sending to everybody for that.
pub fn keep_known(cluster: &mut Arc<Cluster>, last: &Cluster) {
    let known = |id| {
        let datapath = last.nodes.get(id)?.datapath;
        (datapath != NodeDatapath::Unknown).then_some(datapath)
    };
    let forgotten: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|(_, node)| node.datapath == NodeDatapath::Unknown)
        .filter_map(|(id, _)| Some((id.clone(), known(id)?)))
        .collect();
    if forgotten.is_empty() {
        // The picture may be large, and is shared: it is copied only where it changes.
        return;
    }
    let cluster = Arc::make_mut(cluster);
    for (id, datapath) in forgotten {
        if let Some(node) = cluster.nodes.get_mut(&id) {
            node.datapath = datapath;
        }
    }
}

/// Whether something has been heard of every ready node but `own`.
#[must_use]
pub fn all_announced(cluster: &Cluster, own: &str) -> bool {
    cluster
        .nodes
        .iter()
        .all(|(id, node)| id == own || !node.ready || node.datapath != NodeDatapath::Unknown)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::{collection::btree_map, prelude::*, sample::select};

    use super::*;
    use crate::model::{Node, NodeRole};

    const KINDS: [NodeDatapath; 5] = [
        NodeDatapath::Unknown,
        NodeDatapath::None,
        NodeDatapath::Leaving,
        NodeDatapath::Ebpf,
        NodeDatapath::Ipvs,
    ];

    fn any_cluster() -> impl Strategy<Value = Cluster> {
        let node = (select(KINDS.as_slice()), any::<bool>()).prop_map(|(datapath, ready)| Node {
            hostname: "host".to_owned(),
            address: Ipv4Addr::new(192, 0, 2, 1),
            role: NodeRole::Worker,
            ready,
            weight: 1,
            datapath,
            silent: false,
        });
        btree_map("[a-f]", node, 0..6).prop_map(|nodes| Cluster {
            nodes,
            ..Cluster::default()
        })
    }

    proptest! {
        #[test]
        fn only_what_is_unknown_is_taken_from_memory(now in any_cluster(), last in any_cluster()) {
            let mut kept = Arc::new(now.clone());
            keep_known(&mut kept, &last);
            prop_assert!(kept.nodes.keys().eq(now.nodes.keys()), "memory brings no node back");
            for (id, node) in &kept.nodes {
                let said = now.nodes[id].datapath;
                let remembered = last.nodes.get(id).map_or(NodeDatapath::Unknown, |node| node.datapath);
                let expected = if said == NodeDatapath::Unknown { remembered } else { said };
                prop_assert_eq!(node.datapath, expected);
                let same = Node { datapath: said, ..node.clone() };
                prop_assert_eq!(&same, &now.nodes[id], "nothing else is touched");
            }
        }

        #[test]
        fn a_picture_remembered_over_several_sources_keeps_the_last_word(pictures in prop::collection::vec(any_cluster(), 1..6)) {
            let mut last = Arc::new(Cluster::default());
            for picture in &pictures {
                let mut now = Arc::new(picture.clone());
                keep_known(&mut now, &last);
                last = now;
            }
            for (id, node) in &last.nodes {
                // The newest picture that has an opinion, back to where the node was missing.
                let word = pictures
                    .iter()
                    .rev()
                    .map_while(|picture| picture.nodes.get(id))
                    .map(|node| node.datapath)
                    .find(|kind| *kind != NodeDatapath::Unknown)
                    .unwrap_or_default();
                prop_assert_eq!(node.datapath, word);
            }
        }
    }

    #[test]
    fn a_picture_that_knows_everything_is_not_copied() {
        let mut now = Arc::new(Cluster::default());
        let same = Arc::clone(&now);
        keep_known(&mut now, &Cluster::default());
        assert!(Arc::ptr_eq(&now, &same));
    }
}
