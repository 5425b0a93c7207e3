//! How a service spreads new connections, and which data path a node has. Plain data.

use serde::{Deserialize, Serialize};

/// How a service chooses a backend for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The balancing algorithm. Agents exchange it under the name of its label, `mesh.scheduler`.
    #[serde(default, rename = "scheduler")]
    pub algorithm: Algorithm,
    /// Seconds for which a client address keeps its backend after its last connection; `None` if a backend is
    /// chosen for each connection.
    #[serde(default)]
    pub affinity: Option<u32>,
}

/// A balancing algorithm; the names are those of IPVS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// One after the other.
    #[default]
    #[serde(rename = "rr")]
    RoundRobin,
    /// One after the other, each as often as its weight says.
    #[serde(rename = "wrr")]
    WeightedRoundRobin,
    /// By a consistent hash of the client's address and port (Maglev, NSDI 2016).
    #[serde(rename = "mh")]
    Maglev,
    /// The one with the fewest connections.
    #[serde(rename = "lc")]
    LeastConnection,
    /// The one with the fewest connections for its weight.
    #[serde(rename = "wlc")]
    WeightedLeastConnection,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::Maglev,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
    ];

    /// The name in labels, columns and JSON, which is the one that IPVS uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::Maglev => "mh",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
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
