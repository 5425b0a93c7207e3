//! How a service spreads new connections, and which data path a node has. Plain data.

use serde::{Deserialize, Serialize};

/// How a service chooses a backend for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Exchanged", into = "Exchanged")]
pub struct Balance {
    /// The balancing algorithm.
    pub algorithm: Algorithm,
    /// Seconds for which a client address keeps its backend after its last connection; `None` if a backend is
    /// chosen for each connection.
    pub affinity: Option<u32>,
    /// Whether each node's new connections go to its own backends while one of those works.
    pub prefer_local: bool,
    /// Seconds over which a new backend's share grows to its full one.
    pub slow_start: Option<u32>,
}

impl Balance {
    /// Over how many seconds a new backend's share grows. Where a hash chooses, it would move clients with
    /// each step, so there it has its full share at once.
    #[must_use]
    pub fn slow_start(&self) -> Option<u32> {
        let hashes = self.affinity.is_some() || self.algorithm == Algorithm::Maglev;
        self.slow_start.filter(|_| !hashes)
    }
}

/// A balancing algorithm; the names are those of IPVS, where it has the algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// One after the other.
    #[default]
    RoundRobin,
    /// One after the other, each as often as its weight says.
    WeightedRoundRobin,
    /// Any, each as often as its weight says.
    Random,
    /// By a consistent hash of the client's address and port (Maglev, NSDI 2016).
    Maglev,
    /// The one with the fewest connections.
    LeastConnection,
    /// The one with the fewest connections for its weight.
    WeightedLeastConnection,
}

/// A [`Balance`] as agents exchange it. Those of earlier releases refuse a snapshot with an algorithm that
/// they do not know, so they read the one that is most like it.
#[derive(Serialize, Deserialize)]
struct Exchanged {
    #[serde(default)]
    scheduler: KnownAlgorithm,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    random: bool,
    #[serde(default)]
    affinity: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    prefer_local: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slow_start: Option<u32>,
}

/// The algorithms that every release knows.
#[derive(Default, Serialize, Deserialize)]
enum KnownAlgorithm {
    #[default]
    #[serde(rename = "rr")]
    RoundRobin,
    #[serde(rename = "wrr")]
    WeightedRoundRobin,
    #[serde(rename = "mh")]
    Maglev,
    #[serde(rename = "lc")]
    LeastConnection,
    #[serde(rename = "wlc")]
    WeightedLeastConnection,
}

impl From<Balance> for Exchanged {
    fn from(balance: Balance) -> Self {
        Self {
            scheduler: match balance.algorithm {
                Algorithm::RoundRobin => KnownAlgorithm::RoundRobin,
                Algorithm::WeightedRoundRobin | Algorithm::Random => KnownAlgorithm::WeightedRoundRobin,
                Algorithm::Maglev => KnownAlgorithm::Maglev,
                Algorithm::LeastConnection => KnownAlgorithm::LeastConnection,
                Algorithm::WeightedLeastConnection => KnownAlgorithm::WeightedLeastConnection,
            },
            random: balance.algorithm == Algorithm::Random,
            affinity: balance.affinity,
            prefer_local: balance.prefer_local,
            slow_start: balance.slow_start,
        }
    }
}

impl From<Exchanged> for Balance {
    fn from(exchanged: Exchanged) -> Self {
        Self {
            algorithm: match exchanged.scheduler {
                _ if exchanged.random => Algorithm::Random,
                KnownAlgorithm::RoundRobin => Algorithm::RoundRobin,
                KnownAlgorithm::WeightedRoundRobin => Algorithm::WeightedRoundRobin,
                KnownAlgorithm::Maglev => Algorithm::Maglev,
                KnownAlgorithm::LeastConnection => Algorithm::LeastConnection,
                KnownAlgorithm::WeightedLeastConnection => Algorithm::WeightedLeastConnection,
            },
            affinity: exchanged.affinity,
            prefer_local: exchanged.prefer_local,
            slow_start: exchanged.slow_start,
        }
    }
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::Random,
        Self::Maglev,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
    ];

    /// The name in labels and columns, which is the one that IPVS uses, where it has the algorithm.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::Random => "random",
            Self::Maglev => "mh",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
        }
    }

    /// The algorithm that IPVS has, or the one that is most like it.
    #[must_use]
    pub fn in_ipvs(self) -> Self {
        match self {
            // The same shares. There is no such scheduler in IPVS.
            Self::Random => Self::WeightedRoundRobin,
            Self::RoundRobin
            | Self::WeightedRoundRobin
            | Self::Maglev
            | Self::LeastConnection
            | Self::WeightedLeastConnection => self,
        }
    }
}

/// The data path of a node, as far as the managers know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeDatapath {
    /// Its agent has not announced anything yet.
    #[default]
    Unknown,
    /// There is none: its agent has removed it from the kernel, or has not set it up yet.
    None,
    /// Its agent is about to remove it: it keeps its connections and must get no new ones.
    Leaving,
    /// eBPF programs.
    Ebpf,
    /// The kernel's IPVS.
    Ipvs,
}

impl NodeDatapath {
    /// The name in columns, metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::Leaving => "leaving",
            Self::Ebpf => "ebpf",
            Self::Ipvs => "ipvs",
        }
    }

    /// Whether a node with the data path `own` may send new connections to one with this: the two kinds
    /// encapsulate differently and do not understand each other's packets.
    #[must_use]
    pub fn takes_from(self, own: Self) -> bool {
        match self {
            Self::Ebpf | Self::Ipvs => self == own,
            Self::Unknown | Self::None | Self::Leaving => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_arrives_and_earlier_releases_can_read_it() {
        for algorithm in Algorithm::ALL {
            let balance = Balance {
                algorithm,
                affinity: Some(60),
                prefer_local: true,
                slow_start: Some(30),
            };
            let sent = serde_json::to_value(balance).unwrap();
            let known = ["rr", "wrr", "mh", "lc", "wlc"];
            assert!(known.contains(&sent["scheduler"].as_str().unwrap()), "{sent}");
            assert_eq!(serde_json::from_value::<Balance>(sent).unwrap(), balance);
        }
        assert_eq!(serde_json::from_str::<Balance>("{}").unwrap(), Balance::default());
    }
}
