//! Identifiers of services, tasks and nodes: 25 characters of 0-9a-z, as Swarm's. Derived from a seed that
//! is passed in, so that the pure code needs no randomness of its own.

use std::{borrow::Borrow, fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! identifier {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(with = "String")] Arc<str>);

        impl $name {
            /// Derives an identifier from a random seed and its purpose. A different seed or purpose gives a
            /// different identifier.
            #[must_use]
            pub fn derive(seed: u128, purpose: &[&str]) -> Self {
                Self(derive(seed, purpose).into())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }
    };
}

identifier!(
    /// Identifies a service for its whole life.
    ServiceId
);
identifier!(
    /// Identifies a task; never reused.
    TaskId
);
identifier!(
    /// Identifies a node.
    NodeId
);

const LENGTH: usize = 25;

/// FNV-1a of 128 bits over seed and purpose, then 25 digits to the base of 36 (129 bits).
fn derive(seed: u128, purpose: &[&str]) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut hash = BASIS;
    let mut absorb = |byte: u8| hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    seed.to_le_bytes().into_iter().for_each(&mut absorb);
    for part in purpose {
        part.bytes().for_each(&mut absorb);
        // No text contains this byte, so that ("a", "bc") and ("ab", "c") differ.
        absorb(0xFF);
    }
    (0..LENGTH)
        .map(|_| {
            let digit = u32::try_from(hash % 36).unwrap_or(0);
            hash /= 36;
            char::from_digit(digit, 36).unwrap_or('0')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_swarms_and_depends_on_seed_and_purpose() {
        let id = TaskId::derive(7, &["web", "1"]);
        assert_eq!(id.as_str().len(), LENGTH);
        assert_eq!(id, TaskId::derive(7, &["web", "1"]));
        for other in [
            TaskId::derive(8, &["web", "1"]),
            TaskId::derive(7, &["we", "b1"]),
            TaskId::derive(7, &["web1"]),
        ] {
            assert_ne!(id, other);
        }
    }
}
