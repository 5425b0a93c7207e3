//! The orchestrator: services, tasks and nodes without Docker Swarm, as Docker's users know them.
//!
//! It has two halves that share [`objects`]. The pure half decides: [`spec`] is what users ask for,
//! [`objects`] are the cluster's state, [`commands`] are the users' changes, and [`loops`] turn (now, state,
//! events) into changes. It has no clock, no I/O, and no randomness but a seed. The durable half stores:
//! [`store`], [`secrets`] and [`backups`]. [`cluster`] joins the two, and [`api`] serves them over HTTP.
//!
//! Nothing here knows the mesh or runs containers: the agent, which depends on this crate, does both.

#![forbid(unsafe_code)]

pub mod api;
pub mod backups;
mod by_text;
pub mod cluster;
pub mod commands;
pub mod loops;
pub mod objects;
pub mod secrets;
pub mod spec;
pub mod store;
