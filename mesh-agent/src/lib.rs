//! The mesh's node agent as a library. `ARCHITECTURE.md` has the map and the invariants.
//!
//! Dependency direction, an arrow may import: binaries → `agent` → {`source`, `discovery`, `datapath`,
//! `metrics`, `admin`, `orchestrator`} → `plan` → `model`. `meshctl` is the command line's library: it sees the admin API
//! and the orchestrator's, and nothing of the agent.

pub mod admin;
pub mod agent;
mod backoff;
pub mod config;
pub mod datapath;
pub mod discovery;
pub mod docker;
pub mod doctor;
pub mod host_facts;
pub mod mesh0;
pub mod meshctl;
pub mod metrics;
pub mod model;
pub mod orchestrator;
pub mod plan;
#[cfg(test)]
mod scenarios;
pub mod source;
