//! A range of IPv4 addresses with a common prefix.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An IPv4 network: an address whose host bits are zero, and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The network of an address; a prefix of more than 32 bits counts as 32.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// Its first address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// How many bits its addresses have in common.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that its addresses have in common.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// Whether an address is of it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// The text was not an address, a slash and the length of a prefix.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an IPv4 network (expected a.b.c.d/n)")]
pub struct SubnetError(String);

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self::of(address.parse().ok()?, prefix))
        };
        parse().ok_or_else(|| SubnetError(text.to_owned()))
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_contains_what_has_its_prefix() {
        let network = subnet("10.0.1.77/24");
        assert_eq!(network.to_string(), "10.0.1.0/24");
        assert!(network.contains(Ipv4Addr::new(10, 0, 1, 255)));
        assert!(!network.contains(Ipv4Addr::new(10, 0, 2, 0)));
        assert!(subnet("0.0.0.0/0").contains(Ipv4Addr::BROADCAST));
        assert!(subnet("10.0.1.7/32").contains(Ipv4Addr::new(10, 0, 1, 7)));
        assert!(!subnet("10.0.1.7/32").contains(Ipv4Addr::new(10, 0, 1, 6)));
    }

    #[test]
    fn other_texts_are_no_subnet() {
        for text in [
            "",
            "10.0.1.0",
            "10.0.1/24",
            "10.0.1.0/33",
            "10.0.1.0/-1",
            "10.0.1.0/",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
