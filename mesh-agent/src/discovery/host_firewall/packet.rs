//! The packets of a client's connection as the chain would see them under Docker's mesh, and whether a rule's
//! conditions hold for them. Pure.
//!
//! The chain is passed in FORWARD: after Docker has translated the destination, before it translates the
//! source. So a client's packet is for the ingress network's sandbox on docker_gwbridge by then, at the
//! published port, and the answer comes from there.

use std::net::Ipv4Addr;

use super::ruleset::{Condition, FIRST_CLIENT_PORT, Ports, Subject};
use crate::model::{Prefix, Protocol, ServiceKey, Subnet};

/// Docker's bridge by which the ingress network's sandbox is reached.
pub(super) const GATEWAY_BRIDGE: &str = "docker_gwbridge";

/// Whether something holds, as far as that can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    No,
    /// For some of the packets in question, or known only as they come.
    Unknown,
    Yes,
}

impl Truth {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    fn inverted(self, inverted: bool) -> Self {
        match (self, inverted) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (held, _) => held,
        }
    }
}

/// Which packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client's first.
    Opening,
    /// A later one of the client's.
    Open,
    /// An answer.
    Answer,
}

/// Some packets of clients' connections to a published port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) service: ServiceKey,
    pub(super) phase: Phase,
    /// Where the client's packets come in, by the name of the interface.
    pub(super) interface: &'a str,
    /// The clients: those of this prefix and of no longer one that the rules name.
    pub(super) client: Prefix,
    /// The network of docker_gwbridge, if there is one.
    pub(super) gateway: Option<Subnet>,
}

impl Packet<'_> {
    /// Whether all conditions of a rule hold.
    pub(super) fn meets(&self, conditions: &[Condition]) -> Truth {
        let mut all = Truth::Yes;
        for condition in conditions {
            match self.holds(&condition.subject).inverted(condition.inverted) {
                Truth::No => return Truth::No,
                Truth::Unknown => all = Truth::Unknown,
                Truth::Yes => {}
            }
        }
        all
    }

    fn holds(&self, subject: &Subject) -> Truth {
        let is_answer = self.phase == Phase::Answer;
        match subject {
            Subject::Source(subnet) if is_answer => self.of_sandbox(*subnet),
            Subject::Destination(subnet) if !is_answer => self.of_sandbox(*subnet),
            Subject::Source(subnet) | Subject::Destination(subnet) | Subject::OriginalSource(subnet) => {
                Truth::of(Prefix::from(*subnet).contains(self.client))
            }
            Subject::SourceRange(range) if !is_answer => self.of_client(range),
            Subject::DestinationRange(range) if is_answer => self.of_client(range),
            Subject::In(name) if !is_answer => Truth::of(is_named(self.interface, name)),
            Subject::Out(name) if is_answer => Truth::of(is_named(self.interface, name)),
            Subject::In(name) | Subject::Out(name) => Truth::of(is_named(GATEWAY_BRIDGE, name)),
            Subject::Protocol(number) => Truth::of(*number == 0 || *number == self.service.protocol.number()),
            Subject::SourcePorts(ports) if is_answer => self.of_service(ports),
            Subject::DestinationPorts(ports) if !is_answer => self.of_service(ports),
            Subject::OriginalDestinationPorts(ports) => self.of_service(ports),
            // A rule about the ports that clients choose from is meant so. One about others is about
            // services: that an answer goes to such a port is chance.
            Subject::DestinationPorts(ports) => Truth::of(has_all(ports, FIRST_CLIENT_PORT)),
            Subject::SourcePorts(ports) if has_all(ports, 1) => Truth::Yes,
            Subject::SourcePorts(_) => Truth::Unknown,
            Subject::EitherPort(ports) => self.of_service(ports),
            Subject::State(states) => Truth::of(
                states.translated
                    || match self.phase {
                        Phase::Opening => states.new,
                        Phase::Open | Phase::Answer => states.established,
                    },
            ),
            Subject::IsOriginal => Truth::of(!is_answer),
            Subject::Syn => Truth::of(self.phase == Phase::Opening && self.service.protocol == Protocol::Tcp),
            Subject::SourceRange(_) | Subject::DestinationRange(_) | Subject::Other(_) => Truth::Unknown,
        }
    }

    /// Whether the ingress network's sandbox is of a network. Its address is one of docker_gwbridge's.
    fn of_sandbox(&self, subnet: Subnet) -> Truth {
        match self.gateway {
            _ if subnet.prefix() == 0 => Truth::Yes,
            None => Truth::Unknown,
            Some(gateway) if Prefix::from(subnet).contains(gateway.into()) => Truth::Yes,
            Some(gateway) if Prefix::from(gateway).contains(subnet.into()) => Truth::Unknown,
            Some(_) => Truth::No,
        }
    }

    fn of_client(&self, range: &std::ops::RangeInclusive<Ipv4Addr>) -> Truth {
        Truth::of(prefixes(range).iter().any(|prefix| prefix.contains(self.client)))
    }

    fn of_service(&self, ports: &Ports) -> Truth {
        Truth::of(ports.iter().any(|range| range.contains(&self.service.port)))
    }
}

/// Whether all ports from one on are among these.
fn has_all(ports: &Ports, first: u16) -> bool {
    ports
        .iter()
        .any(|range| *range.start() <= first && *range.end() == u16::MAX)
}

/// Whether an interface's name is this one, or begins with it where it ends in `+`.
fn is_named(interface: &str, name: &str) -> bool {
    name.strip_suffix('+')
        .map_or(interface == name, |beginning| interface.starts_with(beginning))
}

/// The prefixes that make up a range of addresses.
pub(super) fn prefixes(range: &std::ops::RangeInclusive<Ipv4Addr>) -> Vec<Prefix> {
    let (mut first, last) = (
        u64::from(range.start().to_bits()),
        u64::from(range.end().to_bits()),
    );
    let mut found = Vec::new();
    while first <= last {
        // The largest block that begins here and does not go beyond the end.
        let aligned = if first == 0 {
            32
        } else {
            first.trailing_zeros().min(32)
        };
        let fits = (last - first + 1).ilog2();
        let bits = aligned.min(fits);
        found.push(Subnet::of(Ipv4Addr::from_bits(first as u32), (32 - bits) as u8).into());
        first += 1 << bits;
    }
    found
}
