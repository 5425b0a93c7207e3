//! Backups, tokens and the orchestrator itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Confidential, Grant, Scope};
use crate::{objects::Timestamp, spec::PortRange, store::Revision};

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupView {
    /// Its file's name: `manual-20261121T190000.000Z.mesh-backup`.
    pub name: String,
    /// `hourly` or `manual`.
    pub kind: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// A backup that was read and verified completely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupDetail {
    /// The backup.
    #[serde(flatten)]
    pub backup: BackupView,
    /// The store that was backed up.
    pub store: String,
    /// The revision of the store that it contains.
    pub revision: Revision,
    /// The release that created it.
    pub release: String,
    /// The version of the file's format.
    pub format: u32,
    /// The version of the stored objects.
    pub schema: u64,
    /// Number of entries.
    pub entries: u64,
    /// Its checksum: SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its content.
    pub content: BackupContent,
}

/// The content of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupContent {
    /// The names of its services.
    pub services: Vec<String>,
    /// Number of entries of each kind.
    pub entries: BTreeMap<String, u64>,
}

/// How to restore a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreRequest {
    /// Whether to replace the content of a store that has services; without it such a store is left
    /// unchanged.
    pub replace: bool,
}

/// A token to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Unique among tokens; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its scopes; at least one.
    pub scopes: Vec<Scope>,
    /// What its holder's services may have beyond ordinary containers. The scope `all` needs none of it.
    #[serde(default)]
    pub allow: Vec<Grant>,
    /// The ports that its holder's services may publish; any if left out.
    #[serde(default)]
    pub ports: Option<Vec<PortRange>>,
    /// What the names of the secrets that its holder's services may have begin with; any if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<String>>,
    /// The same of configs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configs: Option<Vec<String>>,
    /// When it expires; never if left out.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A token, without the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// Its name.
    pub name: String,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// What its holder's services may have beyond ordinary containers.
    #[serde(default)]
    pub allow: Vec<Grant>,
    /// The ports that its holder's services may publish; any if left out.
    #[serde(default)]
    pub ports: Option<Vec<PortRange>>,
    /// What the names of the secrets that its holder's services may have begin with; any if left out.
    #[serde(default)]
    pub secrets: Option<Vec<String>>,
    /// The same of configs.
    #[serde(default)]
    pub configs: Option<Vec<String>>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A new token; only this answer contains it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    /// The token, to be sent as `Authorization: Bearer <token>`.
    pub token: Confidential,
    /// Its name, scopes and times.
    #[serde(flatten)]
    pub view: TokenView,
}

/// The orchestrator, as the node that answers sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrchestratorView {
    /// The release of the node that answers.
    pub release: String,
    /// Its id.
    pub node: String,
    /// The id of the leader; `null` while there is none.
    pub leader: Option<String>,
    /// The store: a file, or endpoints.
    pub store: String,
    /// Whether the store is available; without it nothing can be changed, and everything continues to run.
    pub available: bool,
    /// The revision of the store that answers are based on.
    pub revision: Revision,
    /// Number of nodes.
    pub nodes: u32,
    /// Number of services.
    pub services: u32,
    /// Number of running tasks.
    pub tasks: u32,
}

/// How to replace the key that encrypts secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyRotationRequest {
    /// Whether to use the new key now: all nodes have the key file with it.
    pub finish: bool,
}

/// How far the replacement of the key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRotation {
    /// Whether the new key is in use. If not, copy the key file to all nodes, then finish.
    pub finished: bool,
    /// The new key's identifier.
    pub key: String,
    /// The key file of the node that answers.
    pub file: String,
    /// Number of values that were encrypted again.
    pub encrypted: usize,
}
