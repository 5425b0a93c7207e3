//! The real `meshctl` against the orchestrator's real API: a redb store, the leader's loops, a Unix socket. Only
//! containers are pretended: an agent takes tasks through their states.

mod agent;
mod managed;
mod objects;
mod server;
mod services;
mod stacks;
