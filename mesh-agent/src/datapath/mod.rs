//! What programs the packet path, behind one trait. Imports the model and the plan, nothing else of
//! ours; aya's types stay inside `ebpf`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    model::{BackendKey, Desired, NodeDatapath, ServiceKey},
    plan::DatapathChange,
};

pub mod ebpf;
pub mod ipvs;
pub mod memory;
pub mod netlink;
mod rung;
mod turns;

pub use rung::{DatapathChoice, DatapathKind, DatapathStatus, ReachedRung, Rung, RungState, RungStatus};

/// A packet path that can be brought to any desired state by changes.
///
/// Every method is synchronous and quick (map system calls, no waiting on others), and is called from
/// one place at a time.
pub trait Datapath: Send {
    /// Makes the changes true, in order. Each is idempotent. A change that fails does not keep the
    /// later ones from being tried; what failed is reported, and the caller tries again later.
    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError>;

    /// Reads the traffic counters. Totals never go down while the datapath lives; a service's include
    /// those of backends that are gone.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    fn counters(&mut self) -> Result<Counters, DatapathError>;

    /// What this is to other nodes, which send only to what reads their packets.
    fn kind(&self) -> NodeDatapath;

    /// Whether it was found in the kernel, as an earlier agent has left it, and carries traffic already.
    fn adopted(&self) -> bool {
        false
    }

    /// Which data path runs on each interface, and why.
    fn modes(&self) -> Vec<InterfaceMode>;

    /// Which rung of its own it stands on, and what refused the better ones. A data path that has but one
    /// rung has nothing to say.
    fn reached_rung(&self) -> ReachedRung {
        ReachedRung::default()
    }

    /// Tries the better ones of its own rungs again, without a gap in the traffic. What is refused again
    /// is no error: [`Self::reached_rung`] tells.
    ///
    /// # Errors
    /// When the kernel refuses what it took before.
    fn climb(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Periodic upkeep, about once a second: the flows' clock, removal of flows that are over.
    ///
    /// # Errors
    /// When the kernel refuses to write or walk a map.
    fn maintain(&mut self) -> Result<(), DatapathError>;

    /// Removes from the kernel whatever is there and not in `desired`: what an earlier agent has left.
    /// Called once, when the first state has been applied.
    ///
    /// # Errors
    /// When something could not be removed; the rest is removed all the same, and it is tried again.
    fn prune(&mut self, desired: &Desired) -> Result<(), DatapathError> {
        let _ = desired;
        Ok(())
    }

    /// Takes everything out of the kernel: programs, links, maps, pins.
    ///
    /// # Errors
    /// When something could not be removed; the rest is removed all the same.
    fn detach(&mut self) -> Result<(), DatapathError>;
}

/// An operation on the kernel failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct DatapathError {
    /// What was tried, on what, e.g. `attach mesh_uplink to tc ingress of eth0`.
    pub operation: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl DatapathError {
    /// Whether it failed because a device is gone: no shortcoming of the data path.
    #[must_use]
    pub fn is_missing_device(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self.source.as_ref());
        while let Some(error) = source {
            let code = match error.downcast_ref::<std::io::Error>() {
                Some(error) => error.raw_os_error(),
                None => error
                    .downcast_ref::<nix::errno::Errno>()
                    .map(|error| *error as i32),
            };
            if matches!(code, Some(libc::ENODEV | libc::ENXIO)) {
                return true;
            }
            source = error.source();
        }
        false
    }
}

/// An error of an operation.
fn failed(
    operation: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DatapathError {
    DatapathError {
        operation: operation.into(),
        source: source.into(),
    }
}

/// A change could not be made true.
#[derive(Debug, thiserror::Error)]
#[error("could not apply {change:?}")]
pub struct ChangeError {
    /// The change.
    pub change: DatapathChange,
    /// Why.
    #[source]
    pub source: DatapathError,
}

/// Counters of all traffic since the datapath was first loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Per backend that is in the desired state now.
    pub backends: BTreeMap<BackendKey, Traffic>,
    /// Per service that is in the desired state now, backends that are gone included.
    pub services: BTreeMap<ServiceKey, Traffic>,
    /// Packets dropped, by hook and reason; every pair is listed, zero included.
    pub drops: Vec<DropCount>,
    /// Entries and capacity of each map.
    pub maps: Vec<MapUsage>,
    /// Flows that the LRU evicted or that found no room; `None` where it cannot be told.
    pub flow_evictions: u64,
}

/// Traffic seen at this node as the entry node, L3 bytes (IP header included, no encapsulation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Flows sent to the backend since the start.
    pub connections_total: u64,
    /// Flows now open: TCP neither closed nor reset, UDP seen in the last 30 s.
    pub connections_active: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients (unseen in `dsr` mode for remote backends).
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients (unseen in `dsr` mode for remote backends).
    pub bytes_out: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections_total += other.connections_total;
        self.connections_active += other.connections_active;
        self.packets_in += other.packets_in;
        self.packets_out += other.packets_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

/// Packets dropped for one reason at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// `xdp`, `tc_uplink`, `tc_container` or `tc_mesh0`.
    pub hook: String,
    /// The reason's name, e.g. `unknown_peer`.
    pub reason: String,
    /// Packets.
    pub packets: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// The map's name.
    pub map: String,
    /// Entries in use.
    pub entries: u64,
    /// Its capacity.
    pub max_entries: u64,
}

/// The data path of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceMode {
    /// Interface name.
    pub interface: String,
    /// The fastest path that runs on it.
    pub mode: Mode,
    /// Why this one and not a faster one; empty where it is the fastest.
    pub reason: String,
}

/// Which XDP hook to use on the uplinks; `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpChoice {
    /// The driver's hook, else the generic one, else none. None on a veth: its peer hands over packets
    /// whose checksums are not finished, and XDP would forward them so.
    #[default]
    Auto,
    /// The driver's hook only.
    Native,
    /// The generic hook only.
    Generic,
    /// No XDP; tc does everything.
    Off,
}

/// Which kind of tc hook to use; `--tc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TcChoice {
    /// tcx where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// tcx links only.
    Tcx,
    /// A clsact queueing discipline and its filters only.
    Clsact,
}

/// A kind of data path, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// XDP in the driver, and tc.
    XdpNative,
    /// XDP on the generic hook, and tc.
    XdpGeneric,
    /// tc alone (tcx, or clsact on kernels without it).
    Tc,
    /// No eBPF: the kernel's IPVS.
    Ipvs,
}

impl Mode {
    /// The name in metrics, columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
            Self::Ipvs => "ipvs",
        }
    }
}
