//! `meshctl`: the mesh's own commands, and the docker CLI's flags, columns and files for the orchestrator.
//! Uses only the two APIs on the agent's admin socket.
//!
//! `flags`, `compose`, `output`, `views` and the rendering in `progress` are pure; `client` sends requests,
//! `commands` combine them.

pub mod cli;
mod drain;
mod explain;
mod flows;
mod monitor;
mod nodes;
mod print;
pub mod table;
mod top;
pub mod usage;

#[cfg(feature = "orchestrator")]
mod client;
mod clients;
#[cfg(feature = "orchestrator")]
mod commands;
#[cfg(feature = "orchestrator")]
mod compose;
#[cfg(feature = "orchestrator")]
mod failure;
#[cfg(feature = "orchestrator")]
mod flags;
#[cfg(feature = "orchestrator")]
mod output;
#[cfg(feature = "orchestrator")]
mod paths;
#[cfg(feature = "orchestrator")]
mod progress;
#[cfg(feature = "orchestrator")]
mod signals;
#[cfg(feature = "orchestrator")]
mod views;

#[cfg(feature = "orchestrator")]
pub use client::ApiError;
#[cfg(feature = "orchestrator")]
pub use commands::{Command, run};
#[cfg(feature = "orchestrator")]
pub use failure::{ComposeFailure, Failure};
