//! Whether this node serves IPv6, and at which addresses.

use std::{collections::BTreeSet, net::Ipv6Addr};

use mesh_support::watched::Watched as _;

use super::Agent;

impl Agent {
    /// The addresses at which IPv6 is to be served, once answers find their way.
    pub(super) fn ipv6_addresses(&self) -> BTreeSet<Ipv6Addr> {
        let network = self.parts.network.current();
        network.map(|network| network.ipv6_addresses).unwrap_or_default()
    }
}
