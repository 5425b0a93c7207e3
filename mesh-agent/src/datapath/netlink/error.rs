//! What can go wrong in netlink operations.

use std::io;

use netlink_packet_core::DecodeError;
use nix::errno::Errno;

/// How often a dump is tried before changes to what it lists make it fail.
pub(super) const DUMP_ATTEMPTS: usize = 8;

/// A netlink operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error(
        "cannot open a netlink socket of protocol {0}: does the kernel have that protocol, and is AF_NETLINK allowed?"
    )]
    Open(isize, #[source] io::Error),
    /// The request did not reach the kernel.
    #[error("cannot send a netlink request")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("cannot read the answer to a netlink request")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error(transparent)]
    Refused(#[from] KernelError),
    /// The kernel refused one message of a transaction, and with it the whole transaction.
    #[error("message {index} of the transaction was refused")]
    TransactionRefused {
        /// Which message, from 0.
        index: usize,
        /// The kernel's error.
        source: KernelError,
    },
    /// The answer does not follow the protocol.
    #[error("cannot parse the kernel's answer to a netlink request")]
    Malformed(#[source] DecodeError),
    /// The kernel answered less than the protocol requires.
    #[error("the kernel did not acknowledge a netlink request")]
    Unanswered,
    /// Changes interrupted every attempt at a dump.
    #[error(
        "changes interrupted a netlink dump {DUMP_ATTEMPTS} times: is something changing what it lists all the time?"
    )]
    Unsteady,
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) | Self::TransactionRefused { source: error, .. } => Some(error.errno),
            Self::Open(_, error) => error.raw_os_error().map(Errno::from_raw),
            Self::Send(_) | Self::Receive(_) | Self::Malformed(_) | Self::Unanswered | Self::Unsteady => None,
        }
    }
}

/// The kernel's error for a refused request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", refusal(.errno, .text.as_deref()))]
pub struct KernelError {
    /// The error number.
    pub errno: Errno,
    /// The text that newer kernels add.
    pub text: Option<String>,
}

fn refusal(errno: &Errno, text: Option<&str>) -> String {
    match text {
        Some(text) => format!("{text} ({errno})"),
        None => errno.to_string(),
    }
}
