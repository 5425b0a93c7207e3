//! The orchestrator's HTTP API, version 1: JSON over a Unix socket or TLS. Depends on the cluster, the vault
//! and the backups; nothing else in this crate depends on it. [`types`] are the types on the wire, for
//! servers and clients.
//!
//! ```text
//! request ─► router ─► admit (scope) ─► Call (path, query, body) ─► handler ─► cluster, vault, store
//!              ▲
//!         table of operations ─► OpenAPI document
//! ```
//!
//! Invariants:
//! - Every operation is in the table with the scope that it needs; handlers are reachable only through it.
//! - What callers send is bounded: bytes, arguments, open streams, calls of a webhook.
//! - Objects change only by `commands` through the cluster, at the revision that the caller has read.
//! - No answer contains a secret, except a token when it is created, and webhooks' URLs.

mod access;
mod admission;
mod backups;
mod call;
mod caller;
mod credentials;
mod error;
mod event_log;
mod events;
mod files;
mod handle;
mod history;
mod images;
mod input;
mod limits;
mod log_sources;
mod logs;
mod nodes;
mod openapi;
mod operation;
mod orchestrator;
mod patch;
mod pinning;
mod records;
mod reference;
mod registries;
mod respond;
mod router;
mod service_access;
mod services;
mod table;
mod tasks;
mod tokens;
pub mod types;
mod views;
mod webhooks;

pub use self::{
    access::Access,
    handle::{Api, Parts},
    images::{ImageResolver, LoginError, ResolveError},
    log_sources::{LogOptions, LogTarget, Logs, LogsError, Peers, TaskLine},
};
