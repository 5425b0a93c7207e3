//! The tables of IPv6 addresses, in ordinary collections.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::TestTables;
use crate::{
    abi::{FrontendKey, Ipv6Address, MappedClient},
    bytes::Be32,
    mapped_tables::MappedTables,
};

/// What stands for what.
#[derive(Default)]
pub(super) struct MappedMemory {
    own: BTreeMap<Ipv6Address, Be32>,
    by_ipv6: RefCell<BTreeMap<Ipv6Address, Be32>>,
    by_ipv4: RefCell<BTreeMap<Be32, MappedClient>>,
    /// How many more new clients it takes, if not any number.
    left: Cell<Option<u32>>,
}

impl TestTables {
    /// The same node with an IPv6 address, at which it answers as at its IPv4 address.
    pub(crate) fn with_ipv6(mut self, address: Ipv6Addr, mapped: Ipv4Addr) -> Self {
        self.mapped.own.insert(address.into(), mapped.into());
        let frontends: Vec<(FrontendKey, u32)> = self.frontends.iter().map(|(key, to)| (*key, *to)).collect();
        for (key, service) in frontends {
            let address = mapped.into();
            self.frontends.insert(FrontendKey { address, ..key }, service);
        }
        self
    }

    /// Lets so many new IPv6 clients come.
    pub(crate) fn take_clients(&self, most: u32) {
        self.mapped.left.set(Some(most));
    }

    /// Forgets whom an address stands for.
    pub(crate) fn forget_client(&self, mapped: Ipv4Addr) {
        self.mapped.by_ipv4.borrow_mut().remove(&mapped.into());
    }

    /// Whom an address stands for.
    pub(super) fn client_of(&self, mapped: Be32) -> Option<MappedClient> {
        self.mapped.by_ipv4.borrow().get(&mapped).copied()
    }

    /// How many IPv6 clients it knows.
    pub(crate) fn mapped_clients(&self) -> usize {
        self.mapped.by_ipv4.borrow().len()
    }
}

impl MappedTables for TestTables {
    fn own_mapped(&self, address: &Ipv6Address) -> Option<Be32> {
        self.mapped.own.get(address).copied()
    }

    fn own_ipv6(&self, mapped: Be32) -> Option<Ipv6Address> {
        let mut own = self.mapped.own.iter();
        own.find(|(_, known)| **known == mapped)
            .map(|(address, _)| *address)
    }

    fn displaced(&self, address: &Ipv6Address) -> Option<Be32> {
        self.mapped.by_ipv6.borrow().get(address).copied()
    }

    fn map_client(&self, client: &MappedClient, mapped: Be32) {
        self.mapped.by_ipv4.borrow_mut().insert(mapped, *client);
    }

    fn displace(&self, address: &Ipv6Address, mapped: Be32) {
        self.mapped.by_ipv6.borrow_mut().insert(*address, mapped);
    }

    fn may_map_client(&self) -> bool {
        match self.mapped.left.get() {
            Some(0) => false,
            Some(left) => {
                self.mapped.left.set(Some(left - 1));
                true
            }
            None => true,
        }
    }
}
