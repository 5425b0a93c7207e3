//! The addresses by which the mesh identifies this node's tasks: a block of 240.0.0.0/8 of its own. Pure.
//!
//! They are identifiers: no interface has one, and no packet on a network carries one. 240.0.0.0/4 is
//! reserved, so no client can have such an address. Their low 24 bits are unique, as the tunnel between IPVS
//! nodes requires.

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive};

/// The network of all blocks: 240.0.0.0/8.
const NETWORK: u32 = 240 << 24;
/// Bits of an address within a node's block; more addresses than an engine runs containers.
const BLOCK_BITS: u32 = 10;

/// One node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressBlock {
    number: u32,
}

impl AddressBlock {
    /// How many blocks there are.
    pub(crate) const COUNT: u32 = 1 << (24 - BLOCK_BITS);

    /// The block of a number; `None` if the number is too large.
    #[must_use]
    pub(crate) fn new(number: u32) -> Option<Self> {
        (number < Self::COUNT).then_some(Self { number })
    }

    /// Its number.
    #[must_use]
    pub(crate) fn number(self) -> u32 {
        self.number
    }

    /// All its addresses.
    #[must_use]
    pub(crate) fn addresses(self) -> RangeInclusive<Ipv4Addr> {
        let first = NETWORK | (self.number << BLOCK_BITS);
        Ipv4Addr::from(first)..=Ipv4Addr::from(first + (1 << BLOCK_BITS) - 1)
    }

    /// The next free address after the last one assigned, so that none is reused soon. A block's first
    /// address is never assigned.
    #[must_use]
    pub(crate) fn free(self, taken: &BTreeSet<Ipv4Addr>, last: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let size = 1_u32 << BLOCK_BITS;
        let first = NETWORK | (self.number << BLOCK_BITS);
        let last = last
            .map(u32::from)
            .filter(|last| (first..first + size).contains(last))
            .map_or(0, |last| last - first);
        (1..size)
            .map(|step| (last + step) % size)
            .filter(|index| *index != 0)
            .map(|index| Ipv4Addr::from(first + index))
            .find(|address| !taken.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_wrap_around_and_none_is_assigned_twice() {
        let block = AddressBlock::new(3).unwrap();
        let mut taken = BTreeSet::new();
        let mut last = None;
        while let Some(address) = block.free(&taken, last) {
            assert!(taken.insert(address));
            last = Some(address);
        }
        assert_eq!(taken.len(), 1023);
        assert_eq!(taken.first(), Some(&Ipv4Addr::new(240, 0, 12, 1)));
        assert_eq!(taken.last(), Some(&Ipv4Addr::new(240, 0, 15, 255)));
        taken.remove(&Ipv4Addr::new(240, 0, 13, 7));
        assert_eq!(block.free(&taken, last), Some(Ipv4Addr::new(240, 0, 13, 7)));
    }

    #[test]
    fn blocks_end_with_the_network() {
        let last = AddressBlock::new(AddressBlock::COUNT - 1).unwrap();
        let address = last.free(&BTreeSet::new(), None).unwrap();
        assert_eq!(address, Ipv4Addr::new(240, 255, 252, 1));
        assert_eq!(AddressBlock::new(AddressBlock::COUNT), None);
        assert!(last.addresses().contains(&address));
        assert!(!AddressBlock::new(7).unwrap().addresses().contains(&address));
    }
}
