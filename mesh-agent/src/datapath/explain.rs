//! What a data path would do with a packet, and what it decides that by. Imports the model.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use super::flow_list::FlowState;
use crate::model::{BackendKey, Protocol, ServiceKey, SourceVerdict};

/// A packet: the first of its flow or, where there is that flow already, the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it comes from.
    pub source: SocketAddrV4,
    /// The address that the source's stands for, if it is an IPv6 client's.
    pub ipv6_client: Option<Ipv6Addr>,
    /// Where it goes.
    pub destination: SocketAddrV4,
    /// Where it enters the node.
    pub ingress: PacketIngress,
}

impl Question {
    /// Whom the packet comes from, by its own address.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.ipv6_client
            .map_or_else(|| IpAddr::V4(*self.source.ip()), IpAddr::V6)
    }
}

/// Where a packet enters the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketIngress {
    /// By an uplink.
    Uplink {
        /// Its interface index.
        interface: u32,
        /// Whether it has XDP, which sees the packet before tc does.
        has_xdp: bool,
    },
    /// From a container, by the host end of its veth.
    Container {
        /// Its interface index.
        interface: u32,
    },
    /// From a process of the node, redirected to the service address.
    Host,
}

/// The decisions about a packet. Looking at them changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The programs that see it, in their order, and what each does with it.
    pub hooks: Vec<(String, String)>,
    /// Whether any service publishes its port.
    pub is_published: bool,
    /// The service that answers where it goes; `None` if none does.
    pub service: Option<ServiceKey>,
    /// Whether that address refuses everyone (label `mesh.publish-on`).
    pub is_closed: bool,
    /// Whether it is taken for the answer to a datagram of this node.
    pub is_answer: bool,
    /// The flow that it belongs to; `None` if it opens one.
    pub flow: Option<KnownFlow>,
    /// What the service's source rules say of it; `None` if they are not asked.
    pub rules: Option<SourceVerdict>,
    /// How a backend is chosen; `None` if none is.
    pub choice: Option<Chosen>,
    /// The backends that have left connections unanswered, and how many, as far as they were looked at.
    pub unanswered: BTreeMap<BackendKey, u64>,
    /// Its backend, if it gets one.
    pub backend: Option<BackendKey>,
    /// The source that the backend sees, if that is another one.
    pub presented: Option<SocketAddrV4>,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// A flow that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFlow {
    /// Its backend; `None` once that is gone.
    pub backend: Option<BackendKey>,
    /// How far it has come.
    pub state: FlowState,
    /// Seconds since a packet was last seen.
    pub idle_seconds: u32,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// `rotate`, `hash-endpoint`, `hash-address`, `least` or `random`.
    pub how: String,
    /// The slots of the service's ring that were looked at, in their order.
    pub slots: Vec<(u32, Option<BackendKey>)>,
    /// How many slots the ring has.
    pub ring_length: u32,
    /// Whether the client stays with the backend of its last connection (label `mesh.affinity`).
    pub has_affinity: bool,
    /// Whether another flow may take the turn first, so that this one gets another backend.
    pub is_forecast: bool,
    /// Whether the service is past its flood limit, or was a short while ago, and so goes by a hash.
    pub is_flooded: bool,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is left to the kernel.
    Passed,
    /// It is dropped without an answer.
    Dropped {
        /// The name of the reason, as in `mesh_drops_total`.
        reason: String,
    },
    /// Its sender gets a RST or an ICMP error.
    Refused {
        /// The name of the reason.
        reason: String,
    },
    /// It goes into a container of this node.
    Delivered {
        /// The host end of its veth.
        interface: u32,
    },
    /// It goes through the tunnel to the node of its backend.
    Forwarded(Tunnelled),
    /// It is a backend's reply, and goes back to its client.
    Reply,
}

/// The way through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    /// The other node's address.
    pub peer: Ipv4Addr,
    /// The interface that leads there; `None` while it is not resolved.
    pub interface: Option<u32>,
    /// The largest packet that fits, bytes from its own IP header on.
    pub mtu: u16,
    /// Whether it carries the cluster's key.
    pub has_key: bool,
    /// Whether the backend's replies go to the client directly.
    pub is_direct: bool,
}
