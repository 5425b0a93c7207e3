//! The peer feed: managers' agents stream the cluster's picture to workers' agents over mutual TLS on
//! Swarm's node certificates. Depends on the model and on [`super::NodeIdentity`].

pub mod client;
pub mod server;

pub use client::{FeedClient, FeedClientOptions};
pub use server::{FeedServer, FeedServerOptions, FeedServerStatus};

/// The feed could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The feed's address is taken or not the node's.
    #[error("cannot listen for workers on {address}; is another agent running (--feed-port)?")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}
