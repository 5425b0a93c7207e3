//! The peer feed: managers' agents stream the cluster's snapshot to the other nodes' agents, and every
//! agent tells every manager's what data path stands on its node, by mutual TLS on Swarm's node certificates. Depends on the model and on [`super::NodeIdentity`].
//!
//! Invariant: nothing is said to, or believed of, a node that TLS has not shown to belong to the cluster.

pub mod announcer;
pub mod client;
mod delta;
mod dial;
pub mod server;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{io, net::SocketAddr};

pub use announcer::{Acknowledged, Announcer, AnnouncerOptions};
pub use client::{FeedClient, FeedClientOptions};
pub use server::{FeedServer, FeedServerOptions, FeedServerStatus};

/// The feed could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The feed's address is taken or not the node's.
    #[error("cannot listen for other nodes' agents on {address}; is another agent running (--feed-port)?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}
