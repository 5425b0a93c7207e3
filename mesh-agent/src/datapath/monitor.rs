//! What became of single packets, as the data path reports it while an operator watches. Imports the model.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::model::BackendKey;

/// How long reports are made since someone last asked for them.
pub const WATCH: Duration = Duration::from_secs(5);
/// How many of them are kept for who asks next.
const KEPT: usize = 8_192;

/// What became of a packet's connection, or of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The entry node has opened a connection, or moved it to another replica
    Opened,
    /// A connection was closed by both sides, or reset by one, or has ended without a packet
    Closed,
    /// A packet was answered with a RST or an ICMP error
    Refused,
    /// A packet was dropped
    Dropped,
}

impl EventKind {
    /// The name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// The addresses of a packet; of one that was encapsulated those inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketTuple {
    /// IP protocol number.
    pub protocol: u8,
    /// Sender; of an IPv6 client its own address.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Their ports; `None` in a packet without.
    pub ports: Option<(u16, u16)>,
}

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When.
    pub at: SystemTime,
    /// What became of it.
    pub kind: EventKind,
    /// Why: the reason of a drop as in the metrics, who has reset a connection, or why it has ended without a
    /// packet.
    pub reason: Option<&'static str>,
    /// The packet's addresses, if it has any that can be read.
    pub tuple: Option<PacketTuple>,
    /// The connection's backend, if there is one, and it is still in the tables.
    pub backend: Option<BackendKey>,
    /// The interface that the packet came in by; empty if there was none.
    pub interface: String,
    /// Bytes of its frame.
    pub length: u32,
    /// The first of them, from the Ethernet header on.
    pub head: Vec<u8>,
    /// How many bytes of `head` are headers, and no one's payload.
    pub headers: usize,
}

/// The reports since an earlier question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// In their order.
    pub list: Vec<Observation>,
    /// What to ask for the next time.
    pub next: u64,
    /// How many there were that are not kept any more.
    pub lost: u64,
}

/// The last reports, numbered in their order, for several who watch at once.
#[derive(Debug, Default)]
pub struct Recent {
    /// With their numbers, of which those are left out that were never made.
    kept: VecDeque<(u64, Observation)>,
    /// The number of the next one.
    next: u64,
}

impl Recent {
    /// Keeps one more.
    pub fn push(&mut self, observation: Observation) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((self.next, observation));
        self.next += 1;
    }

    /// Counts reports that were never made, as there were too many.
    pub fn skip(&mut self, count: u64) {
        self.next = self.next.saturating_add(count);
    }

    /// Those from a number on; `None` asks for nothing yet but the number. After a number that has not been
    /// reached, which an earlier agent gave, come all.
    #[must_use]
    pub fn since(&self, number: Option<u64>) -> Observations {
        let Some(number) = number else {
            return Observations {
                next: self.next,
                ..Observations::default()
            };
        };
        let first = self.kept.front().map_or(self.next, |(first, _)| *first);
        let from = if number > self.next { first } else { number };
        let passed = self.kept.partition_point(|(number, _)| *number < from);
        let new = self.kept.range(passed..);
        Observations {
            lost: self.next - from - new.len() as u64,
            next: self.next,
            list: new.map(|(_, observation)| observation.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(length: u32) -> Observation {
        Observation {
            at: SystemTime::UNIX_EPOCH,
            kind: EventKind::Opened,
            reason: None,
            tuple: None,
            backend: None,
            interface: "eth0".to_owned(),
            length,
            head: Vec::new(),
            headers: 0,
        }
    }

    fn lengths(found: &Observations) -> Vec<u32> {
        found.list.iter().map(|found| found.length).collect()
    }

    #[test]
    fn each_of_several_gets_what_has_come_since_it_asked() {
        let mut recent = Recent::default();
        recent.push(observation(1));
        let begun = recent.since(None);
        assert_eq!((lengths(&begun), begun.next), (vec![], 1));
        recent.push(observation(2));
        recent.push(observation(3));
        let second = recent.since(Some(begun.next));
        assert_eq!((lengths(&second), second.next, second.lost), (vec![2, 3], 3, 0));
        assert_eq!(lengths(&recent.since(Some(2))), [3]);
        assert_eq!(lengths(&recent.since(Some(3))), [0; 0]);
    }

    #[test]
    fn what_is_not_kept_or_was_not_reported_is_counted() {
        let mut recent = Recent::default();
        (0..KEPT as u32 + 3).for_each(|length| recent.push(observation(length)));
        let found = recent.since(Some(1));
        assert_eq!((found.lost, found.list[0].length), (2, 3));
        recent.skip(5);
        recent.push(observation(7));
        let found = recent.since(Some(found.next));
        assert_eq!((lengths(&found), found.lost), (vec![7], 5));
        let all = recent.since(Some(found.next - 8));
        let last = KEPT as u32 + 2;
        assert_eq!((lengths(&all), all.lost), (vec![last - 1, last, 7], 5));
    }

    #[test]
    fn a_number_of_an_earlier_agent_gets_all_that_is_new() {
        let mut recent = Recent::default();
        recent.push(observation(1));
        let found = recent.since(Some(1_000));
        assert_eq!((lengths(&found), found.next, found.lost), (vec![1], 1, 0));
    }
}
