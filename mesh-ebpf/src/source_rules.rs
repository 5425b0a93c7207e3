//! Who may come in: whether the source rules of a service let a client's packet pass.
//!
//! They hold at the entry node, for clients from the network and for containers, as `DOCKER-USER` does: that
//! chain is reached from FORWARD, through which Docker's mesh sends both (a container's packets come from its
//! bridge, with the container's own address). What processes of the node itself send goes by OUTPUT, and so
//! no rule of that chain, nor any here, is about them.

use crate::{
    abi::{
        DropReason, FlowKey, Hook, Ipv6Address, Origin, Policy, SourceRule, SourceVerdict, is_mapped_client,
    },
    bytes::Be32,
    frame::ReadFrame,
    tables::Tables,
    verdict::Decision,
};

/// What a packet is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It opens a flow.
    Opening,
    /// It is of an open connection.
    Open,
}

/// The decision about a client's packet that its service's rules do not let in; `None` where they do.
#[inline(always)]
pub fn refusal<'a, F: ReadFrame, T: Tables>(
    frame: &F,
    tables: &T,
    hook: Hook,
    origin: Origin,
    key: &FlowKey,
    policy: Policy,
    phase: Phase,
) -> Option<Decision<'a>> {
    if policy == Policy::NONE || origin == Origin::MESH0 {
        return None;
    }
    let interface = if !policy.is_by_interface() {
        0
    } else if origin == Origin::CONTAINER {
        SourceRule::CONTAINERS
    } else {
        frame.interface()
    };
    let client = client(tables, key.source);
    let Some(verdicts) = tables.source_rule(policy, interface, &client) else {
        // Each interface has a rule for all sources. In XDP this can be a port of a bond, of which the agent
        // knows the bond only, as iptables does: tc sees that.
        return Some(match hook {
            Hook::Xdp => Decision::PASS,
            Hook::TcUplink | Hook::TcContainer | Hook::TcMesh0 => Decision::drop(DropReason::SourceDenied),
        });
    };
    let verdict = match phase {
        Phase::Opening => verdicts.opening(),
        Phase::Open => verdicts.open(),
    };
    match verdict {
        SourceVerdict::ACCEPT => None,
        SourceVerdict::REJECT => Some(Decision::refuse(DropReason::SourceRejected)),
        _ => Some(Decision::drop(DropReason::SourceDenied)),
    }
}

/// The address that the rules are about. A client that was forgotten since its packet was translated, as many
/// others came, is one that no rule is about.
#[inline(always)]
fn client<T: Tables>(tables: &T, source: Be32) -> Ipv6Address {
    if !is_mapped_client(source) {
        return Ipv6Address::of_ipv4(source);
    }
    match tables.mapped_client(source) {
        Some(client) => client.address,
        None => Ipv6Address::default(),
    }
}

#[cfg(test)]
mod tests;
