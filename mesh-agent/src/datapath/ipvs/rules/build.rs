//! The mesh's own rules: what IPVS needs beside it, as nftables tables. Pure.
//!
//! The order of hooks matters: see "the IPVS data path" in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    Rules,
    ruleset::{
        Chain, Content, Expression, Family, Header, Hook, HookKind, Meta, Point, Register, Rule, Ruleset,
        Set, Type,
    },
    target::{backend_name, names, rotation, service_name},
};
use crate::{
    datapath::ipvs::{address::MESH_NETWORK, tunnel::DEVICE},
    model::{Protocol, ServiceKey},
};

/// The mark of packets that came by the tunnel, on this node: "MSH".
pub const TUNNEL_MARK: u32 = 0x004d_5348;
/// Bytes that the tunnel adds to a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
const TUNNEL_BYTES: u32 = 50;
/// IPv4 and TCP headers without options.
const HEADERS_BYTES: u32 = 40;
const LOOPBACK_NETWORK: u8 = 127;
/// The chain that leaves a connection's destination as it is.
const SETTLE: &str = "settle";
/// `ICMP_REDIRECT`
const ICMP_REDIRECT: u8 = 5;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 2;

/// `dstnat` and `srcnat` less one: asked before Docker's own chains.
const BEFORE_DOCKER_DESTINATION: i32 = -101;
const BEFORE_DOCKER_SOURCE: i32 = 99;
const RAW: i32 = -300;
const MANGLE: i32 = -150;
const FILTER: i32 = 0;
/// Before `br_netfilter`, which shows bridged packets to IPv4's hooks.
const BEFORE_BRIDGE_NETFILTER: i32 = -310;

/// What routed and local packets meet.
pub(super) fn ip(rules: &Rules) -> Ruleset {
    let mut chains = BTreeMap::from([
        ("guard".to_owned(), guard(rules)),
        ("prerouting".to_owned(), prerouting()),
        ("input".to_owned(), input(rules)),
        ("output".to_owned(), output()),
        ("refuse".to_owned(), refuse(rules)),
        ("clamp".to_owned(), clamp(rules)),
        ("postrouting".to_owned(), postrouting(rules)),
        (SETTLE.to_owned(), settle()),
    ]);
    let mut counters = BTreeSet::new();
    let mut localhost = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for (service, targets) in &rules.localhost {
        let places = rotation(targets);
        for target in targets {
            let name = backend_name(target.backend);
            counters.insert(name.clone());
            if target.weight > 0 {
                let chain = translate(*service, target.address, target.port, name.clone());
                chains.insert(name, chain);
            }
        }
        if places.is_empty() {
            refused.insert(service_bytes(*service));
            localhost.insert(service_bytes(*service), SETTLE.to_owned());
            continue;
        }
        let places = places.iter().map(|target| backend_name(target.backend)).collect();
        let name = service_name(*service);
        chains.insert(
            name.clone(),
            jumped(vec![rule(
                "each replica in its turn",
                [Expression::Rotate(places)],
            )]),
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
                comment: "what local processes find at 127.0.0.0/8",
                content: Content::Chains(localhost),
            },
        ),
    ]);
    Ruleset {
        family: Family::Ip,
        comment: "the routing mesh's; what IPVS needs beside it",
        sets,
        counters,
        chains,
    }
}

/// What frames on bridges meet: only IPv4 between us and peers comes and goes by the tunnel, and nothing is
/// bridged between it and containers.
pub(super) fn bridge(rules: &Rules) -> Ruleset {
    let mut arriving = vec![rule(
        "not the tunnel's",
        [
            Expression::Meta(Meta::InputInterfaceName, Register::First),
            Expression::Unequal(Register::First, interface(DEVICE)),
            Expression::Accept,
        ],
    )];
    if let Some(node) = rules.node_address {
        arriving.push(from_tunnel(
            "a peer's, for a replica of this node",
            [mesh_destination(), with([source(), Expression::In(names::PEERS)])],
        ));
        arriving.push(from_tunnel(
            "replies of a peer's replica",
            [
                mesh_source(),
                with([
                    destination(),
                    Expression::Equal(Register::First, node.octets().to_vec()),
                ]),
            ],
        ));
    }
    arriving.push(rule("nobody's", [Expression::Drop]));
    let crossing = [
        (Meta::InputInterfaceName, "from the tunnel to a container"),
        (Meta::OutputInterfaceName, "from a container to the tunnel"),
    ];
    let crossing = crossing
        .into_iter()
        .map(|(name, comment)| rule(comment, [on(name, DEVICE), vec![Expression::Drop]].concat()))
        .collect();
    let chains = BTreeMap::from([
        (
            "prerouting".to_owned(),
            hooked(
                HookKind::Filter,
                Point::Prerouting,
                BEFORE_BRIDGE_NETFILTER,
                arriving,
            ),
        ),
        (
            "forward".to_owned(),
            hooked(
                HookKind::Filter,
                Point::Forward,
                BEFORE_BRIDGE_NETFILTER,
                crossing,
            ),
        ),
    ]);
    Ruleset {
        family: Family::Bridge,
        comment: "the routing mesh's; guards the tunnel between IPVS nodes",
        sets: BTreeMap::from([(names::PEERS, addresses("the other nodes", &rules.peers))]),
        counters: BTreeSet::new(),
        chains,
    }
}

/// The address, protocol and port that a key of the frontends' set stands for.
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

/// Drops what can only be forged.
fn guard(rules: &Rules) -> Chain {
    let from_bridge = on(Meta::InputInterfaceName, &rules.bridge);
    let not_by_tunnel = vec![
        Expression::Meta(Meta::Mark, Register::First),
        Expression::Unequal(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
        Expression::Drop,
    ];
    let loopback = |offset| [network(offset, LOOPBACK_NETWORK), vec![Expression::Drop]].concat();
    let rules = vec![
        rule(
            "loopback is not reached from containers",
            [from_bridge.clone(), loopback(DESTINATION_OFFSET)].concat(),
        ),
        rule(
            "loopback is not spoken for by containers",
            [from_bridge, loopback(SOURCE_OFFSET)].concat(),
        ),
        rule(
            "mesh addresses are reached by the tunnel only",
            [mesh_destination(), not_by_tunnel.clone()].concat(),
        ),
        rule(
            "mesh addresses speak by the tunnel only",
            [mesh_source(), not_by_tunnel].concat(),
        ),
    ];
    hooked(HookKind::Filter, Point::Prerouting, RAW, rules)
}

/// Settles the destination of what is IPVS's before Docker's rules are asked.
fn prerouting() -> Chain {
    let rules = vec![
        frontends_stay(),
        rule(
            "not Docker's mesh: this node's replica",
            [mesh_destination(), stay()].concat(),
        ),
    ];
    hooked(HookKind::Nat, Point::Prerouting, BEFORE_DOCKER_DESTINATION, rules)
}

fn output() -> Chain {
    let rules = vec![
        rule(
            "local processes to 127.0.0.0/8, which IPVS does not serve",
            [
                network(DESTINATION_OFFSET, LOOPBACK_NETWORK),
                load_service(Register::First, Register::FirstAt4),
                vec![Expression::GotoBy(names::LOCALHOST)],
            ]
            .concat(),
        ),
        frontends_stay(),
    ];
    hooked(HookKind::Nat, Point::Output, BEFORE_DOCKER_DESTINATION, rules)
}

fn settle() -> Chain {
    jumped(vec![rule("", stay())])
}

/// To a replica.
fn translate(service: ServiceKey, address: Ipv4Addr, port: u16, counter: String) -> Chain {
    jumped(vec![
        rule("", [Expression::Count(counter)]),
        rule(
            "",
            [
                Expression::Meta(Meta::Protocol, Register::First),
                Expression::Equal(Register::First, vec![service.protocol.number()]),
                Expression::Constant(Register::First, address.octets().to_vec()),
                Expression::Constant(Register::Second, port.to_be_bytes().to_vec()),
                Expression::DestinationNat {
                    address: Register::First,
                    port: Some(Register::Second),
                },
            ],
        ),
    ])
}

/// Only peers speak to the tunnel's port.
fn input(rules: &Rules) -> Chain {
    let strangers = rule(
        "the tunnel is for peers",
        [
            protocol(Protocol::Udp),
            vec![
                port(Register::First),
                Expression::Equal(Register::First, rules.tunnel_port.to_be_bytes().to_vec()),
                source(),
                Expression::NotIn(names::PEERS),
                Expression::Drop,
            ],
        ]
        .concat(),
    );
    hooked(HookKind::Filter, Point::Input, FILTER, vec![strangers])
}

/// Answers for services without a replica at 127.0.0.0/8, and keeps the kernel from advising containers
/// about routes that only the node has.
fn refuse(rules: &Rules) -> Chain {
    let refused = |kind, answer| {
        [
            network(DESTINATION_OFFSET, LOOPBACK_NETWORK),
            load_service(Register::First, Register::FirstAt4),
            vec![Expression::In(names::REFUSED)],
            protocol(kind),
            vec![answer],
        ]
        .concat()
    };
    let advice = [
        on(Meta::OutputInterfaceName, &rules.bridge),
        vec![
            Expression::Meta(Meta::Protocol, Register::First),
            Expression::Equal(Register::First, vec![libc::IPPROTO_ICMP as u8]),
            Expression::Payload {
                header: Header::Transport,
                offset: 0,
                length: 1,
                register: Register::First,
            },
            Expression::Equal(Register::First, vec![ICMP_REDIRECT]),
            Expression::Drop,
        ],
    ];
    let rules = vec![
        rule("no replica", refused(Protocol::Tcp, Expression::Reset)),
        rule("no replica", refused(Protocol::Udp, Expression::PortUnreachable)),
        rule("no shorter way", advice.concat()),
    ];
    hooked(HookKind::Filter, Point::Output, FILTER, rules)
}

/// Keeps TCP's segments small enough for the tunnel.
fn clamp(rules: &Rules) -> Chain {
    let size = rules.uplink_mtu.saturating_sub(TUNNEL_BYTES + HEADERS_BYTES);
    let Some(size) = u16::try_from(size).ok().filter(|size| *size > 0) else {
        return hooked(HookKind::Filter, Point::Postrouting, MANGLE, Vec::new());
    };
    let lower = |comment, side: Vec<Expression>| {
        rule(
            comment,
            [
                on(Meta::OutputInterfaceName, &rules.bridge),
                side,
                protocol(Protocol::Tcp),
                vec![
                    Expression::Payload {
                        header: Header::Transport,
                        offset: TCP_FLAGS_OFFSET,
                        length: 1,
                        register: Register::First,
                    },
                    Expression::MaskByte(Register::First, TCP_SYN),
                    Expression::Unequal(Register::First, vec![0]),
                    Expression::Constant(Register::First, size.to_be_bytes().to_vec()),
                    Expression::ClampSegmentSize,
                ],
            ]
            .concat(),
        )
    };
    let rules = vec![
        lower("SYN to a peer's replica", mesh_destination()),
        lower("SYN-ACK of this node's replica", mesh_source()),
    ];
    hooked(HookKind::Filter, Point::Postrouting, MANGLE, rules)
}

/// Sources that replies could not come back to are translated to the node's own address.
fn postrouting(rules: &Rules) -> Chain {
    let Some(node) = rules.node_address else {
        return hooked(
            HookKind::Nat,
            Point::Postrouting,
            BEFORE_DOCKER_SOURCE,
            Vec::new(),
        );
    };
    let towards_bridge = on(Meta::OutputInterfaceName, &rules.bridge);
    let as_node = vec![
        Expression::Constant(Register::First, node.octets().to_vec()),
        Expression::SourceNat,
    ];
    let rules = vec![
        rule(
            "into the tunnel as this node",
            [towards_bridge.clone(), mesh_destination(), as_node.clone()].concat(),
        ),
        rule(
            "loopback to a replica as this node",
            [
                towards_bridge.clone(),
                network(SOURCE_OFFSET, LOOPBACK_NETWORK),
                as_node.clone(),
            ]
            .concat(),
        ),
        rule(
            "a container to a replica beside it, as this node",
            [
                on(Meta::InputInterfaceName, &rules.bridge),
                towards_bridge,
                vec![
                    destination(),
                    Expression::In(names::LOCAL_REPLICAS),
                    Expression::Meta(Meta::Mark, Register::First),
                    Expression::Unequal(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
                ],
                as_node,
            ]
            .concat(),
        ),
    ];
    hooked(HookKind::Nat, Point::Postrouting, BEFORE_DOCKER_SOURCE, rules)
}

fn frontends_stay() -> Rule {
    let mut expressions = vec![destination()];
    expressions.extend(load_service(Register::FirstAt4, Register::FirstAt8));
    expressions.push(Expression::In(names::FRONTENDS));
    expressions.extend(stay());
    rule("not Docker's mesh: IPVS answers", expressions)
}

/// Translates the destination to itself, which settles it.
fn stay() -> Vec<Expression> {
    vec![
        destination(),
        Expression::DestinationNat {
            address: Register::First,
            port: None,
        },
    ]
}

fn from_tunnel(comment: &'static str, matches: [Vec<Expression>; 2]) -> Rule {
    let mut expressions = vec![
        Expression::Meta(Meta::EtherType, Register::First),
        Expression::Equal(Register::First, 0x0800_u16.to_be_bytes().to_vec()),
    ];
    expressions.extend(matches.concat());
    expressions.extend([
        Expression::Constant(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
        Expression::SetMark,
        Expression::Accept,
    ]);
    rule(comment, expressions)
}

const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;

fn source() -> Expression {
    address(SOURCE_OFFSET)
}

fn destination() -> Expression {
    address(DESTINATION_OFFSET)
}

fn address(offset: u32) -> Expression {
    Expression::Payload {
        header: Header::Network,
        offset,
        length: 4,
        register: Register::First,
    }
}

fn mesh_source() -> Vec<Expression> {
    network(SOURCE_OFFSET, MESH_NETWORK)
}

fn mesh_destination() -> Vec<Expression> {
    network(DESTINATION_OFFSET, MESH_NETWORK)
}

/// Matches a /8.
fn network(offset: u32, first_byte: u8) -> Vec<Expression> {
    vec![
        Expression::Payload {
            header: Header::Network,
            offset,
            length: 1,
            register: Register::First,
        },
        Expression::Equal(Register::First, vec![first_byte]),
    ]
}

fn protocol(protocol: Protocol) -> Vec<Expression> {
    vec![
        Expression::Meta(Meta::Protocol, Register::First),
        Expression::Equal(Register::First, vec![protocol.number()]),
    ]
}

/// TCP's and UDP's destination port.
fn port(register: Register) -> Expression {
    Expression::Payload {
        header: Header::Transport,
        offset: 2,
        length: 2,
        register,
    }
}

fn load_service(protocol: Register, at: Register) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Protocol, protocol), port(at)]
}

fn on(name: Meta, device: &str) -> Vec<Expression> {
    vec![
        Expression::Meta(name, Register::First),
        Expression::Equal(Register::First, interface(device)),
    ]
}

/// An interface's name, as wide as the kernel's.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
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

fn hooked(kind: HookKind, point: Point, priority: i32, rules: Vec<Rule>) -> Chain {
    let hook = Some(Hook {
        kind,
        point,
        priority,
    });
    Chain { hook, rules }
}

fn jumped(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

fn rule(comment: &'static str, expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule {
        comment,
        expressions: expressions.into(),
    }
}

fn with<const N: usize>(expressions: [Expression; N]) -> Vec<Expression> {
    expressions.into()
}
