//! What is counted: traffic by backend, drops by hook and reason, and node-wide events.

/// Traffic of one backend on one CPU. L3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendCounters {
    /// Flows opened.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// Where the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// XDP on an uplink.
    Xdp = 0,
    /// tc ingress of an uplink.
    TcUplink = 1,
    /// tc ingress of the host end of a container's veth.
    TcContainer = 2,
    /// tc egress of mesh0.
    TcMesh0 = 3,
}

impl Hook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::TcUplink, Self::TcContainer, Self::TcMesh0];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcUplink => "tc_uplink",
            Self::TcContainer => "tc_container",
            Self::TcMesh0 => "tc_mesh0",
        }
    }
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// A packet for a published port from an address that no sender has (0.0.0.0/8, loopback, multicast,
    /// broadcast, the receiver's own), or to a group of machines by its MAC address.
    Martian = 0,
    /// A length field contradicts another one or the frame's length.
    BadLength = 1,
    /// The frame ends within a header.
    Truncated = 2,
    /// An IP option in a packet for a published port.
    IpOptions = 3,
    /// A fragment of which the first one is not known: from a peer, or one that no packet has.
    Fragment = 4,
    /// A Geneve packet with our VNI that the mesh cannot have made.
    BadGeneve = 5,
    /// An encapsulated packet from an address that belongs to no peer.
    UnknownPeer = 6,
    /// An encapsulated packet for a backend that this node does not have, or no longer has; sent back to the
    /// entry node.
    UnknownBackend = 7,
    /// A packet of a flow that this node does not know, or no longer knows; a reply of another node or
    /// backend than the flow's.
    UnknownFlow = 8,
    /// The service has no active backend; TCP is answered with RST, UDP with ICMP.
    NoBackend = 9,
    /// The flow's backend is gone; TCP is answered with RST.
    BackendGone = 10,
    /// Larger than the tunnel takes; answered with ICMP "fragmentation needed".
    TooBig = 11,
    /// The flow table has no room for a new flow.
    FlowTableFull = 12,
    /// No free source port to distinguish two flows of one client.
    NoFreePort = 13,
    /// There is no route to the peer or client.
    NoRoute = 14,
    /// The kernel refused to resize or rewrite the packet.
    RewriteFailed = 15,
    /// A packet on mesh0 that is not for a frontend.
    NotAFrontend = 16,
    /// A client's packet that the backend's node has sent back, and that no other backend may take: it
    /// belongs to an open connection, or a second backend could not take it either. TCP is answered with
    /// RST, UDP with ICMP.
    Undeliverable = 17,
    /// An encapsulated packet without one of the cluster's keys, from a peer that has sent one before.
    NoKey = 18,
    /// A client that the source rules of its service drop: the host's own firewall, or the service's labels.
    SourceDenied = 19,
    /// A client that those rules reject; TCP is answered with RST, UDP with ICMP.
    SourceRejected = 20,
    /// The first packet of a connection past the service's limit of new ones (label
    /// `mesh.max-new-connections`).
    MaxNewConnections = 21,
    /// The same past the limit of one client (label `mesh.max-new-connections-per-source`).
    MaxNewConnectionsPerSource = 22,
    /// A packet of an IPv6 client for which no IPv4 address can stand: there were too many new clients of
    /// late, or others have all that it could get.
    NoClientAddress = 23,
    /// A datagram for an IPv6 client without a checksum, which IPv6 does not take (RFC 8200, 8.1).
    NoChecksum = 24,
    /// A later fragment that overlaps the first one of its packet, and so may replace the ports or flags that
    /// were decided about.
    FragmentOverlap = 25,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::Martian,
        Self::BadLength,
        Self::Truncated,
        Self::IpOptions,
        Self::Fragment,
        Self::BadGeneve,
        Self::UnknownPeer,
        Self::UnknownBackend,
        Self::UnknownFlow,
        Self::NoBackend,
        Self::BackendGone,
        Self::TooBig,
        Self::FlowTableFull,
        Self::NoFreePort,
        Self::NoRoute,
        Self::RewriteFailed,
        Self::NotAFrontend,
        Self::Undeliverable,
        Self::NoKey,
        Self::SourceDenied,
        Self::SourceRejected,
        Self::MaxNewConnections,
        Self::MaxNewConnectionsPerSource,
        Self::NoClientAddress,
        Self::NoChecksum,
        Self::FragmentOverlap,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Martian => "martian",
            Self::BadLength => "bad_length",
            Self::Truncated => "truncated",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::BadGeneve => "bad_geneve",
            Self::UnknownPeer => "unknown_peer",
            Self::UnknownBackend => "unknown_backend",
            Self::UnknownFlow => "unknown_flow",
            Self::NoBackend => "no_backend",
            Self::BackendGone => "backend_gone",
            Self::TooBig => "too_big",
            Self::FlowTableFull => "flow_table_full",
            Self::NoFreePort => "no_free_port",
            Self::NoRoute => "no_route",
            Self::RewriteFailed => "rewrite_failed",
            Self::NotAFrontend => "not_a_frontend",
            Self::Undeliverable => "undeliverable",
            Self::NoKey => "no_key",
            Self::SourceDenied => "source_denied",
            Self::SourceRejected => "source_rejected",
            Self::MaxNewConnections => "max_new_connections",
            Self::MaxNewConnectionsPerSource => "max_new_connections_per_source",
            Self::NoClientAddress => "no_client_address",
            Self::NoChecksum => "no_checksum",
            Self::FragmentOverlap => "fragment_overlap",
        }
    }
}

/// Number of drop counters: [`drop_index`] of the last hook and reason, plus one.
pub const DROP_COUNTERS: u32 = Hook::ALL.len() as u32 * DropReason::ALL.len() as u32;

/// The index of a hook's drop counter for a reason.
#[inline(always)]
pub const fn drop_index(hook: Hook, reason: DropReason) -> u32 {
    hook as u32 * DropReason::ALL.len() as u32 + reason as u32
}

/// What is counted for the whole node; the number is the index of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// An entry was added to the table of half-open flows.
    FlowInserted = 0,
    /// A packet was sent back to its entry node, because this node could not deliver it.
    SentBack = 1,
    /// A flow got another backend, because the first one's node had sent its packet back.
    FlowMoved = 2,
    /// An entry went from the table of half-open flows to that of open ones.
    FlowOpened = 3,
    /// A flow began to talk, and the table of open flows had no room for it.
    FlowNotOpened = 4,
    /// TCP in mid-connection to a published port, of a flow that this node does not know: left to the kernel,
    /// whose answer is a RST unless the connection is older than the mesh.
    FlowUnknown = 5,
    /// A RST or an ICMP error was not made, as there were too many.
    AnswerSuppressed = 6,
    /// A packet of a flooded service was forwarded, and its flow got no entries.
    FlowUntracked = 7,
    /// A flow was opened in mid-connection, for the backend that its tuple leads to on every node.
    FlowAdopted = 8,
    /// A frame of the network's that would have opened a flow had the MAC address of another machine: left to
    /// the kernel, which drops it, or forwards it on a bridge.
    OtherMachine = 9,
}

/// Number of event counters.
pub const EVENT_COUNTERS: u32 = 10;

const _: () = assert!(size_of::<BackendCounters>() == 40);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_in_metrics_are_unique() {
        let hooks: BTreeSet<_> = Hook::ALL.iter().map(|hook| hook.name()).collect();
        assert_eq!(hooks.len(), Hook::ALL.len());
        let reasons: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(reasons.len(), DropReason::ALL.len());
    }

    #[test]
    fn all_hooks_and_reasons_are_listed_by_their_numbers() {
        for (number, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, number);
        }
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }

    #[test]
    fn every_hook_and_reason_has_a_drop_counter_of_its_own() {
        let mut indexes: Vec<u32> = Hook::ALL
            .into_iter()
            .flat_map(|hook| DropReason::ALL.map(|reason| drop_index(hook, reason)))
            .collect();
        indexes.sort_unstable();
        assert!(indexes.into_iter().eq(0..DROP_COUNTERS));
    }
}
