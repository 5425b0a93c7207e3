//! The real `meshctl` against the orchestrator's real API: a redb store, the leader's loops, a Unix socket.
//! Only the agent is simulated: it takes tasks through their states without containers.

mod agent;
mod managed;
mod objects;
mod server;
mod services;
mod stacks;
