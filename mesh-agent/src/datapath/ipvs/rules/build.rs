//! The mesh's nftables tables, put together from chains and sets. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    Rules,
    chains::{
        REFUSE, SETTLE, advice, arriving, astray, clamp, crossing, guard, input, output, postrouting,
        prerouting, refuse, settle, translate,
    },
    phrase::{jumped, rule},
    ruleset::{Content, Expression, Family, Ruleset, Set, Type},
    target::{backend_name, names, rotation, service_name},
};
use crate::model::{Protocol, ServiceKey};

/// The table for routed and local packets.
pub(super) fn ip(rules: &Rules) -> Ruleset {
    let mut chains = BTreeMap::from([
        ("guard".to_owned(), guard(rules)),
        ("prerouting".to_owned(), prerouting(rules)),
        ("input".to_owned(), input(rules)),
        ("output".to_owned(), output()),
        ("advice".to_owned(), advice(rules)),
        ("astray".to_owned(), astray()),
        ("clamp".to_owned(), clamp(rules)),
        ("postrouting".to_owned(), postrouting(rules)),
        (REFUSE.to_owned(), refuse()),
        (SETTLE.to_owned(), settle()),
    ]);
    let mut counters = BTreeSet::new();
    let mut localhost = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for (service, targets) in &rules.localhost {
        let order = rotation(targets);
        for target in targets {
            let name = backend_name(target.backend);
            counters.insert(name.clone());
            if target.weight > 0 {
                let chain = translate(*service, target.address, target.port, name.clone());
                chains.insert(name, chain);
            }
        }
        if order.is_empty() {
            refused.insert(service_bytes(*service));
            localhost.insert(service_bytes(*service), SETTLE.to_owned());
            continue;
        }
        let order = order.iter().map(|target| backend_name(target.backend)).collect();
        let name = service_name(*service);
        chains.insert(
            name.clone(),
            jumped(vec![rule("replicas in turn", [Expression::Rotate(order)])]),
        );
        localhost.insert(service_bytes(*service), name);
    }
    let frontends = rules
        .frontends
        .iter()
        .map(|(address, protocol, port)| {
            let service = ServiceKey {
                protocol: *protocol,
                port: *port,
            };
            [address.octets().to_vec(), service_bytes(service)].concat()
        })
        .collect();
    let sets = BTreeMap::from([
        (
            names::FRONTENDS,
            keys(
                "what IPVS answers",
                &[Type::Ipv4Address, Type::Protocol, Type::Port],
                frontends,
            ),
        ),
        (names::PEERS, addresses("the other nodes", &rules.peers)),
        (
            names::LOCAL_REPLICAS,
            addresses("this node's replicas", &rules.local_replicas),
        ),
        (
            names::REFUSED,
            keys(
                "published, but without a replica",
                &[Type::Protocol, Type::Port],
                refused,
            ),
        ),
        (
            names::LOCALHOST,
            Set {
                key: &[Type::Protocol, Type::Port],
                comment: "what local processes reach at 127.0.0.0/8",
                content: Content::Chains(localhost),
            },
        ),
    ]);
    Ruleset {
        family: Family::Ip,
        comment: "routing mesh: rules that IPVS needs",
        sets,
        counters,
        chains,
    }
}

/// The table for frames on bridges: only IPv4 packets between this node and its peers use the tunnel, and
/// nothing is bridged between the tunnel and containers.
pub(super) fn bridge(rules: &Rules) -> Ruleset {
    Ruleset {
        family: Family::Bridge,
        comment: "routing mesh: guards the tunnel between IPVS nodes",
        sets: BTreeMap::from([(names::PEERS, addresses("the other nodes", &rules.peers))]),
        counters: BTreeSet::new(),
        chains: BTreeMap::from([
            ("prerouting".to_owned(), arriving(rules)),
            ("forward".to_owned(), crossing()),
        ]),
    }
}

/// The address, protocol and port in a key of the set of frontends.
pub(super) fn frontend(key: &[u8]) -> Option<(Ipv4Addr, Protocol, u16)> {
    let [a, b, c, d, number, _, _, _, high, low, ..] = *key else {
        return None;
    };
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.number() == number)?;
    Some((
        Ipv4Addr::new(a, b, c, d),
        protocol,
        u16::from_be_bytes([high, low]),
    ))
}

/// A protocol and port, each as wide as a register.
fn service_bytes(service: ServiceKey) -> Vec<u8> {
    let [high, low] = service.port.to_be_bytes();
    vec![service.protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn keys(comment: &'static str, key: &'static [Type], keys: BTreeSet<Vec<u8>>) -> Set {
    Set {
        key,
        comment,
        content: Content::Keys(keys),
    }
}

fn addresses(comment: &'static str, list: &BTreeSet<Ipv4Addr>) -> Set {
    let list = list.iter().map(|address| address.octets().to_vec()).collect();
    keys(comment, &[Type::Ipv4Address], list)
}
