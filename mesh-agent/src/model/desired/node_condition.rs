//! What the conditions of services' labels come to for a node. Pure.

use crate::model::{Node, NodeCondition, NodeRole, NodeSubject, Weights};

/// Whether a condition holds for the node with this id.
pub(super) fn holds(condition: &NodeCondition, id: &str, node: &Node) -> bool {
    let found = match &condition.subject {
        NodeSubject::Id => id,
        NodeSubject::Hostname => &node.hostname,
        NodeSubject::Role => match node.role {
            NodeRole::Manager => "manager",
            NodeRole::Worker => "worker",
        },
        NodeSubject::Label(label) => node.labels.get(label).map_or("", String::as_str),
    };
    found.eq_ignore_ascii_case(&condition.value) == condition.equal
}

/// The weight of a service's replicas on a node: that of the first condition that holds, or else the node's.
pub(super) fn weight(weights: &Weights, id: &str, node: &Node) -> u32 {
    let mut conditions = weights.0.iter();
    conditions
        .find(|entry| holds(&entry.condition, id, node))
        .map_or(node.weight, |entry| entry.weight)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::NodeWeight;

    #[test]
    fn the_first_condition_that_holds_decides_and_otherwise_the_node() {
        let entry = |subject, equal, value: &str, weight| NodeWeight {
            condition: NodeCondition {
                subject,
                equal,
                value: value.to_owned(),
            },
            weight,
        };
        let weights = Weights(vec![
            entry(NodeSubject::Label("size".to_owned()), true, "big", 10),
            entry(NodeSubject::Hostname, true, "n1", 5),
            entry(NodeSubject::Role, false, "worker", 3),
        ]);
        let big = [("size".to_owned(), "big".to_owned())].into();
        let node = |hostname: &str, role, labels| Node {
            weight: 7,
            labels,
            ..Node::new(hostname.to_owned(), Ipv4Addr::LOCALHOST, role)
        };
        for (node, expected) in [
            (node("n1", NodeRole::Manager, big), 10),
            (node("n1", NodeRole::Manager, [].into()), 5),
            (node("n2", NodeRole::Manager, [].into()), 3),
            (node("n2", NodeRole::Worker, [].into()), 7),
        ] {
            assert_eq!(weight(&weights, "id", &node), expected, "{node:?}");
        }
        let node = node("n1", NodeRole::Manager, [].into());
        assert_eq!(weight(&Weights::default(), "id", &node), 7);
    }
}
