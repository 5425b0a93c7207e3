//! What a vault stores: the kinds of secrets, and the record of one. Depends on `sealed`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::sealed::Sealed;
use crate::objects::Timestamp;

/// The kinds of encrypted values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A secret as Docker has it: a file in a container, in memory only.
    Secret,
    /// A config as Docker has it: a file in a container.
    Config,
    /// User name and password for a registry; named after the registry's address.
    RegistryCredential,
    /// The secret part of a webhook's URL; named after the service's id and the webhook's name.
    Webhook,
    /// What the cluster's agents share, and no user sees.
    Agents,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Secret,
        Self::Config,
        Self::RegistryCredential,
        Self::Webhook,
        Self::Agents,
    ];

    /// The first segment of their keys.
    #[must_use]
    pub fn segment(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Config => "configs",
            Self::RegistryCredential => "registries",
            Self::Webhook => "webhooks",
            Self::Agents => "agents",
        }
    }

    /// The largest value, in bytes: Docker's limits.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Secret => 500 << 10,
            Self::Config => 1000 << 10,
            Self::RegistryCredential => 64 << 10,
            Self::Webhook | Self::Agents => 1 << 10,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
            Self::RegistryCredential => "registry credential",
            Self::Webhook => "webhook",
            Self::Agents => "agents' secret",
        })
    }
}

/// A stored value: all but the sealed part may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its value last changed.
    pub updated_at: Timestamp,
    /// The size of the clear text, in bytes.
    pub size: usize,
    /// The value, encrypted.
    pub sealed: Sealed,
}
