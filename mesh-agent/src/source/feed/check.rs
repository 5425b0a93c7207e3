//! Finds out whether a manager's agent serves this node: connects, exchanges greetings and disconnects. For
//! the doctor.

use std::{error::Error, io, net::SocketAddr};

use super::{
    dial::{Connection, Interruption, dial},
    wire::{self, Purpose},
};
use crate::source::NodeIdentity;

/// A manager that serves this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// How far its clock is ahead of this machine's, in milliseconds; `None` if its agent is too old to say.
    pub clock_ahead: Option<i64>,
}

/// A manager does not serve this node.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no TCP connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// TLS failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The agents disagree.
    #[error("the agents did not exchange greetings")]
    Greeting(#[source] Box<dyn Error + Send + Sync>),
}

/// Checks one manager's feed. Bounded.
///
/// # Errors
/// How far it got, and why no further.
pub async fn check(manager: SocketAddr, identity: &NodeIdentity) -> Result<Served, CheckError> {
    let greeted = match dial(manager, identity, Purpose::Check).await {
        // An agent of the release before does not know this purpose.
        Err(Interruption::Refused(_)) => dial(manager, identity, Purpose::Follow).await,
        greeted => greeted,
    };
    match greeted {
        Ok(Connection { clock, .. }) => Ok(Served {
            clock_ahead: ahead(clock, wire::clock()),
        }),
        Err(Interruption::Connect(source)) => Err(CheckError::Connect(source)),
        Err(Interruption::Handshake(source)) => Err(CheckError::Handshake(source)),
        Err(other) => Err(CheckError::Greeting(Box::new(other))),
    }
}

fn ahead(theirs: Option<u64>, ours: Option<u64>) -> Option<i64> {
    let (theirs, ours) = (i64::try_from(theirs?).ok()?, i64::try_from(ours?).ok()?);
    Some(theirs.saturating_sub(ours))
}
