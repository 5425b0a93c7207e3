//! An nftables table as plain data, in which the wanted and the known table are compared. Knows the kernel's
//! concepts, not what the mesh uses them for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// IPv4, routed or local.
    Ip,
    /// Frames on bridges.
    Bridge,
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ip => "ip",
            Self::Bridge => "bridge",
        })
    }
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) family: Family,
    pub(super) comment: &'static str,
    pub(super) sets: BTreeMap<&'static str, Set>,
    /// Named counters.
    pub(super) counters: BTreeSet<String>,
    pub(super) chains: BTreeMap<String, Chain>,
}

/// A named set or verdict map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) key: &'static [Type],
    pub(super) comment: &'static str,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Keys, as bytes of registers.
    Keys(BTreeSet<Vec<u8>>),
    /// Keys with the chain to go to.
    Chains(BTreeMap<Vec<u8>, String>),
}

/// The type of a part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Ipv4Address,
    Protocol,
    Port,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// `None`: only jumped to.
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// Where packets go through a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: HookKind,
    pub(super) point: Point,
    pub(super) priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookKind {
    Filter,
    /// Only the first packet of a connection goes through the chain.
    Nat,
}

/// Netfilter's hooks; IPv4's and the bridge's have the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) comment: &'static str,
    pub(super) expressions: Vec<Expression>,
}

/// A register of nf_tables, with its number in `linux/netfilter/nf_tables.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// The first 16 bytes.
    First = 1,
    /// The 16 bytes after.
    Second = 2,
    /// Bytes 4 to 7 of the first.
    FirstAt4 = 9,
    /// Bytes 8 to 11 of the first.
    FirstAt8 = 10,
}

/// One step of a rule; a match that fails ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Reads metadata of the packet.
    Meta(Meta, Register),
    /// Reads bytes of a header.
    Payload {
        header: Header,
        offset: u32,
        length: u32,
        register: Register,
    },
    /// Masks a register's first bytes.
    Mask(Register, Vec<u8>),
    /// Matches a register's bytes.
    Equal(Register, Vec<u8>),
    /// Matches when the register has other bytes.
    Unequal(Register, Vec<u8>),
    /// Matches when the first register is in the set.
    In(&'static str),
    /// Matches when the first register is not in the set.
    NotIn(&'static str),
    /// Goes to the chain that a map has for the first register; continues if it has none.
    GotoBy(&'static str),
    /// Goes to a chain.
    Goto(&'static str),
    /// Goes to these chains in turn.
    Rotate(Vec<String>),
    /// Matches the packets of a connection until one has been answered.
    ConnectionIsNew,
    /// Writes a constant into a register.
    Constant(Register, Vec<u8>),
    /// Makes the first register the packet's mark.
    SetMark,
    /// Counts with a named counter.
    Count(String),
    /// Translates the connection's destination.
    DestinationNat {
        address: Register,
        port: Option<Register>,
    },
    /// Translates the connection's source to the address in the first register.
    SourceNat,
    /// Lowers TCP's maximum segment size to the two bytes in the first register.
    ClampSegmentSize,
    Drop,
    Accept,
    /// Answers with a TCP reset.
    Reset,
    /// Answers with ICMP "port unreachable".
    PortUnreachable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    EtherType = 1,
    Mark = 3,
    InputInterfaceName = 6,
    OutputInterfaceName = 7,
    Protocol = 16,
    InputInterfaceKind = 26,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

impl Chain {
    /// Whether a rule goes to the chain of this name, which must then be added before it and deleted after
    /// it.
    #[cfg(test)]
    pub(super) fn leads_to(&self, name: &str) -> bool {
        self.rules.iter().flat_map(|rule| &rule.expressions).any(
            |expression| matches!(expression, Expression::Rotate(chains) if chains.iter().any(|chain| chain == name)),
        )
    }
}
