//! Services, requests on them, and their history.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WebhookCall;
use crate::{
    objects::{EndpointPort, ServiceId, Timestamp, UpdateStatus},
    spec::ServiceSpec,
    store::revisions::{Author, RevisionId},
};

/// A service, and how far its tasks have been updated to its specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// Its id.
    pub id: ServiceId,
    /// The revision of the specification: the `ETag`, which updates send in `If-Match`.
    pub revision: RevisionId,
    /// The author of this revision.
    pub author: Author,
    /// When the service was created.
    pub created_at: Timestamp,
    /// When its specification last changed.
    pub updated_at: Timestamp,
    /// The specification.
    pub spec: Arc<ServiceSpec>,
    /// The specification before the last change.
    #[serde(default)]
    pub previous_spec: Option<Arc<ServiceSpec>>,
    /// Its published ports as assigned.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// Tasks whose `spec_version` is this one are up to date.
    pub task_version: u64,
    /// Status of the current or the last update of its tasks.
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    /// Whether its tasks are being rebalanced.
    #[serde(default)]
    pub rebalancing: bool,
    /// Number of running tasks.
    pub running: u32,
    /// Number of tasks that should run: replicas, suitable nodes, or the tasks of a job that may run at the
    /// same time.
    pub desired: u32,
    /// Number of completed tasks of a job; `null` if the service is not a job.
    #[serde(default)]
    pub completed: Option<u32>,
    /// Why tasks do not run yet: no suitable node, a dependency that is not ready. Each reason is listed
    /// once.
    #[serde(default)]
    pub waiting: Vec<String>,
}

/// A service was created or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceChanged {
    /// The service.
    pub id: ServiceId,
    /// Its revision now.
    pub revision: RevisionId,
    /// Warnings; `null` if there are none.
    pub warnings: Option<Vec<String>>,
}

/// A number of replicas to scale to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// The number of replicas; 0 pauses the service and keeps its specification.
    pub replicas: u32,
}

/// The revision to roll back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackRequest {
    /// The number of a kept revision; the previous specification if left out.
    pub revision: Option<u64>,
}

/// One entry of a service's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HistoryEntry {
    /// A kept revision.
    Revision {
        /// The revision.
        revision: RevisionId,
        /// Its author, with time and action.
        author: Author,
    },
    /// A call of a webhook.
    Webhook(WebhookCall),
}

/// A service's specification at one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionView {
    /// The revision.
    pub revision: RevisionId,
    /// Its author, with time and action.
    pub author: Author,
    /// The specification.
    pub spec: Arc<ServiceSpec>,
}
