//! Webhooks of services, and their calls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{objects::Timestamp, store::revisions::RevisionId};

/// A webhook to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookCreate {
    /// Unique among the service's webhooks; letters, digits, `-`, `_` and `.`.
    pub name: String,
}

/// Changes of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookPatch {
    /// Whether it may be called.
    pub enabled: bool,
}

/// A webhook of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookView {
    /// Its name.
    pub name: String,
    /// Whether it may be called.
    pub enabled: bool,
    /// The URL to `POST` to; only a path if the orchestrator knows no public address. Anyone who knows it can
    /// update the service, so keep it secret.
    pub url: String,
    /// Why nothing outside the node can call it; absent if the URL is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last called.
    #[serde(default)]
    pub called_at: Option<Timestamp>,
}

/// The answer to the call of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookAnswer {
    /// Warnings; `null` if there are none.
    pub warnings: Option<Vec<String>>,
}

/// A call of a webhook, as kept in the service's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookCall {
    /// The webhook's name.
    pub webhook: String,
    /// When it was called.
    pub at: Timestamp,
    /// The image that the service's tasks have run since, with its digest if the tag could be resolved.
    pub image: String,
    /// The revision that the call created; `null` if it failed.
    #[serde(default)]
    pub revision: Option<RevisionId>,
    /// The warnings in the answer.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
}
