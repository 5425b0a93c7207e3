//! The orchestrator: services, tasks and nodes where there is no Swarm, as Docker's users know them.
//!
//! It is two halves that meet in [`objects`]. The pure half decides: [`spec`] is what a user asks for,
//! [`objects`] what the cluster knows, [`commands`] are what users may do to it, [`loops`] turn
//! (now, state, events) into changes. It has no clock, no randomness but a seed, and does no I/O. The durable half keeps: [`store`], [`secrets`] and [`backups`]. [`cluster`] puts the two together, and
//! [`api`] serves it over HTTP.
//!
//! Nothing here knows the mesh or runs a container: the agent does both, and depends on this crate.

#![forbid(unsafe_code)]

pub mod api;
pub mod backups;
pub mod cluster;
pub mod commands;
pub mod loops;
pub mod objects;
pub mod secrets;
pub mod spec;
pub mod store;
