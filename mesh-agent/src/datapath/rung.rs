//! The ladder of data paths: its rungs, fastest first, and the state of each on a node. Plain data that
//! status, metrics and JSON share; imports the model only.

use serde::{Deserialize, Serialize};

use crate::model::NodeDatapath;

/// Which data path to use: `--datapath`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DatapathChoice {
    /// eBPF, and IPVS where the kernel refuses eBPF.
    #[default]
    Auto,
    /// eBPF only.
    Ebpf,
    /// IPVS only.
    Ipvs,
}

impl DatapathChoice {
    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Ipvs => "ipvs",
        }
    }

    /// The kinds that it allows, in order of preference.
    #[must_use]
    pub fn kinds(self) -> &'static [DatapathKind] {
        match self {
            Self::Auto => &[DatapathKind::Ebpf, DatapathKind::Ipvs],
            Self::Ebpf => &[DatapathKind::Ebpf],
            Self::Ipvs => &[DatapathKind::Ipvs],
        }
    }

    /// Whether it allows a kind.
    #[must_use]
    pub fn allows(self, kind: DatapathKind) -> bool {
        self.kinds().contains(&kind)
    }
}

/// What carries the traffic: our programs or the kernel's IPVS. In order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathKind {
    /// Our eBPF programs.
    Ebpf,
    /// The kernel's IPVS and an nftables table.
    Ipvs,
}

impl DatapathKind {
    /// The name in metrics, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Ipvs => "ipvs",
        }
    }

    /// The name in messages.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Ebpf => "eBPF",
            Self::Ipvs => "IPVS",
        }
    }
}

impl From<DatapathKind> for NodeDatapath {
    fn from(kind: DatapathKind) -> Self {
        match kind {
            DatapathKind::Ebpf => Self::Ebpf,
            DatapathKind::Ipvs => Self::Ipvs,
        }
    }
}

/// A step of the fallback ladder, best first. A node is on the rung of its slowest uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// XDP in the driver, tc through tcx links.
    XdpNativeTcx,
    /// XDP in the driver, tc through clsact filters.
    XdpNativeClsact,
    /// XDP on the generic hook, and tc.
    XdpGeneric,
    /// tc alone.
    Tc,
    /// No eBPF: the kernel's IPVS.
    Ipvs,
}

impl Rung {
    /// Every rung, best first.
    pub const ALL: [Self; 5] = [
        Self::XdpNativeTcx,
        Self::XdpNativeClsact,
        Self::XdpGeneric,
        Self::Tc,
        Self::Ipvs,
    ];

    /// The name in metrics, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::XdpNativeTcx => "xdp-native-tcx",
            Self::XdpNativeClsact => "xdp-native-clsact",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
            Self::Ipvs => "ipvs",
        }
    }

    /// What carries the traffic on it.
    #[must_use]
    pub fn kind(self) -> DatapathKind {
        match self {
            Self::XdpNativeTcx | Self::XdpNativeClsact | Self::XdpGeneric | Self::Tc => DatapathKind::Ebpf,
            Self::Ipvs => DatapathKind::Ipvs,
        }
    }
}

/// The state of a rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RungState {
    /// The node is on it.
    InUse,
    /// It was tried and refused; it is not tried again before `meshctl datapath retry`.
    Refused,
    /// It was not tried: a better rung works, or the settings rule this one out.
    NotTried,
    /// The kernel offers it. Only the doctor reports this, as it uses no rung.
    Offered,
}

impl RungState {
    /// The name in columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Refused => "refused",
            Self::NotTried => "not tried",
            Self::Offered => "offered",
        }
    }
}

/// A rung with its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungStatus {
    /// The rung.
    pub rung: Rung,
    /// Its state.
    pub state: RungState,
    /// The kernel's error, or the setting that rules it out; empty where there is no reason to give.
    pub reason: String,
}

/// The best rung that a data path has reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReachedRung {
    /// The rung; `None` while no uplink is known, and for a data path with one rung only.
    pub rung: Option<Rung>,
    /// Its better rungs, best first, and why it is not on them.
    pub passed: Vec<RungStatus>,
}

/// The node's data path, as status, metrics and JSON show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// The choice on the command line.
    pub choice: DatapathChoice,
    /// What carries the traffic.
    pub kind: DatapathKind,
    /// The rung in use; `None` while no uplink is known.
    pub rung: Option<Rung>,
    /// Why the node is not on a better rung; empty where it is the best, or the best of those chosen.
    pub reason: String,
    /// Every rung, best first.
    pub rungs: Vec<RungStatus>,
    /// How often a refusal led to a worse rung since the agent started.
    pub steps_down: u64,
}

impl Default for DatapathStatus {
    fn default() -> Self {
        Self {
            choice: DatapathChoice::Auto,
            kind: DatapathKind::Ebpf,
            rung: None,
            reason: String::new(),
            rungs: Vec::new(),
            steps_down: 0,
        }
    }
}

impl DatapathStatus {
    /// The rung's name, or the kind's while no uplink is known.
    #[must_use]
    pub fn rung_name(&self) -> &'static str {
        self.rung.map_or("none yet", Rung::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_and_their_kinds_are_in_order_of_preference() {
        assert!(Rung::ALL.is_sorted());
        assert!(Rung::ALL.map(Rung::kind).is_sorted());
    }

    #[test]
    fn names_are_the_same_in_json() {
        for rung in Rung::ALL {
            assert_eq!(serde_json::to_value(rung).unwrap(), rung.name());
        }
        for kind in [DatapathKind::Ebpf, DatapathKind::Ipvs] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for choice in [DatapathChoice::Auto, DatapathChoice::Ebpf, DatapathChoice::Ipvs] {
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.name());
        }
    }
}
