//! Services, what can be asked of them, and their history.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WebhookCall;
use crate::{
    objects::{EndpointPort, ServiceId, Timestamp, UpdateStatus},
    spec::ServiceSpec,
    store::revisions::{Author, RevisionId},
};

/// A service, and how far its tasks have followed its specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// Its name for ever.
    pub id: ServiceId,
    /// What the specification is at; the `ETag`, and what an update names in `If-Match`.
    pub revision: RevisionId,
    /// Who made this revision.
    pub author: Author,
    /// When the service was created.
    pub created_at: Timestamp,
    /// When its specification last changed.
    pub updated_at: Timestamp,
    /// What is asked for.
    pub spec: Arc<ServiceSpec>,
    /// What was asked for before the last change.
    #[serde(default)]
    pub previous_spec: Option<Arc<ServiceSpec>>,
    /// Its published ports, all with numbers.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// Tasks whose `spec_version` is this one are up to date.
    pub task_version: u64,
    /// How the replacement of its tasks stands, or ended.
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    /// Whether its tasks are being spread anew.
    #[serde(default)]
    pub rebalancing: bool,
    /// Tasks that run.
    pub running: u32,
    /// Tasks that shall run: replicas, suitable nodes, or what of a job may run at once.
    pub desired: u32,
    /// A job's tasks that have ended well; `null` for what is no job.
    #[serde(default)]
    pub completed: Option<u32>,
    /// Why tasks do not run yet, each reason once: no suitable node, a dependency that is not ready.
    #[serde(default)]
    pub waiting: Vec<String>,
}

/// A service was created or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceChanged {
    /// The service.
    pub id: ServiceId,
    /// What it is at now.
    pub revision: RevisionId,
    /// What is worth a thought; `null` if nothing is.
    pub warnings: Option<Vec<String>>,
}

/// How many tasks a service shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// The number; 0 pauses the service and keeps its definition.
    pub replicas: u32,
}

/// Which revision a service shall go back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackRequest {
    /// The number of a revision that is kept; the one before the current specification if left out.
    pub revision: Option<u64>,
}

/// One line of a service's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HistoryEntry {
    /// A revision that is kept.
    Revision {
        /// Which one.
        revision: RevisionId,
        /// Who made it, when and how.
        author: Author,
    },
    /// A webhook was called.
    Webhook(WebhookCall),
}

/// A service's specification as it was at one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionView {
    /// Which one.
    pub revision: RevisionId,
    /// Who made it, when and how.
    pub author: Author,
    /// What was asked for.
    pub spec: Arc<ServiceSpec>,
}
