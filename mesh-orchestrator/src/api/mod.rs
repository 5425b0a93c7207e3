//! The orchestrator's HTTP API, version 1: JSON over a Unix socket or TLS. [`types`] is what goes over the
//! wire, for servers and clients alike.

pub mod types;
