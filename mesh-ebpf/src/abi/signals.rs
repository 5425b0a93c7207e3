//! What is counted of how a backend answers the connections that it is asked to open.

/// How a connection to a backend went wrong; the number is the index of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Signal {
    /// The backend answered a connection's SYN with a RST.
    Refused = 0,
    /// The backend answered a connection's SYN with nothing: its client asked again, or the backend's node
    /// sent the SYN back. Once a connection.
    Unanswered = 1,
    /// A SYN that its client sent again, before the connection was open.
    SynRetransmitted = 2,
    /// A client reset an open connection.
    ResetByClient = 3,
    /// The backend reset an open connection.
    ResetByBackend = 4,
}

impl Signal {
    /// Every signal, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Refused,
        Self::Unanswered,
        Self::SynRetransmitted,
        Self::ResetByClient,
        Self::ResetByBackend,
    ];
}

/// The longest times from SYN to SYN-ACK that each bucket but the last has, in nanoseconds.
pub const ANSWER_TIMES: [u64; 12] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
];

/// Signals of one backend, of all CPUs: what is counted per connection may cost an atomic addition, and a
/// value for each CPU would take megabytes for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendSignals {
    /// How often each [`Signal`] came.
    pub counts: [u64; Signal::ALL.len()],
    /// The sum of the times from SYN to SYN-ACK, in nanoseconds.
    pub answer_time: u64,
    /// Answers by [`ANSWER_TIMES`]; the last bucket has those that took longer.
    pub answers: [u64; ANSWER_TIMES.len() + 1],
}

/// The index of the bucket of a time from SYN to SYN-ACK.
#[inline(always)]
pub const fn answer_bucket(nanoseconds: u64) -> usize {
    let mut bucket = 0;
    while bucket < ANSWER_TIMES.len() && nanoseconds > ANSWER_TIMES[bucket] {
        bucket += 1;
    }
    bucket
}

const _: () = assert!(size_of::<BackendSignals>() == 152);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_signals_are_listed_by_their_numbers() {
        for (number, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, number);
        }
    }

    #[test]
    fn a_bucket_has_its_bound_and_what_is_above_the_one_before() {
        assert!(ANSWER_TIMES.is_sorted());
        assert_eq!(answer_bucket(0), 0);
        for (bucket, bound) in ANSWER_TIMES.into_iter().enumerate() {
            assert_eq!(answer_bucket(bound), bucket);
            assert_eq!(answer_bucket(bound + 1), bucket + 1);
        }
        assert_eq!(answer_bucket(u64::MAX), ANSWER_TIMES.len());
    }
}
