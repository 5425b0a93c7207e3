//! The maps of IPv6 addresses and the IPv4 addresses that stand for them.

use crate::{
    abi::{Ipv6Address, MappedClient},
    bytes::Be32,
    tables::Tables,
};

/// Which IPv4 address stands for which IPv6 address.
pub trait MappedTables: Tables {
    /// What stands for an address of this node.
    fn own_mapped(&self, address: &Ipv6Address) -> Option<Be32>;
    /// The address of this node that one stands for.
    fn own_ipv6(&self, mapped: Be32) -> Option<Ipv6Address>;
    /// What stands for a client whose preferred address was another one's.
    fn displaced(&self, address: &Ipv6Address) -> Option<Be32>;
    /// Lets an address stand for a client.
    fn map_client(&self, client: &MappedClient, mapped: Be32);
    /// Records that it is not the client's preferred one.
    fn displace(&self, address: &Ipv6Address, mapped: Be32);
    /// Whether there were not too many new clients of late; counts one.
    fn may_map_client(&self) -> bool;
}
