//! What operators of the cluster look at: backups, tokens, events, the orchestrator itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Confidential, Scope};
use crate::{objects::Timestamp, store::Revision};

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupView {
    /// Its file's name: `manual-20261121T190000.000Z.mesh-backup`.
    pub name: String,
    /// `hourly` or `manual`.
    pub kind: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many bytes the file has.
    pub bytes: u64,
}

/// A backup that was read from end to end, and found to be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupDetail {
    /// The backup.
    #[serde(flatten)]
    pub backup: BackupView,
    /// The store that it was made of.
    pub store: String,
    /// The store's revision that it shows.
    pub revision: Revision,
    /// The release that made it.
    pub release: String,
    /// The version of the file's format.
    pub format: u32,
    /// The version of what is stored.
    pub schema: u64,
    /// How many entries it has.
    pub entries: u64,
    /// Its checksum: SHA-256 in hexadecimal.
    pub sha256: String,
    /// What is in it.
    pub content: BackupContent,
}

/// What is in a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupContent {
    /// The names of its services.
    pub services: Vec<String>,
    /// How many entries there are of each kind.
    pub entries: BTreeMap<String, u64>,
}

/// What may happen to what is in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreRequest {
    /// What is in the store is replaced; else a store with services in it is left as it is.
    pub replace: bool,
}

/// A token to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Unique among tokens; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it allows; at least one.
    pub scopes: Vec<Scope>,
    /// When it ends; never if left out.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A token, without what has to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A new token: the only answer that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    /// What has to be sent: `Authorization: Bearer <token>`.
    pub token: Confidential,
    /// The token.
    #[serde(flatten)]
    pub view: TokenView,
}

/// The orchestrator, as the asked node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrchestratorView {
    /// The release of the asked node.
    pub release: String,
    /// The asked node's id.
    pub node: String,
    /// The id of the node whose control loops run; `null` between two leaders.
    pub leader: Option<String>,
    /// Where objects are kept: a file, or endpoints.
    pub store: String,
    /// Whether the store answers; without it nothing can be changed, and all goes on as it is.
    pub available: bool,
    /// The store's revision that answers show.
    pub revision: Revision,
    /// How many nodes there are.
    pub nodes: u32,
    /// How many services there are.
    pub services: u32,
    /// How many tasks run.
    pub tasks: u32,
}
