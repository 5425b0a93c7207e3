//! The packet path behind one trait, [`Datapath`], and what it reports. Imports the model and the plan; aya's
//! types stay inside `ebpf`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use self::{
    dump::Dump,
    explain::{Explanation, Question},
    flow_list::{FlowCursor, ListedFlow},
    limited::LimitedServices,
    mapped::MappedClient,
    monitor::Observations,
};
use crate::{
    model::{BackendKey, Desired, KeyId, NodeDatapath, ServiceKey, TunnelKey, TunnelKeys},
    plan::DatapathChange,
};

pub mod dump;
pub mod ebpf;
pub mod explain;
mod failed_change;
pub mod flow_list;
pub mod ipvs;
pub mod limited;
pub mod mapped;
pub mod memory;
pub mod monitor;
pub mod netlink;
mod rung;
mod signals;
mod turns;

pub use rung::{DatapathChoice, DatapathKind, DatapathStatus, ReachedRung, Rung, RungState, RungStatus};
pub use signals::{AnswerTimes, Signals};

/// A packet path that changes can bring to any desired state.
///
/// Every method is synchronous and quick (system calls on maps, no waiting), and no two calls overlap.
pub trait Datapath: Send {
    /// Applies the changes in order. Each is idempotent. A change that fails does not keep later ones from
    /// being tried; failures are returned, and the caller tries them again later.
    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError>;

    /// Takes over the key that packets between nodes carry, and which keys the peers take. Called before the
    /// changes that follow from the same snapshot. The default is for a data path without keys.
    ///
    /// # Errors
    /// When the kernel refuses; the caller tries again.
    fn set_keys(&mut self, keys: &TunnelKeys) -> Result<(), DatapathError> {
        let _ = keys;
        Ok(())
    }

    /// The ids of the keys that it takes from peers.
    fn key_ids(&self) -> Vec<KeyId> {
        Vec::new()
    }

    /// The key that it sends to each peer; none to a peer that is not listed.
    fn sent_keys(&self) -> BTreeMap<Ipv4Addr, TunnelKey> {
        BTreeMap::new()
    }

    /// Reads the traffic counters. Totals never go down while the data path exists; a service's totals
    /// include those of its former backends.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    fn counters(&mut self) -> Result<Counters, DatapathError>;

    /// Reads its tables back, with at most `flows` entries of the flow table.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError>;

    /// Visits the next of its flows, a few thousand at a time, so that other callers do not wait for long.
    /// Returns whether there are more. Flows that come and go meanwhile may be missed or visited twice. The
    /// default is for a data path that knows none.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn read_flows(
        &mut self,
        cursor: &mut FlowCursor,
        visit: &mut dyn FnMut(ListedFlow),
    ) -> Result<bool, DatapathError> {
        let _ = (cursor, visit);
        Ok(false)
    }

    /// What would become of a packet, and why. Changes nothing. The default is for a data path that leaves
    /// the decisions to others.
    ///
    /// # Errors
    /// When it cannot know, or the kernel refuses to read a table.
    fn explain(&mut self, question: &Question) -> Result<Explanation, DatapathError> {
        let _ = question;
        Err(failed(
            "explain a packet",
            "this node's data path is not eBPF, whose tables say what is decided; `meshctl routes` shows where the \
             port goes, and `meshctl datapath` why the node has no other",
        ))
    }

    /// What became of single packets since an earlier question, whose answer had the number `since`; without
    /// it, from now on. Reports are made for [`monitor::WATCH`] after each question. The default is for a
    /// data path that makes none.
    ///
    /// # Errors
    /// When it makes none, or the kernel refuses to read or write a map.
    fn observe(&mut self, since: Option<u64>) -> Result<Observations, DatapathError> {
        let _ = since;
        Err(failed(
            "watch packets",
            "this node's data path is not eBPF, whose programs report what they do; `meshctl flows` lists \
             connections, and `meshctl datapath` says why the node has no other",
        ))
    }

    /// The IPv6 clients that it knows, in no order: that with an address, or all. The default is for a data
    /// path that serves none.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
    fn mapped_clients(&mut self, of: Option<IpAddr>) -> Result<Vec<MappedClient>, DatapathError> {
        let _ = of;
        Ok(Vec::new())
    }

    /// What the limits of new connections do, as of the last [`Self::maintain`]. The default is for a data
    /// path without such limits.
    fn limited(&self) -> LimitedServices {
        LimitedServices::new()
    }

    /// The kind as other nodes see it: they send only to nodes that read their packets.
    fn kind(&self) -> NodeDatapath;

    /// Whether an earlier agent left it in the kernel, so that it already carries traffic.
    fn adopted(&self) -> bool {
        false
    }

    /// The mode of each interface, and the reason for it.
    fn modes(&self) -> Vec<InterfaceMode>;

    /// The rung that it has reached, and why not a better one. The default is for a data path with one rung
    /// only.
    fn reached_rung(&self) -> ReachedRung {
        ReachedRung::default()
    }

    /// Tries its better rungs again, without interrupting the traffic. Another refusal is not an error: see
    /// [`Self::reached_rung`].
    ///
    /// # Errors
    /// When the kernel refuses what it accepted before.
    fn climb(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Periodic upkeep, about once a second: advances the flows' clock and removes flows that are over.
    ///
    /// # Errors
    /// When the kernel refuses to write or walk a map.
    fn maintain(&mut self) -> Result<(), DatapathError>;

    /// Removes what an earlier agent left in the kernel and `desired` does not contain. Called once, after
    /// the first state has been applied.
    ///
    /// # Errors
    /// When something could not be removed; the rest is removed all the same, and the caller tries again.
    fn prune(&mut self, desired: &Desired) -> Result<(), DatapathError> {
        let _ = desired;
        Ok(())
    }

    /// Removes everything from the kernel: programs, links, maps, pins.
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
    /// Whether an earlier agent's data path, which could not be taken over, goes on serving.
    #[must_use]
    pub fn leaves_earlier_serving(&self) -> bool {
        self.source.is::<EarlierServes>()
    }

    /// Whether it failed because a device is gone, which is not the data path's fault.
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

/// Why a data path was not taken over. It goes on serving, with the state that its agent has left.
#[derive(Debug, thiserror::Error)]
#[error(
    "the programs of this agent cannot replace it: start the earlier agent again, or choose `--datapath ipvs`, \
     which gives its connections up"
)]
pub struct EarlierServes(#[source] pub DatapathError);

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

/// A change could not be applied.
#[derive(Debug, thiserror::Error)]
#[error("could not apply {change:?}")]
pub struct ChangeError {
    /// The change.
    pub change: DatapathChange,
    /// The service that cannot be served as it should be; `None` if the failure is not about one.
    pub service: Option<ServiceKey>,
    /// Why.
    #[source]
    pub source: DatapathError,
}

/// Connections without an answer from which on a backend is passed over.
pub const UNANSWERED_LIMIT: u64 = mesh_ebpf::abi::BREAKER_LIMIT;

/// Counters of all traffic since the data path was first loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// For each backend in the desired state.
    pub backends: BTreeMap<BackendKey, Traffic>,
    /// TCP connections that a backend was asked to open since it last answered one; a backend that is not
    /// listed has answered. The eBPF data path passes over a backend from [`UNANSWERED_LIMIT`] on.
    pub unanswered: BTreeMap<BackendKey, u64>,
    /// How each backend of TCP answers. Empty where the data path does not count it.
    #[serde(default)]
    pub signals: BTreeMap<BackendKey, Signals>,
    /// Open flows in this node's table by backend: for a replica of this node those of all entry nodes. Empty
    /// where the data path does not count them.
    pub open: BTreeMap<BackendKey, u64>,
    /// For each service in the desired state, former backends included.
    pub services: BTreeMap<ServiceKey, Traffic>,
    /// Dropped packets by hook and reason; every pair is listed, those with zero too.
    pub drops: Vec<DropCount>,
    /// Entries and capacity of each map.
    pub maps: Vec<MapUsage>,
    /// Open flows that were removed to make room for others.
    pub flow_evictions: u64,
    /// Entries of half-open flows that newer ones have pushed out.
    pub half_open_evictions: u64,
    /// How often a flow that began to talk found no room among the open ones, and stayed among the half-open
    /// ones.
    pub flows_not_opened: u64,
    /// TCP packets in mid-connection to published ports, of flows that this node does not know: left to the
    /// kernel.
    pub unknown_flows: u64,
    /// Packets of flooded services that were forwarded without flow entries.
    pub untracked_packets: u64,
    /// Flows that were opened in mid-connection, for the backend that their tuple leads to.
    #[serde(default)]
    pub flows_adopted: u64,
    /// Frames for published ports that had the MAC address of another machine.
    #[serde(default)]
    pub frames_for_others: u64,
    /// RST and ICMP errors that were not made, as there were too many.
    pub answers_suppressed: u64,
    /// Packets of peers that this node could not deliver, and sent back to them.
    pub packets_sent_back: u64,
    /// Flows that got another backend, because a peer had sent their packet back.
    pub flows_moved: u64,
}

/// Traffic that entered the mesh at this node, in L3 bytes (IP header included, encapsulation not).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Flows sent to the backend so far.
    pub connections_total: u64,
    /// Open flows: TCP neither closed nor reset, UDP with a packet in the last 30 s.
    pub connections_active: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients (in `dsr` mode, this node does not see those of remote backends).
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients (in `dsr` mode, this node does not see those of remote backends).
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
    /// The fastest hook in use.
    pub mode: Mode,
    /// Why this one and not a faster one; empty where it is the fastest.
    pub reason: String,
}

/// Which XDP hook to use on the uplinks: `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpChoice {
    /// The driver's hook, else none: the generic hook sees packets that the kernel has aggregated and whose
    /// checksums are unfinished. None on a veth: XDP would forward its peer's unfinished packets.
    #[default]
    Auto,
    /// The driver's hook only.
    Native,
    /// The generic hook only.
    Generic,
    /// No XDP: tc does everything.
    Off,
}

/// Which kind of tc hook to use: `--tc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TcChoice {
    /// tcx where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// tcx links only.
    Tcx,
    /// clsact filters only.
    Clsact,
}

/// What handles an interface's packets, fastest first.
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
    /// Nothing: there is no hook.
    None,
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
            Self::None => "none",
        }
    }
}
