//! The table of source rules, in an ordinary collection.

use super::TestTables;
use crate::{
    abi::{Ipv6Address, Policy, SourceVerdicts},
    bytes::Be32,
};

/// The first 120 bits: of an IPv4 address that is mapped to IPv6, 24.
pub(crate) fn network(address: &Ipv6Address) -> Ipv6Address {
    let Ipv6Address([first, second, third, fourth]) = *address;
    Ipv6Address([first, second, third, Be32::new(fourth.get() & !0xff)])
}

impl TestTables {
    /// What a policy says of a client.
    pub(super) fn verdicts(
        &self,
        policy: Policy,
        interface: u32,
        client: &Ipv6Address,
    ) -> Option<SourceVerdicts> {
        let policy = u32::from(policy.id());
        let verdicts = |source| self.source_rules.get(&(policy, interface, source)).copied();
        verdicts(network(client)).or_else(|| verdicts(Ipv6Address::default()))
    }
}
