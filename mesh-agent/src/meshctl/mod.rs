//! `meshctl`'s library: the docker CLI's flags, columns and files for the orchestrator. Sees the orchestrator's
//! API and specifications, nothing of the agent.

mod compose;
mod flags;
mod output;
mod paths;
mod views;
