//! What can go wrong in netlink operations.

use std::io;

use netlink_packet_core::DecodeError;
use nix::errno::Errno;

/// How often a dump is started over because what it lists changed meanwhile.
pub(super) const DUMP_ATTEMPTS: usize = 8;

/// A netlink operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket of protocol {0}; does the kernel have it, is AF_NETLINK allowed?")]
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
    /// The kernel refused one message of a transaction, and so all of it.
    #[error("message {index} of the transaction was refused")]
    TransactionRefused {
        /// Which message, from 0.
        index: usize,
        /// What the kernel said.
        source: KernelError,
    },
    /// The answer is not what the protocol says.
    #[error("cannot understand the kernel's answer")]
    Malformed(#[source] DecodeError),
    /// The kernel has answered less than the protocol promises.
    #[error("the kernel did not acknowledge a netlink request")]
    Unanswered,
    /// What a dump lists changed each time while it was listed.
    #[error(
        "a netlink dump was interrupted by changes {DUMP_ATTEMPTS} times; is something changing it all the time?"
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

/// The kernel's own words for a refusal.
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
