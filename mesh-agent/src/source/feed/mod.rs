//! The feed between agents: managers' agents stream the cluster's snapshot to the other nodes, and every
//! agent announces its node's data path to every manager. Uses mutual TLS on Swarm's node certificates.
//! Imports the model and [`super::NodeIdentity`].
//!
//! Agents speak this version of the feed's messages and the one before.
//!
//! Invariant: nothing is sent to, or accepted from, a peer that TLS has not authenticated as a node of the
//! cluster.

pub mod announcer;
pub mod check;
pub mod client;
mod delta;
mod dial;
mod fresh;
mod requests;
pub mod server;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{io, net::SocketAddr};

pub use announcer::{Acknowledged, Announcer, AnnouncerOptions};
pub use check::{CheckError, Served, check};
pub use client::{FeedClient, FeedClientOptions};
pub use server::{FeedServer, FeedServerOptions, FeedServerStatus};

/// The feed could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The feed's address is in use, or is not this node's.
    #[error(
        "cannot listen for other nodes' agents on {address}; is another agent running (--feed-port), or is it \
         not an address of this node (--feed-listen)?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}
