//! What the host's own firewall means for each published port. Pure.

use std::{collections::BTreeMap, sync::Arc};

use super::{Protocol, SourcePolicy};

/// Who may come in to a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PortPolicy {
    /// No rule is against anyone.
    #[default]
    Everyone,
    /// Whom these rules let in.
    Rules(Arc<SourcePolicy>),
    /// A rule decides that the mesh cannot express; its text. The port is not the mesh's.
    Inexpressible(Arc<str>),
}

/// The policies of all ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPolicies {
    /// Each holds from its port to the next one.
    starts: BTreeMap<(u8, u16), PortPolicy>,
}

impl PortPolicies {
    /// One policy for all ports.
    #[must_use]
    pub fn all(policy: &PortPolicy) -> Self {
        let mut policies = Self::default();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            policies.from(protocol, 0, policy.clone());
        }
        policies
    }

    /// From a port on, up to the next one that has a policy, this one holds.
    pub fn from(&mut self, protocol: Protocol, port: u16, policy: PortPolicy) {
        self.starts.insert((protocol.number(), port), policy);
    }

    /// The policy of a published port.
    #[must_use]
    pub fn of(&self, protocol: Protocol, port: u16) -> PortPolicy {
        let number = protocol.number();
        let mut held = self.starts.range((number, 0)..=(number, port));
        held.next_back()
            .map_or(PortPolicy::Everyone, |(_, policy)| policy.clone())
    }
}
