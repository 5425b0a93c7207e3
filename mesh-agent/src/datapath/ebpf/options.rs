//! How to load the eBPF data path.

use std::{net::Ipv4Addr, path::PathBuf};

use super::super::{TcChoice, XdpChoice};

/// How to load the data path.
#[derive(Clone, Debug)]
pub struct EbpfOptions {
    /// Directory on a bpffs for pins; created if it is missing. Everything in it is ours.
    pub pins: PathBuf,
    /// A mounted cgroup2 hierarchy's root.
    pub cgroup: PathBuf,
    /// Which XDP mode to use.
    pub xdp: XdpChoice,
    /// Which kind of tc hook to use.
    pub tc: TcChoice,
    /// Entries of the table of open flows; a flow takes one or two.
    pub flow_capacity: u32,
    /// New flows of a service per second past which flows get no entries until they are open; 0 for never.
    /// `None` for as many as keep a half-open flow for a second or longer.
    pub flood_limit: Option<u32>,
    /// UDP port of the tunnel.
    pub geneve_port: u16,
    /// The address that local processes' connections are redirected to.
    pub service_address: Ipv4Addr,
    /// Cookie of the host's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
    pub netns_cookie: u64,
    /// Whether each program is loaded when it is first used, rather than all at once; for tests, which use
    /// few of them: the verifier takes most of their time.
    pub load_when_used: bool,
    /// Entries of maps that are to be smaller than the programs declare them, by name; for tests.
    pub map_sizes: Vec<(&'static str, u32)>,
    /// Maps whose layout is to count as changed, which makes this the next version; for tests.
    pub changed_maps: Vec<&'static str>,
}

impl EbpfOptions {
    /// Entries of the table of half-open flows: few, as a flow is in it for a round trip, and enough that
    /// new ones push out none of these.
    pub(super) fn half_open_capacity(&self) -> u32 {
        (self.flow_capacity / 4).max(1024)
    }

    /// The flood limit of services that have none of their own. A flow has up to two entries.
    pub(super) fn flood_limit(&self) -> u32 {
        self.flood_limit.unwrap_or(self.half_open_capacity() / 2)
    }
}
