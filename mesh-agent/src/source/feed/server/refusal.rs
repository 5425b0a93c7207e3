//! Why the feed refuses a connection.

use std::io;

use crate::{
    model::NodeId,
    serve::TooMany,
    source::{
        SubjectError,
        feed::wire::{OLDEST, VERSION, WireError},
    },
};

/// Why a connection is not served, or no longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    TooManyConnections(TooMany),
    #[error("it did not finish the TLS handshake")]
    Handshake(#[source] io::Error),
    #[error("it presented no certificate")]
    NoCertificate,
    #[error("its certificate was not issued by this cluster's authority")]
    Untrusted(#[source] io::Error),
    #[error("its certificate is not a Swarm node's")]
    Subject(#[from] SubjectError),
    #[error("its certificate is from another cluster, '{0}'")]
    OtherCluster(String),
    #[error("'{0}' is not, or no longer, a node of this cluster")]
    UnknownNode(NodeId),
    #[error(
        "it speaks version {0} of the feed, this agent {OLDEST} to {VERSION}; run the same release on every \
         node, or the one before"
    )]
    Version(u32),
    #[error("it violates the feed's protocol: {0}")]
    Misbehaved(&'static str),
    #[error("it violates the feed's protocol")]
    Protocol(#[source] WireError),
}

impl Refusal {
    /// The name in the metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::TooManyConnections(_) => "too_many_connections",
            Self::Handshake(_) => "handshake",
            Self::NoCertificate => "no_certificate",
            Self::Untrusted(_) => "untrusted_certificate",
            Self::Subject(_) => "no_node_certificate",
            Self::OtherCluster(_) => "other_cluster",
            Self::UnknownNode(_) => "unknown_node",
            Self::Version(_) => "version",
            Self::Misbehaved(_) | Self::Protocol(_) => "protocol",
        }
    }
}

/// The refusal that a failed TLS handshake amounts to.
pub(super) fn handshake_refusal(error: io::Error) -> Refusal {
    let cause = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::NoCertificatesPresented) => Refusal::NoCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => Refusal::Untrusted(error),
        _ => Refusal::Handshake(error),
    }
}
