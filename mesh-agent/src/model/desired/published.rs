//! Where on this node a service is published, as its label says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::node_condition::holds;
use crate::model::{
    HostInterface, Ingress, Node, Prefix, PublishOn, SourcePolicy, SourceRules, SourceVerdict, SourceVerdicts,
};

/// Those of a node's addresses, as frontends have them, at which a service is not published.
pub(super) fn closed(
    publish_on: &PublishOn,
    id: &str,
    node: Option<&Node>,
    addresses: &BTreeMap<Ipv4Addr, Prefix>,
) -> BTreeSet<Ipv4Addr> {
    let mut conditions = publish_on.nodes.iter();
    let is_there = node.is_none_or(|node| conditions.all(|condition| holds(condition, id, node)));
    let is_open = |address: Prefix| {
        let mut prefixes = publish_on.addresses.iter();
        is_there && (publish_on.addresses.is_empty() || prefixes.any(|prefix| prefix.contains(address)))
    };
    let closed = addresses.iter().filter(|(_, address)| !is_open(**address));
    closed.map(|(frontend, _)| *frontend).collect()
}

/// The interfaces as a policy, if the label names any: clients that come in by another uplink are refused, as
/// where no one listens. Containers of the node come in by none of them, and are not refused.
pub(super) fn interface_policy(
    publish_on: &PublishOn,
    uplinks: &BTreeMap<String, HostInterface>,
) -> Option<SourcePolicy> {
    if publish_on.interfaces.is_empty() {
        return None;
    }
    let rules = |verdict| SourceRules::from([(Prefix::ALL, SourceVerdicts::both(verdict))]);
    let of_uplink = |(name, uplink): (&String, &HostInterface)| {
        let verdict = if publish_on.interfaces.contains(name) {
            SourceVerdict::Accept
        } else {
            SourceVerdict::Reject
        };
        (Ingress::Uplink(uplink.index), rules(verdict))
    };
    let containers = (Ingress::Containers, rules(SourceVerdict::Accept));
    SourcePolicy::new(uplinks.iter().map(of_uplink).chain([containers]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeCondition, NodeRole, NodeSubject};

    /// The last one stands for 2001:db8::1.
    const ADDRESSES: [Ipv4Addr; 3] = [
        Ipv4Addr::new(10, 0, 0, 1),
        Ipv4Addr::new(192, 0, 2, 1),
        Ipv4Addr::new(252, 0, 0, 1),
    ];

    fn addresses() -> BTreeMap<Ipv4Addr, Prefix> {
        let actual = ["10.0.0.1", "192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        ADDRESSES.into_iter().zip(actual).collect()
    }

    fn node(labels: &[(&str, &str)]) -> Node {
        let labels = labels.iter();
        Node {
            labels: labels
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect(),
            ..Node::new("n1".to_owned(), ADDRESSES[0], NodeRole::Worker)
        }
    }

    fn condition(subject: NodeSubject, equal: bool, value: &str) -> NodeCondition {
        NodeCondition {
            subject,
            equal,
            value: value.to_owned(),
        }
    }

    #[test]
    fn addresses_are_alternatives_and_the_others_are_closed() {
        let closed_by = |prefixes: &[&str]| {
            let publish_on = PublishOn {
                addresses: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
                ..PublishOn::default()
            };
            closed(&publish_on, "id1", Some(&node(&[])), &addresses())
        };
        assert_eq!(closed_by(&[]), [].into());
        let [_, second, ipv6] = ADDRESSES;
        assert_eq!(closed_by(&["10.0.0.0/8"]), [second, ipv6].into());
        assert_eq!(closed_by(&["10.0.0.0/8", "192.0.2.1"]), [ipv6].into());
        assert_eq!(
            closed_by(&["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]),
            [].into()
        );
        assert_eq!(closed_by(&["2001:db9::/32", "252.0.0.0/8"]), ADDRESSES.into());
    }

    #[test]
    fn all_conditions_on_a_node_must_hold_or_every_address_is_closed() {
        let label = |value| condition(NodeSubject::Label("edge".to_owned()), true, value);
        for (nodes, labels, is_open) in [
            (vec![label("true")], &[("edge", "TRUE")][..], true),
            (vec![label("true")], &[], false),
            (
                vec![condition(NodeSubject::Label("zone".to_owned()), false, "b")],
                &[],
                true,
            ),
            (vec![condition(NodeSubject::Role, true, "worker")], &[], true),
            (vec![condition(NodeSubject::Hostname, false, "n1")], &[], false),
            (
                vec![condition(NodeSubject::Id, true, "id1"), label("true")],
                &[],
                false,
            ),
        ] {
            let publish_on = PublishOn {
                nodes,
                ..PublishOn::default()
            };
            let closed = closed(&publish_on, "id1", Some(&node(labels)), &addresses());
            let expected = if is_open { [].into() } else { ADDRESSES.into() };
            assert_eq!(closed, expected, "{publish_on} {labels:?}");
        }
    }

    #[test]
    fn clients_that_come_in_by_another_interface_are_refused() {
        let interface = |index| HostInterface {
            index,
            mac: None,
            mtu: 1500,
            has_vlans: false,
        };
        let uplinks = [
            ("eth0".to_owned(), interface(2)),
            ("eth1".to_owned(), interface(3)),
        ]
        .into();
        let publish_on = PublishOn {
            interfaces: vec!["eth1".to_owned(), "eth9".to_owned()],
            ..PublishOn::default()
        };
        let policy = interface_policy(&publish_on, &uplinks).unwrap();
        let opening = |ingress| policy.verdicts(ingress, ADDRESSES[0].into()).opening;
        assert_eq!(opening(Ingress::Uplink(2)), SourceVerdict::Reject);
        assert_eq!(opening(Ingress::Uplink(3)), SourceVerdict::Accept);
        assert_eq!(opening(Ingress::Containers), SourceVerdict::Accept);
        assert_eq!(interface_policy(&PublishOn::default(), &uplinks), None);
    }
}
