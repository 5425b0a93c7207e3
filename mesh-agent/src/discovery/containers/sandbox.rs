//! How to reach a container without the overlay network: reads the interface of the default route inside the
//! container's network namespace, and that veth's host end outside.
//!
//! Invariant: only a thread that ends right afterwards enters a container's namespace, never a thread of the
//! agent's runtimes.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};
use tokio::sync::oneshot;

use crate::{
    discovery::default_route::DefaultRoute,
    model::{Attached, MacAddress, Subnet},
};

/// The kernel answers at once. If it does not, the container is inspected again later.
const LIMIT: Duration = Duration::from_secs(3);

/// Both ends of the veth between a container and the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sandbox {
    /// The container's address on the interface that leads to the host.
    pub(super) address: Ipv4Addr,
    /// That interface's MAC address.
    pub(super) mac: MacAddress,
    /// Interface index of the host's end.
    pub(super) host_interface: u32,
    /// MAC address of the bridge that the host's end is in.
    pub(super) gateway_mac: MacAddress,
    /// The networks that the container answers by itself; `None` if its default route names no router.
    pub(super) attached: Option<Attached>,
}

/// A container's network could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("cannot start a thread to inspect a container's network")]
    Thread(#[source] io::Error),
    #[error(
        "cannot open the network namespace {}; is Docker's netns directory mounted here (bind mount, with \
         propagation)?", path.display()
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot enter the network namespace {}; the agent needs CAP_SYS_ADMIN", path.display())]
    Enter { path: PathBuf, source: nix::Error },
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("the kernel refused to list the {0} of a container's network")]
    Netlink(&'static str, #[source] rtnetlink::Error),
    #[error("the kernel did not answer within {LIMIT:?}")]
    Timeout,
}

/// Where a container's default route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To a bridge of this host.
    ByBridge(Sandbox),
    /// Past the host's bridges, as by a macvlan.
    Elsewhere,
    /// It has none: its network is being set up or taken down.
    Nowhere,
}

/// Reads the network namespace at `path` (Docker's `SandboxKey`).
pub(super) async fn look_up(path: PathBuf) -> Result<Way, SandboxError> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("mesh-sandbox".to_owned())
        // The receiver is gone if the agent is being stopped.
        .spawn(move || drop(sender.send(look_up_here(&path))))
        .map_err(SandboxError::Thread)?;
    receiver.await.unwrap_or(Err(SandboxError::Timeout))
}

/// Opens a path that the engine gives below `/run` or `/var/run`. On a host these are the same directory; in
/// the agent's own container only the one that was mounted exists.
fn open(path: &Path) -> io::Result<File> {
    let other = match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => match path.strip_prefix("/run") {
            Ok(rest) => Path::new("/var/run").join(rest),
            Err(_) => return File::open(path),
        },
    };
    File::open(path).or_else(|error| File::open(other).map_err(|_| error))
}

fn look_up_here(path: &Path) -> Result<Way, SandboxError> {
    let namespace = open(path).map_err(|source| SandboxError::Open {
        path: path.to_owned(),
        source,
    })?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SandboxError::Thread)?
        .block_on(async {
            // A socket stays in the namespace in which it was opened: this one is the host's, the next the
            // container's.
            let host = connection()?;
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|source| SandboxError::Enter {
                path: path.to_owned(),
                source,
            })?;
            let inside = connection()?;
            tokio::time::timeout(LIMIT, read(&host, &inside))
                .await
                .unwrap_or(Err(SandboxError::Timeout))
        })
}

fn connection() -> Result<Handle, SandboxError> {
    let (connection, handle, _) = new_connection().map_err(SandboxError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn read(host: &Handle, inside: &Handle) -> Result<Way, SandboxError> {
    let routes = routes(inside).await?;
    let Some((default, index)) = best_default(&routes) else {
        return Ok(Way::Nowhere);
    };
    let Some(address) = address(inside, index).await? else {
        return Ok(Way::Nowhere);
    };
    let Some(link) = link(inside, index).await? else {
        return Ok(Way::Nowhere);
    };
    let (Some(mac), Some(peer)) = (mac(&link), peer(&link)) else {
        return Ok(Way::Elsewhere);
    };
    // The index is one of the host's only if the interface there names ours as its peer.
    let Some(host_end) = self::link(host, peer)
        .await?
        .filter(|end| self::peer(end) == Some(index))
    else {
        return Ok(Way::Elsewhere);
    };
    let master = host_end.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(master) => Some(*master),
        _ => None,
    });
    let Some(master) = master else {
        return Ok(Way::Elsewhere);
    };
    let bridge = self::link(host, master).await?;
    let Some(gateway_mac) = bridge.as_ref().and_then(self::mac) else {
        return Ok(Way::Elsewhere);
    };
    Ok(Way::ByBridge(Sandbox {
        address,
        mac,
        host_interface: peer,
        gateway_mac,
        attached: default.gateway.map(|gateway| Attached {
            gateway,
            subnets: subnets(&routes, gateway, index),
        }),
    }))
}

async fn routes(handle: &Handle) -> Result<Vec<RouteMessage>, SandboxError> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = handle.route().get(request).execute().try_collect().await;
    routes.map_err(|source| SandboxError::Netlink("routes", source))
}

/// The IPv4 default route with the lowest metric, and its interface.
fn best_default(routes: &[RouteMessage]) -> Option<(DefaultRoute, u32)> {
    let defaults = routes.iter().filter_map(DefaultRoute::of).filter_map(|route| {
        let [interface] = route.interfaces[..] else {
            return None;
        };
        Some((route, interface))
    });
    defaults.min_by_key(|(route, interface)| (route.metric, *interface))
}

/// What the routes lead to elsewhere than to the gateway.
fn subnets(routes: &[RouteMessage], gateway: Ipv4Addr, interface: u32) -> BTreeSet<Subnet> {
    let elsewhere = routes.iter().filter_map(|route| {
        let RouteHeader {
            address_family,
            destination_prefix_length,
            table,
            kind,
            ..
        } = route.header;
        let of_main_table = address_family == AddressFamily::Inet
            && table == RouteHeader::RT_TABLE_MAIN
            && kind == RouteType::Unicast;
        let (mut destination, mut by_gateway, mut by_interface) = (None, false, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
                RouteAttribute::Gateway(address) => by_gateway = *address == RouteAddress::Inet(gateway),
                RouteAttribute::Oif(index) => by_interface = *index == interface,
                _ => {}
            }
        }
        // The default route itself has no destination.
        (of_main_table && !(by_gateway && by_interface))
            .then(|| destination.map(|address| Subnet::of(address, destination_prefix_length)))
            .flatten()
    });
    elsewhere.collect()
}

async fn address(handle: &Handle, index: u32) -> Result<Option<Ipv4Addr>, SandboxError> {
    let addresses: Vec<_> = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .map_err(|source| SandboxError::Netlink("addresses", source))?;
    let mut attributes = addresses.iter().flat_map(|address| &address.attributes);
    Ok(attributes.find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }))
}

async fn link(handle: &Handle, index: u32) -> Result<Option<LinkMessage>, SandboxError> {
    let mut links = std::pin::pin!(handle.link().get().match_index(index).execute());
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(source) => Err(SandboxError::Netlink("interfaces", source)),
    }
}

fn mac(link: &LinkMessage) -> Option<MacAddress> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Some(MacAddress(bytes.as_slice().try_into().ok()?)),
        _ => None,
    })
}

/// The index of a veth's other end, in that end's namespace.
fn peer(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}
