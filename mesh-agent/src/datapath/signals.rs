//! How a backend answers the connections that it is asked to open, as a data path reports it.

use mesh_ebpf::abi::{ANSWER_TIMES, BackendSignals, Signal};
use serde::{Deserialize, Serialize};

/// What became of the TCP connections to a backend that entered the mesh at this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Connections that the backend refused: it answered their SYN with a RST.
    pub refused: u64,
    /// Connections whose first SYN it answered with nothing.
    pub unanswered: u64,
    /// SYNs that clients sent again.
    pub syns_retransmitted: u64,
    /// Open connections that clients reset.
    pub reset_by_clients: u64,
    /// Open connections that the backend reset.
    pub reset_by_backend: u64,
    /// Connections that it answered, by the time from SYN to SYN-ACK.
    pub answers: AnswerTimes,
}

impl Signals {
    /// Connections that came to nothing: refused or unanswered.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refused + self.unanswered
    }
}

/// A histogram of times from SYN to SYN-ACK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerTimes {
    /// The sum of all, in nanoseconds.
    pub sum: u64,
    /// How many there were in each bucket, each time in one; the last bucket has no bound.
    pub counts: Vec<u64>,
}

impl AnswerTimes {
    /// The longest time of each bucket but the last, in nanoseconds.
    pub const BOUNDS: &[u64] = &ANSWER_TIMES;

    /// How many answers there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl From<BackendSignals> for Signals {
    fn from(counted: BackendSignals) -> Self {
        let count = |signal: Signal| counted.counts[signal as usize];
        Self {
            refused: count(Signal::Refused),
            unanswered: count(Signal::Unanswered),
            syns_retransmitted: count(Signal::SynRetransmitted),
            reset_by_clients: count(Signal::ResetByClient),
            reset_by_backend: count(Signal::ResetByBackend),
            answers: AnswerTimes {
                sum: counted.answer_time,
                counts: counted.answers.to_vec(),
            },
        }
    }
}
