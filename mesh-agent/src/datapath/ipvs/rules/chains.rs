//! The chains that packets go through, rule by rule. Pure.
//!
//! The order of hooks matters: destinations are fixed before Docker's chains see the packet (-100), packets
//! without a replica are refused before IPVS sees them (98), and sources are translated before Docker does it
//! (100).

use std::net::Ipv4Addr;

use super::{
    Rules,
    phrase::{
        BEFORE_BRIDGE_NETFILTER, BEFORE_DOCKER_DESTINATION, BEFORE_DOCKER_SOURCE, DESTINATION_OFFSET, FILTER,
        LOOPBACK_NETWORK, MANGLE, RAW, SOURCE_OFFSET, destination, hooked, interface, jumped, load_service,
        mesh_destination, mesh_source, network, not_by_detour, not_on, on, port, protocol, rule, source,
        subnet,
    },
    ruleset::{Chain, Expression, Header, HookKind, Meta, Point, Register, Rule},
    target::names,
};
use crate::{
    datapath::ipvs::{detour, tunnel::DEVICE},
    model::{Protocol, ServiceKey},
};

/// The mark, on this node, of packets that arrived through the tunnel: "MSH".
pub const TUNNEL_MARK: u32 = 0x004d_5348;
/// The chain that leaves a connection's destination as it is.
pub(super) const SETTLE: &str = "settle";
/// The chain that refuses a connection.
pub(super) const REFUSE: &str = "refuse";
/// Bytes that the tunnel adds to a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
const TUNNEL_BYTES: u32 = 50;
/// IPv4 and TCP headers without options.
const HEADERS_BYTES: u32 = 40;
/// `ICMP_REDIRECT`
const ICMP_REDIRECT: u8 = 5;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 2;

/// Drops packets that can only be forged.
pub(super) fn guard(rules: &Rules) -> Chain {
    let from_bridge = on(Meta::InputInterfaceName, &rules.bridge);
    let not_by_tunnel = vec![
        Expression::Meta(Meta::Mark, Register::First),
        Expression::Unequal(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
        Expression::Drop,
    ];
    let loopback = |offset| [network(offset, LOOPBACK_NETWORK), vec![Expression::Drop]].concat();
    let rules = vec![
        rule(
            "containers may not reach loopback addresses",
            [from_bridge.clone(), loopback(DESTINATION_OFFSET)].concat(),
        ),
        rule(
            "containers may not use loopback source addresses",
            [from_bridge, loopback(SOURCE_OFFSET)].concat(),
        ),
        rule(
            "mesh addresses are reached through the tunnel only",
            [mesh_destination(), not_by_tunnel.clone()].concat(),
        ),
        rule(
            "mesh source addresses come through the tunnel only",
            [mesh_source(), not_by_tunnel].concat(),
        ),
        rule(
            "the detour's addresses come by it only",
            [
                not_by_detour(),
                network(DESTINATION_OFFSET, detour::NETWORK),
                vec![Expression::Drop],
            ]
            .concat(),
        ),
        rule(
            "the detour's source addresses come by it only",
            [
                not_by_detour(),
                network(SOURCE_OFFSET, detour::NETWORK),
                vec![Expression::Drop],
            ]
            .concat(),
        ),
    ];
    hooked(HookKind::Filter, Point::Prerouting, RAW, rules)
}

/// Fixes the destination of IPVS's packets before Docker's rules see them.
pub(super) fn prerouting(rules: &Rules) -> Chain {
    let rules = vec![
        by_detour(rules),
        frontends_stay(),
        rule(
            "not Docker's mesh: this node's replica",
            [mesh_destination(), stay()].concat(),
        ),
    ];
    hooked(HookKind::Nat, Point::Prerouting, BEFORE_DOCKER_DESTINATION, rules)
}

pub(super) fn output() -> Chain {
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

pub(super) fn settle() -> Chain {
    jumped(vec![rule("", stay())])
}

/// Sends a local process's connection to a replica.
pub(super) fn translate(service: ServiceKey, address: Ipv4Addr, port: u16, counter: String) -> Chain {
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

/// Only peers may send to the tunnel's port. Connections without a replica are refused at once: IPVS would
/// drop them, with an ICMP message that the kernel sends once a second at most.
pub(super) fn input(rules: &Rules) -> Chain {
    let strangers = [
        protocol(Protocol::Udp),
        vec![
            port(Register::First),
            Expression::Equal(Register::First, rules.tunnel_port.to_be_bytes().to_vec()),
            source(),
            Expression::NotIn(names::PEERS),
            Expression::Drop,
        ],
    ];
    let without_replica = |destination: Vec<Expression>| {
        let mut refused = load_service(Register::First, Register::FirstAt4);
        refused.extend([
            Expression::In(names::REFUSED),
            // Connections to draining replicas continue.
            Expression::ConnectionIsNew,
        ]);
        refused.extend(destination);
        refused.push(Expression::Goto(REFUSE));
        refused
    };
    let rules = vec![
        rule("the tunnel is for peers", strangers.concat()),
        rule("no replica", without_replica(at_frontend())),
        rule(
            "no replica",
            without_replica(network(DESTINATION_OFFSET, LOOPBACK_NETWORK)),
        ),
    ];
    hooked(HookKind::Filter, Point::Input, FILTER, rules)
}

pub(super) fn refuse() -> Chain {
    let refusal = |kind, answer| rule("", [protocol(kind), vec![answer]].concat());
    jumped(vec![
        refusal(Protocol::Tcp, Expression::Reset),
        refusal(Protocol::Udp, Expression::PortUnreachable),
    ])
}

/// Keeps the kernel from sending containers ICMP redirects to routes that only the node has.
pub(super) fn advice(rules: &Rules) -> Chain {
    let redirect = [
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
    hooked(
        HookKind::Filter,
        Point::Output,
        FILTER,
        vec![rule("no ICMP redirects to containers", redirect.concat())],
    )
}

/// Lowers TCP's segment size to what fits into the tunnel.
pub(super) fn clamp(rules: &Rules) -> Chain {
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
                    Expression::Mask(Register::First, vec![TCP_SYN]),
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

/// Translates sources that replies could not return to, to the node's own address.
pub(super) fn postrouting(rules: &Rules) -> Chain {
    let Some(node) = rules.node_address else {
        return hooked(
            HookKind::Nat,
            Point::Postrouting,
            BEFORE_DOCKER_SOURCE,
            Vec::new(),
        );
    };
    let towards_bridge = on(Meta::OutputInterfaceName, &rules.bridge);
    let to_replica_as_node = |input: &str| {
        [
            on(Meta::InputInterfaceName, input),
            on(Meta::OutputInterfaceName, &rules.bridge),
            vec![
                destination(),
                Expression::In(names::LOCAL_REPLICAS),
                Expression::Meta(Meta::Mark, Register::First),
                Expression::Unequal(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
                Expression::Constant(Register::First, node.octets().to_vec()),
                Expression::SourceNat,
            ],
        ]
        .concat()
    };
    let as_node = vec![
        Expression::Constant(Register::First, node.octets().to_vec()),
        Expression::SourceNat,
    ];
    let of_own_network = rules.masquerades.iter().map(|(clients, source)| {
        rule(
            "a client of a replica's own network",
            [
                on(Meta::OutputInterfaceName, &rules.bridge),
                subnet(SOURCE_OFFSET, *clients),
                vec![
                    destination(),
                    Expression::In(names::LOCAL_REPLICAS),
                    Expression::Constant(Register::First, source.octets().to_vec()),
                    Expression::SourceNat,
                ],
            ]
            .concat(),
        )
    });
    let of_own_network: Vec<_> = of_own_network.collect();
    let mut rules = vec![
        rule(
            "into the tunnel as this node",
            [towards_bridge.clone(), mesh_destination(), as_node.clone()].concat(),
        ),
        rule(
            "loopback to a replica as this node",
            [towards_bridge, network(SOURCE_OFFSET, LOOPBACK_NETWORK), as_node].concat(),
        ),
        rule(
            "a container to a replica of this node, as this node",
            to_replica_as_node(&rules.bridge),
        ),
        rule(
            "a container on another bridge to a replica of this node, as this node",
            to_replica_as_node(detour::IN),
        ),
        rule(
            "a container on another bridge, by the detour",
            [
                on(Meta::OutputInterfaceName, detour::OUT),
                vec![
                    Expression::Constant(Register::First, detour::CLIENT.octets().to_vec()),
                    Expression::SourceNat,
                ],
            ]
            .concat(),
        ),
    ];
    rules.extend(of_own_network);
    hooked(HookKind::Nat, Point::Postrouting, BEFORE_DOCKER_SOURCE, rules)
}

fn frontends_stay() -> Rule {
    rule(
        "not Docker's mesh: IPVS answers",
        [at_frontend(), stay()].concat(),
    )
}

/// Sends what containers on other bridges than Docker's own send to a frontend by the detour. Those bridges
/// have any name; an uplink can be a bridge, too.
fn by_detour(rules: &Rules) -> Rule {
    let mut expressions = on(Meta::InputInterfaceKind, "bridge");
    expressions.extend(not_on(Meta::InputInterfaceName, &rules.bridge));
    for uplink in &rules.uplinks {
        expressions.extend(not_on(Meta::InputInterfaceName, uplink));
    }
    expressions.extend(at_frontend());
    expressions.extend([
        Expression::Constant(Register::First, detour::FRONTEND.octets().to_vec()),
        Expression::DestinationNat {
            address: Register::First,
            port: None,
        },
    ]);
    rule("a container on another bridge, by the detour", expressions)
}

/// Drops replies that come by the detour and belong to no connection any more: they would go round in it.
pub(super) fn astray() -> Chain {
    let again = [
        on(Meta::InputInterfaceName, detour::OUT),
        on(Meta::OutputInterfaceName, detour::IN),
        vec![Expression::Drop],
    ];
    hooked(
        HookKind::Filter,
        Point::Forward,
        FILTER,
        vec![rule("of no connection", again.concat())],
    )
}

/// Matches what is for a frontend.
fn at_frontend() -> Vec<Expression> {
    let mut expressions = vec![destination()];
    expressions.extend(load_service(Register::FirstAt4, Register::FirstAt8));
    expressions.push(Expression::In(names::FRONTENDS));
    expressions
}

/// Translates the destination to itself, so that later rules do not translate it.
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

/// What may arrive through the tunnel: packets between peers and replicas, and nothing else.
pub(super) fn arriving(rules: &Rules) -> Chain {
    let mut arriving = vec![rule(
        "not from the tunnel",
        [
            Expression::Meta(Meta::InputInterfaceName, Register::First),
            Expression::Unequal(Register::First, interface(DEVICE)),
            Expression::Accept,
        ],
    )];
    if let Some(node) = rules.node_address {
        arriving.push(from_tunnel(
            "from a peer to a replica of this node",
            [mesh_destination(), vec![source(), Expression::In(names::PEERS)]],
        ));
        arriving.push(from_tunnel(
            "replies of a peer's replica",
            [
                mesh_source(),
                vec![
                    destination(),
                    Expression::Equal(Register::First, node.octets().to_vec()),
                ],
            ],
        ));
    }
    arriving.push(rule("anything else", [Expression::Drop]));
    hooked(
        HookKind::Filter,
        Point::Prerouting,
        BEFORE_BRIDGE_NETFILTER,
        arriving,
    )
}

/// Nothing is bridged between the tunnel and containers, as the mesh's packets are routed. The exceptions are
/// replies to a container that connected to its own node: `br_netfilter` restores the container's address
/// while they are still on the bridge, and then bridges them itself.
pub(super) fn crossing() -> Chain {
    let reply = [
        on(Meta::InputInterfaceName, DEVICE),
        vec![
            Expression::Meta(Meta::EtherType, Register::First),
            Expression::Equal(Register::First, 0x0800_u16.to_be_bytes().to_vec()),
        ],
        mesh_source(),
        vec![
            Expression::Meta(Meta::Mark, Register::First),
            Expression::Equal(Register::First, TUNNEL_MARK.to_ne_bytes().to_vec()),
            Expression::Accept,
        ],
    ];
    let mut rules = vec![rule("replies to a container of this node", reply.concat())];
    rules.extend(
        [
            (Meta::InputInterfaceName, "from the tunnel to a container"),
            (Meta::OutputInterfaceName, "from a container to the tunnel"),
        ]
        .into_iter()
        .map(|(name, comment)| rule(comment, [on(name, DEVICE), vec![Expression::Drop]].concat())),
    );
    hooked(HookKind::Filter, Point::Forward, BEFORE_BRIDGE_NETFILTER, rules)
}
