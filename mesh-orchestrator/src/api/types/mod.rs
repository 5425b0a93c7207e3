//! The requests and answers of the HTTP API. Plain data for servers and clients: depends on `objects`,
//! `spec`, the cluster's events and the store's revisions, not on a web framework.
//!
//! Requests refuse unknown fields. Answers may get more fields in later releases, so clients must accept
//! unknown ones. Times are milliseconds since the Unix epoch unless stated otherwise.

mod error;
mod files;
mod grant;
mod logs;
mod node;
mod operator;
mod scope;
mod service;
mod task;
mod webhook;

pub use crate::cluster::{Event as EventView, EventAction, EventKind};
pub use error::{ErrorAnswer, ErrorDetail};
pub use files::{
    Confidential, ConfigCreate, ConfigView, RegistryLogin, RegistryView, SecretCreate, SecretView,
};
pub use grant::{Grant, InvalidGrant};
pub use logs::{LogLine, LogStream};
pub use node::{NodePatch, NodeView, WorkerAdmission};
pub use operator::{
    BackupContent, BackupDetail, BackupView, KeyRotation, KeyRotationRequest, OrchestratorView,
    RestoreRequest, TokenCreate, TokenCreated, TokenView,
};
pub use scope::{InvalidScope, Resource, Scope};
pub use service::{HistoryEntry, RevisionView, RollbackRequest, ScaleRequest, ServiceChanged, ServiceView};
pub use task::TaskView;
pub use webhook::{WebhookAnswer, WebhookCall, WebhookCreate, WebhookPatch, WebhookView};

/// The version in every path: `/v1/…`.
pub const VERSION: u32 = 1;
