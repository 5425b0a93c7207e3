//! The node's network, followed over netlink: addresses, uplinks, containers' interfaces, and the next hop to
//! each peer. Imports the model only; `facts` interprets netlink's messages, without I/O.

mod facts;
mod pace;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut, stream::BoxStream};
use mesh_support::watched::Newest as _;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkExtentMask,
    neighbour::{NeighbourFlags, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric},
};
use netlink_sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use tracing::{debug, warn};

use self::{
    facts::{Effect, Facts, Path},
    pace::{Lookup, Pace},
};
use super::{
    NetworkState,
    default_route::{DefaultInterfaces, DefaultRoute},
    route_to::interfaces_of,
};

/// The kernel announces a new container's veth in a dozen messages, which are handled together.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How often the kernel has to resolve neighbours that are not resolved yet.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// Every so many intervals, resolved neighbours are verified too: the kernel does not see packets that XDP
/// sends as use of a neighbour.
const VERIFY_EVERY: u32 = 10;
/// Room for bursts between two reads; the kernel caps it at net.core.rmem_max.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// The node's network cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket; the agent needs the host's network and AF_NETLINK allowed")]
    Open(#[source] std::io::Error),
    /// The kernel refused to list something.
    #[error("cannot list the node's {what} over netlink")]
    List {
        /// What was listed, e.g. `links`.
        what: &'static str,
        /// The netlink error.
        source: rtnetlink::Error,
    },
    /// The netlink connection is gone.
    #[error("the kernel closed the netlink connection; restart the agent")]
    Closed,
}

/// The watcher's settings.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Names of uplinks besides those that routes and addresses determine.
    pub uplinks: Vec<String>,
    /// The mesh's service address, which does not count as an address of the node.
    pub service_address: Ipv4Addr,
}

/// What to find out besides the node's own interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// The address by which peers reach the node: the interface that has it is an uplink.
    pub node_address: Option<Ipv4Addr>,
    /// The address that the node's engine advertises: managers see another one where the way to them leaves
    /// by another interface. The interface that has it is an uplink, too.
    pub advertised_address: Option<Ipv4Addr>,
    /// Peers whose next hops to find; the interfaces that lead to them are uplinks.
    pub peers: BTreeSet<Ipv4Addr>,
}

/// Follows the network of the namespace in which it was made.
pub struct NetworkWatcher {
    handle: Handle,
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    options: NetworkOptions,
    interest: watch::Receiver<Interest>,
    /// The interest that the facts answer.
    known_interest: Interest,
    facts: Facts,
    pace: Pace,
    state: watch::Sender<Option<NetworkState>>,
    missing_uplinks: BTreeSet<String>,
}

/// Opens netlink in the calling thread's network namespace. The receiver holds `None` until everything
/// has been read once. Must be called inside a tokio runtime; nothing is read before
/// [`NetworkWatcher::run`].
///
/// # Errors
/// When the kernel gives no netlink socket.
pub fn watch_network(
    options: NetworkOptions,
    interest: watch::Receiver<Interest>,
) -> Result<(NetworkWatcher, watch::Receiver<Option<NetworkState>>), NetworkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
    ];
    let (mut connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Open)?;
    if let Err(error) = connection
        .socket_mut()
        .socket_mut()
        .set_rx_buf_sz(RECEIVE_BUFFER_BYTES)
    {
        debug!(%error, "could not enlarge netlink's receive buffer");
    }
    tokio::spawn(connection);
    let (state, receiver) = watch::channel(None);
    let watcher = NetworkWatcher {
        handle,
        messages: messages.map(|(message, _)| message).boxed(),
        options,
        interest,
        known_interest: Interest::default(),
        facts: Facts::default(),
        pace: Pace::default(),
        state,
        missing_uplinks: BTreeSet::new(),
    };
    Ok((watcher, receiver))
}

impl NetworkWatcher {
    /// Follows the network until the sender of the interest is dropped.
    ///
    /// # Errors
    /// When netlink cannot be read.
    pub async fn run(mut self) -> Result<(), NetworkError> {
        self.list().await?;
        self.publish();
        let mut tick = interval(RESOLVE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        loop {
            tokio::select! {
                message = self.messages.next() => {
                    let effect = self.absorb_burst(message.ok_or(NetworkError::Closed)?).await?;
                    match effect {
                        Effect::None => continue,
                        Effect::State => {}
                        Effect::Peers => self.pace.ask(Lookup::Peers),
                        Effect::Routes => self.pace.ask(Lookup::DefaultRoutes),
                        Effect::Overrun => self.pace.ask(Lookup::All),
                    }
                }
                changed = self.interest.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.find_paths().await;
                }
                () = due(self.pace.due(Instant::now())) => {}
                _ = tick.tick() => {
                    let verify = ticks.is_multiple_of(VERIFY_EVERY);
                    self.solicit(verify).await;
                    ticks = ticks.wrapping_add(1);
                    if !verify {
                        continue;
                    }
                    // Changes of routes that the kernel does not report.
                    self.pace.ask(Lookup::Peers);
                }
            }
            self.look_up().await?;
            self.publish();
        }
    }

    /// Looks routes up if that is due. Everything else that has changed is published meanwhile.
    async fn look_up(&mut self) -> Result<(), NetworkError> {
        let begin = Instant::now();
        match self.pace.take(begin) {
            None => return Ok(()),
            Some(Lookup::Peers) => self.find_paths().await,
            Some(Lookup::DefaultRoutes) => {
                self.list_default_routes().await?;
                self.find_paths().await;
            }
            Some(Lookup::All) => {
                warn!("the kernel dropped netlink messages; listing the network again");
                self.list().await?;
            }
        }
        self.pace.took(begin, Instant::now());
        Ok(())
    }

    async fn absorb_burst(
        &mut self,
        first: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<Effect, NetworkError> {
        let peers = &self.known_interest.peers;
        let mut effect = self.facts.absorb(first, peers);
        if effect == Effect::None {
            return Ok(effect);
        }
        let deadline = Instant::now() + DEBOUNCE;
        while let Ok(message) = timeout_at(deadline, self.messages.next()).await {
            effect = effect.max(self.facts.absorb(message.ok_or(NetworkError::Closed)?, peers));
        }
        Ok(effect)
    }

    /// Reads everything again: at the start, and after the kernel has dropped messages.
    async fn list(&mut self) -> Result<(), NetworkError> {
        let mut facts = Facts::default();
        let links = self.handle.link().get().set_filter_mask(
            AddressFamily::Unspec,
            // Statistics of every link would be most of the answer.
            vec![LinkExtentMask::SkipStats],
        );
        each("links", links.execute(), |link| {
            facts.add_link(&link);
        })
        .await?;
        let addresses = self.handle.address().get().execute();
        each("addresses", addresses, |address| {
            facts.add_address(&address);
        })
        .await?;
        let neighbours = self
            .handle
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Inet);
        each("neighbours", neighbours.execute(), |neighbour| {
            facts.add_neighbour(&neighbour);
        })
        .await?;
        self.facts = facts;
        self.list_default_routes().await?;
        self.find_paths().await;
        Ok(())
    }

    async fn list_default_routes(&mut self) -> Result<(), NetworkError> {
        let mut interfaces = DefaultInterfaces::default();
        for request in DefaultRoute::requests() {
            each("routes", self.handle.route().get(request).execute(), |route| {
                interfaces.add(&route);
            })
            .await?;
        }
        self.facts.default_interfaces = interfaces;
        Ok(())
    }

    /// Looks up the kernel's route to each peer, for packets that have this node's address as their source:
    /// rules can say that those leave by another interface than others (`ip rule add from ADDRESS`).
    async fn find_paths(&mut self) {
        self.known_interest = self.interest.newest();
        let own = self.known_interest.node_address;
        // Behind NAT the address may be none of this node's, and the kernel routes nothing from it.
        let source = own.filter(|address| self.facts.has_address(*address));
        let mut paths = BTreeMap::new();
        let mut equal_interfaces = BTreeSet::new();
        for peer in self.known_interest.peers.iter().copied() {
            let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(peer, 32);
            let mut request = match source {
                Some(source) => request.source_prefix(source, 32).build(),
                None => request.build(),
            };
            let path = route_to(&self.handle, peer, request.clone()).await;
            let Some(path) = path.and_then(|route| path_of(peer, &route)) else {
                continue;
            };
            paths.insert(peer, path);
            // Not what packets take, but the entry of the table.
            request.header.flags |= RouteFlags::FibMatch;
            let entry = route_to(&self.handle, peer, request).await;
            equal_interfaces.extend(entry.iter().flat_map(interfaces_of));
        }
        self.facts.equal_interfaces = equal_interfaces;
        let known = std::mem::replace(&mut self.facts.paths, paths);
        if known != self.facts.paths {
            self.solicit(false).await;
        }
    }

    /// Makes the kernel resolve the neighbours that lead to peers and are not resolved yet; with `verify`,
    /// all of them.
    async fn solicit(&mut self, verify: bool) {
        for (interface, address) in self.facts.neighbours_wanted(verify) {
            let request = self
                .handle
                .neighbours()
                .add(interface, address.into())
                .state(NeighbourState::None)
                .flags(NeighbourFlags::Use)
                .replace();
            if let Err(error) = request.execute().await {
                debug!(%address, interface, %error, "the kernel refused to resolve a neighbour");
            }
        }
    }

    fn publish(&mut self) {
        let new = self.facts.state(&self.options, &self.known_interest);
        let missing: BTreeSet<String> = self
            .options
            .uplinks
            .iter()
            .filter(|name| !new.uplinks.contains_key(*name) && !new.unusable_uplinks.contains_key(*name))
            .cloned()
            .collect();
        for name in missing.difference(&self.missing_uplinks) {
            warn!(
                uplink = name,
                "waiting for the uplink (--uplink): there is no interface of that name"
            );
        }
        self.missing_uplinks = missing;
        self.state.send_if_modified(|state| {
            let changed = state.as_ref() != Some(&new);
            *state = Some(new);
            changed
        });
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn route_to(handle: &Handle, peer: Ipv4Addr, request: RouteMessage) -> Option<RouteMessage> {
    match first(handle.route().get(request).execute()).await {
        Ok(route) => route,
        Err(error) => {
            // "Network is unreachable" is an answer too: for now there is no route.
            debug!(%peer, %error, "no route to peer");
            None
        }
    }
}

fn path_of(peer: Ipv4Addr, route: &RouteMessage) -> Option<Path> {
    let mut interface = None;
    let mut next = Some(peer);
    let mut mtu = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => next = facts::ipv4(address),
            // A gateway of another address family is not in IPv4's neighbour table.
            RouteAttribute::Via(_) => next = None,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Path {
        interface: interface?,
        next,
        mtu,
    })
}

async fn each<T>(
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    mut take: impl FnMut(T),
) -> Result<(), NetworkError> {
    pin_mut!(answers);
    while let Some(answer) = answers
        .try_next()
        .await
        .map_err(|source| NetworkError::List { what, source })?
    {
        take(answer);
    }
    Ok(())
}

async fn first<T>(
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Option<T>, rtnetlink::Error> {
    pin_mut!(answers);
    answers.try_next().await
}
