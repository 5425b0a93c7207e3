//! Building blocks of the mesh's rules. Pure; imports the rulesets' types and the mesh's networks.

use std::net::Ipv4Addr;

use super::ruleset::{Chain, Expression, Header, Hook, HookKind, Meta, Point, Register, Rule};
use crate::{
    datapath::ipvs::{
        address::{MESH_MASK, REPLICA_NETWORK},
        detour,
    },
    model::{Protocol, Subnet},
};

/// `dstnat` and `srcnat` less one: before Docker's own chains.
pub(super) const BEFORE_DOCKER_DESTINATION: i32 = -101;
pub(super) const BEFORE_DOCKER_SOURCE: i32 = 99;
pub(super) const RAW: i32 = -300;
pub(super) const MANGLE: i32 = -150;
pub(super) const FILTER: i32 = 0;
/// Before `br_netfilter`, which shows bridged packets to IPv4's hooks.
pub(super) const BEFORE_BRIDGE_NETFILTER: i32 = -310;

pub(super) const LOOPBACK_NETWORK: u8 = 127;

pub(super) const SOURCE_OFFSET: u32 = 12;
pub(super) const DESTINATION_OFFSET: u32 = 16;

pub(super) fn source() -> Expression {
    address(SOURCE_OFFSET)
}

pub(super) fn destination() -> Expression {
    address(DESTINATION_OFFSET)
}

pub(super) fn address(offset: u32) -> Expression {
    Expression::Payload {
        header: Header::Network,
        offset,
        length: 4,
        register: Register::First,
    }
}

pub(super) fn mesh_source() -> Vec<Expression> {
    mesh_network(SOURCE_OFFSET)
}

pub(super) fn mesh_destination() -> Vec<Expression> {
    mesh_network(DESTINATION_OFFSET)
}

/// Matches the mesh addresses of replicas and of nodes.
fn mesh_network(offset: u32) -> Vec<Expression> {
    vec![
        address(offset),
        Expression::Mask(Register::First, MESH_MASK.octets().to_vec()),
        Expression::Equal(
            Register::First,
            Ipv4Addr::new(REPLICA_NETWORK, 0, 0, 0).octets().to_vec(),
        ),
    ]
}

/// Matches a /8.
pub(super) fn network(offset: u32, first_byte: u8) -> Vec<Expression> {
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

/// Matches a network.
pub(super) fn subnet(offset: u32, subnet: Subnet) -> Vec<Expression> {
    vec![
        address(offset),
        Expression::Mask(Register::First, subnet.mask().octets().to_vec()),
        Expression::Equal(Register::First, subnet.address().octets().to_vec()),
    ]
}

pub(super) fn protocol(protocol: Protocol) -> Vec<Expression> {
    vec![
        Expression::Meta(Meta::Protocol, Register::First),
        Expression::Equal(Register::First, vec![protocol.number()]),
    ]
}

/// Reads TCP's or UDP's destination port.
pub(super) fn port(register: Register) -> Expression {
    Expression::Payload {
        header: Header::Transport,
        offset: 2,
        length: 2,
        register,
    }
}

pub(super) fn load_service(protocol: Register, at: Register) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Protocol, protocol), port(at)]
}

pub(super) fn on(name: Meta, device: &str) -> Vec<Expression> {
    vec![
        Expression::Meta(name, Register::First),
        Expression::Equal(Register::First, interface(device)),
    ]
}

/// Matches what has not come by the detour.
pub(super) fn not_by_detour() -> Vec<Expression> {
    let ends = [detour::OUT, detour::IN].into_iter();
    ends.flat_map(|name| not_on(Meta::InputInterfaceName, name))
        .collect()
}

pub(super) fn not_on(name: Meta, device: &str) -> Vec<Expression> {
    vec![
        Expression::Meta(name, Register::First),
        Expression::Unequal(Register::First, interface(device)),
    ]
}

/// An interface's name, padded to the kernel's width.
pub(super) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

pub(super) fn hooked(kind: HookKind, point: Point, priority: i32, rules: Vec<Rule>) -> Chain {
    let hook = Some(Hook {
        kind,
        point,
        priority,
    });
    Chain { hook, rules }
}

pub(super) fn jumped(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

pub(super) fn rule(comment: &'static str, expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule {
        comment,
        expressions: expressions.into(),
    }
}
