//! The mesh's node agent as a library. `ARCHITECTURE.md` has the map and the invariants.
//!
//! Direction of imports: binaries → `agent` → the parts (`source`, `discovery`, `datapath`, `metrics`,
//! `admin`, `doctor`, `orchestrator`) → `plan` → `model`. `docker`, `backoff` and `process` import none of
//! them. `meshctl` is the library of the command line: of the agent it knows the admin API only.
//!
//! The feature `orchestrator`, on by default, contains the orchestrator and meshctl's commands for it.

pub mod admin;
pub mod agent;
mod backoff;
pub mod config;
pub mod datapath;
pub mod discovery;
pub mod docker;
pub mod doctor;
mod first_few;
pub mod health;
pub mod host_facts;
pub mod mesh0;
pub mod meshctl;
pub mod metrics;
pub mod model;
#[cfg(feature = "orchestrator")]
pub mod orchestrator;
pub mod plan;
pub mod probes;
pub mod process;
#[cfg(test)]
mod scenarios;
pub mod serve;
pub mod source;

/// The release of this program.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
