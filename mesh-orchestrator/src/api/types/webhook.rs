//! Webhooks of services, and their calls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{objects::Timestamp, store::revisions::RevisionId};

/// A webhook to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookCreate {
    /// Unique among the service's webhooks; letters, digits, `-`, `_` and `.`.
    pub name: String,
}

/// What to change of a webhook.
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
    /// Where to `POST` to: a path if the orchestrator knows no address of its own. Whoever has it may roll
    /// the service, so it is to be kept as a password.
    pub url: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last called.
    #[serde(default)]
    pub called_at: Option<Timestamp>,
}

/// What the caller of a webhook learns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookAnswer {
    /// What is worth a thought; `null` if nothing is.
    pub warnings: Option<Vec<String>>,
}

/// A webhook's call, as the service's history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookCall {
    /// The webhook's name.
    pub webhook: String,
    /// When it was called.
    pub at: Timestamp,
    /// The image that the service's tasks have since, with its digest if that could be found out.
    pub image: String,
    /// The revision that the call made; `null` if it failed.
    #[serde(default)]
    pub revision: Option<RevisionId>,
    /// What the caller was told.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
}
