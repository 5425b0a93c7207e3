//! `meshctl`'s library: the docker CLI's flags, columns and files for the orchestrator. Sees the orchestrator's
//! API and specifications, and of the agent only its admin socket.
//!
//! `flags`, `compose`, `output`, `views` and the picture in `progress` are pure; `client` asks, `commands` put
//! them together.

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
