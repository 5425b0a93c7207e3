//! The flows of a data path as an operator reads them: which ones to list, and what is known of each. Imports
//! the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use mesh_support::bpf::Cursor;
use serde::{Deserialize, Serialize};

use crate::model::{BackendKey, Prefix, Protocol, ServiceKey};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// Client and backend do not talk yet.
    HalfOpen,
    /// They do.
    Open,
    /// One side is done.
    Closing,
    /// Both sides are done, or one has reset the connection.
    Closed,
}

impl FlowState {
    /// The name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// Where a flow's client packets enter a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// From the network: this is the entry node.
    Network,
    /// From a process of this node.
    Host,
    /// From a container of this node.
    Container,
    /// From another node, which is the entry node, by its address.
    Node(Ipv4Addr),
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFlow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What it dialled.
    pub frontend: SocketAddr,
    /// What the backend sees instead of the client, if anything: of an IPv6 client, the address that stands
    /// for it.
    pub presented: Option<SocketAddrV4>,
    /// Its backend; `None` once that is gone.
    pub backend: Option<BackendKey>,
    /// How far it has come.
    pub state: FlowState,
    /// Seconds since a packet was last seen; `None` where the data path does not say.
    pub idle_seconds: Option<u32>,
    /// Where its client's packets enter.
    pub ingress: Ingress,
}

impl ListedFlow {
    /// Its service, which may be gone.
    #[must_use]
    pub fn service(&self) -> ServiceKey {
        ServiceKey {
            protocol: self.protocol,
            port: self.frontend.port(),
        }
    }
}

/// Which flows to list: those to which every condition applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Of one of these services.
    pub services: Option<BTreeSet<ServiceKey>>,
    /// Of one of these backends.
    pub backends: Option<BTreeSet<BackendKey>>,
    /// Of a client with this prefix.
    pub client: Option<Prefix>,
    /// Of this protocol.
    pub protocol: Option<Protocol>,
    /// In this state.
    pub state: Option<FlowState>,
}

impl FlowFilter {
    /// Whether a flow is to be listed.
    #[must_use]
    pub fn admits(&self, flow: &ListedFlow) -> bool {
        let of_backend = |keys: &BTreeSet<_>| flow.backend.is_some_and(|key| keys.contains(&key));
        self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.state.is_none_or(|state| state == flow.state)
            && self
                .client
                .is_none_or(|prefix| prefix.contains(flow.client.ip().into()))
            && self
                .services
                .as_ref()
                .is_none_or(|keys| keys.contains(&flow.service()))
            && self.backends.as_ref().is_none_or(of_backend)
    }
}

/// How far a data path's flows have been read; starts as the default.
#[derive(Debug, Default)]
pub struct FlowCursor {
    /// How many of its tables have been read to their end.
    pub(super) tables: u8,
    /// How far the next one has been read.
    pub(super) position: Cursor,
}

/// The first flows in the order of services and clients, of any number that is added: its memory is limited.
#[derive(Debug)]
pub struct FirstFlows {
    limit: usize,
    flows: BTreeMap<Order, ListedFlow>,
    matches: u64,
}

/// No two flows have the same.
type Order = (Protocol, u16, SocketAddr, IpAddr);

impl FirstFlows {
    /// None yet, and never more than `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            flows: BTreeMap::new(),
            matches: 0,
        }
    }

    /// Adds a flow. One that is added again, as it moved while a table was read, replaces the earlier one.
    pub fn add(&mut self, flow: ListedFlow) {
        let order = (
            flow.protocol,
            flow.frontend.port(),
            flow.client,
            flow.frontend.ip(),
        );
        self.matches += 1;
        if self.flows.len() >= self.limit && self.flows.last_key_value().is_none_or(|(last, _)| *last < order)
        {
            return;
        }
        if self.flows.insert(order, flow).is_some() {
            self.matches -= 1;
        } else if self.flows.len() > self.limit {
            self.flows.pop_last();
        }
    }

    /// The flows in their order, and how many more there were.
    #[must_use]
    pub fn finish(self) -> (Vec<ListedFlow>, u64) {
        let more = self.matches - self.flows.len() as u64;
        (self.flows.into_values().collect(), more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, client: u16) -> ListedFlow {
        ListedFlow {
            protocol: Protocol::Tcp,
            client: SocketAddr::from(([192, 0, 2, 7], client)),
            frontend: SocketAddr::from(([10, 0, 0, 1], port)),
            presented: None,
            backend: Some(backend(port)),
            state: FlowState::Open,
            idle_seconds: Some(1),
            ingress: Ingress::Network,
        }
    }

    fn backend(port: u16) -> BackendKey {
        BackendKey {
            service: ServiceKey {
                protocol: Protocol::Tcp,
                port,
            },
            address: Ipv4Addr::new(10, 0, 1, 5),
        }
    }

    #[test]
    fn the_first_flows_are_kept_whatever_order_they_come_in() {
        let mut first = FirstFlows::new(3);
        for (port, client) in [(443, 9), (80, 7), (80, 5), (443, 1), (80, 6), (80, 5), (80, 9)] {
            first.add(flow(port, client));
        }
        let (flows, more) = first.finish();
        let found: Vec<_> = flows
            .iter()
            .map(|flow| (flow.frontend.port(), flow.client.port()))
            .collect();
        assert_eq!(found, [(80, 5), (80, 6), (80, 7)]);
        assert_eq!(more, 3, "one was added twice");
    }

    #[test]
    fn a_limit_of_none_counts_all() {
        let mut first = FirstFlows::new(0);
        first.add(flow(80, 1));
        assert_eq!(first.finish(), (Vec::new(), 1));
    }

    #[test]
    fn every_condition_of_a_filter_counts() {
        let of = |change: fn(&mut FlowFilter)| {
            let mut filter = FlowFilter::default();
            change(&mut filter);
            filter.admits(&flow(80, 1))
        };
        assert!(of(|_| {}));
        assert!(of(|filter| filter.client = Some("192.0.2.0/24".parse().unwrap())));
        assert!(!of(|filter| filter.client = Some("192.0.2.8".parse().unwrap())));
        assert!(of(|filter| filter.protocol = Some(Protocol::Tcp)));
        assert!(!of(|filter| filter.protocol = Some(Protocol::Udp)));
        assert!(of(|filter| filter.state = Some(FlowState::Open)));
        assert!(!of(|filter| filter.state = Some(FlowState::Closed)));
        assert!(of(|filter| filter.services = Some([backend(80).service].into())));
        assert!(!of(|filter| filter.services = Some([backend(81).service].into())));
        assert!(of(|filter| filter.backends = Some([backend(80)].into())));
        assert!(!of(|filter| filter.backends = Some([backend(81)].into())));
        let gone = ListedFlow {
            backend: None,
            ..flow(80, 1)
        };
        let filter = FlowFilter {
            backends: Some([backend(80)].into()),
            ..FlowFilter::default()
        };
        assert!(!filter.admits(&gone));
    }
}
