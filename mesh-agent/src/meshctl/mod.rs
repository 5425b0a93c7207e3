//! `meshctl`: the mesh's own commands, and the docker CLI's flags, columns and files for the orchestrator.
//! Uses only the two APIs on the agent's admin socket.
//!
//! `flags`, `compose`, `output`, `views` and the rendering in `progress` are pure; `client` sends requests,
//! `commands` combine them.

pub mod cli;
pub mod table;

mod client;
mod commands;
mod compose;
mod failure;
mod flags;
mod output;
mod paths;
mod progress;
mod signals;
mod views;

pub use client::ApiError;
pub use commands::{Command, run};
pub use failure::{ComposeFailure, Failure};
