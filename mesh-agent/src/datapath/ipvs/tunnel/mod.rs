//! The tunnel between IPVS nodes: a VXLAN device that is a port of Docker's bridge, and the routes and
//! neighbours that send packets into it. Imports the data path's netlink and addresses only.
//!
//! Nothing is learned or flooded: the MAC address of each peer's end is derived from the peer's address. The
//! mesh's entries carry a protocol number of their own ([`PROTOCOL`]), by which they are recognised.

mod device;
mod entry;
mod listing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

pub use self::{
    device::DEVICE,
    entry::{PROTOCOL, RULE_PRIORITY, TABLE},
};
use self::{
    device::Device,
    entry::{Entry, Interfaces},
};
use crate::datapath::netlink::{Connection, KernelError, Message, NetlinkError};

/// The desired state of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPlan {
    /// The bridge that containers are on.
    pub bridge: String,
    /// Network identifier (24 bits), the same on every node of a cluster.
    pub vni: u32,
    /// UDP port, host byte order.
    pub port: u16,
    /// This node's address as its peers know it.
    pub node_address: Ipv4Addr,
    /// The other nodes' addresses.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The mesh addresses of other nodes' replicas, each with its node.
    pub remote: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The mesh addresses of this node's replicas.
    pub local: BTreeSet<Ipv4Addr>,
}

/// The tunnel could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No netlink socket.
    #[error("cannot open rtnetlink to create {DEVICE}; the agent needs CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    /// The bridge does not exist.
    #[error(
        "there is no bridge {0} to attach {DEVICE} to: is this node in a Swarm, and is its engine running?"
    )]
    NoBridge(String),
    /// Something else has the name.
    #[error("there is an interface {DEVICE} that is not a VXLAN device; rename or remove it")]
    NameTaken,
    /// The kernel does not list the device that it has just created.
    #[error("{DEVICE} is gone right after it was created: is something else removing interfaces?")]
    Vanished,
    /// The kernel refused to list something.
    #[error("cannot list {0}")]
    List(&'static str, #[source] NetlinkError),
    /// The exchange with the kernel failed, or the kernel refused an operation on the device.
    #[error("cannot {operation}; does the kernel have the modules vxlan and bridge?")]
    Device {
        /// What was tried, on what.
        operation: String,
        /// The kernel's error.
        source: NetlinkError,
    },
    /// The kernel refused an entry of one of its tables.
    #[error("cannot {operation}")]
    Entry {
        /// What was tried, on what.
        operation: String,
        /// The kernel's error.
        source: KernelError,
    },
}

/// The tunnel's device and entries in one network namespace.
pub struct Tunnel {
    connection: Connection,
}

impl Tunnel {
    /// Opens rtnetlink in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn new() -> Result<Self, TunnelError> {
        let connection = Connection::open(NETLINK_ROUTE).map_err(TunnelError::Open)?;
        Ok(Self { connection })
    }

    /// Brings the device and its entries to the plan; changes only what differs.
    ///
    /// # Errors
    /// When there is no bridge, the name is taken, or the kernel refuses a step; the other entries are made
    /// all the same. It may be called again.
    pub fn apply(&mut self, plan: &TunnelPlan) -> Result<(), TunnelError> {
        let Some(bridge) = device::find(&mut self.connection, &plan.bridge)? else {
            return Err(TunnelError::NoBridge(plan.bridge.clone()));
        };
        let device = Device::ensure(&mut self.connection, plan, &bridge)?;
        let interfaces = Interfaces {
            bridge: bridge.index,
            device: device.index,
        };
        let wanted = entry::wanted(plan, interfaces);
        let found = self.entries(Some(interfaces))?;
        // What is wanted replaces an entry of the same key, and is added before stale entries go.
        let add: Vec<&Entry> = wanted.difference(&found).collect();
        let replaced: BTreeSet<_> = add.iter().map(|entry| entry.key()).collect();
        let remove: Vec<&Entry> = found
            .difference(&wanted)
            .filter(|entry| !replaced.contains(&entry.key()))
            .collect();
        let added = self.write("add", &add, Entry::add, &[Errno::EEXIST]);
        let removed = self.write("remove", &remove, Entry::remove, GONE);
        added.and(removed)
    }

    /// Removes the device and every entry, whichever bridge they were made for, if there are any.
    ///
    /// # Errors
    /// When the kernel refuses, or another program's device has the name; the rest is removed all the same.
    pub fn remove(&mut self) -> Result<(), TunnelError> {
        let device = match device::find(&mut self.connection, DEVICE)? {
            None => Ok(()),
            Some(found) => found.delete(&mut self.connection),
        };
        let found = self.entries(None)?;
        let all: Vec<&Entry> = found.iter().collect();
        self.write("remove", &all, Entry::remove, GONE)?;
        device
    }

    /// The mesh's entries. Those that go with the device are listed only if it is given.
    fn entries(&mut self, interfaces: Option<Interfaces>) -> Result<BTreeSet<Entry>, TunnelError> {
        let mut found = BTreeSet::new();
        for (what, request) in listing::lists(interfaces) {
            let list = self
                .connection
                .dump(&Message::encode(&request, 0))
                .map_err(|error| TunnelError::List(what, error))?;
            for message in list {
                // Messages that the crate cannot decode are not ours: ours contain nothing unusual.
                if let Ok(message) = message.decode::<RouteNetlinkMessage>() {
                    found.extend(listing::ours(&message, interfaces));
                }
            }
        }
        Ok(found)
    }

    fn write(
        &mut self,
        verb: &str,
        entries: &[&Entry],
        encode: impl Fn(&Entry) -> Message,
        harmless: &[Errno],
    ) -> Result<(), TunnelError> {
        if entries.is_empty() {
            return Ok(());
        }
        let messages: Vec<Message> = entries.iter().map(|entry| encode(entry)).collect();
        let results = self
            .connection
            .requests(&messages)
            .map_err(|source| TunnelError::Device {
                operation: format!("{verb} {} entries of {DEVICE}", messages.len()),
                source,
            })?;
        let refused = std::iter::zip(entries, results)
            .filter_map(|(entry, result)| Some((entry, result.err()?)))
            .find(|(_, error)| !harmless.contains(&error.errno));
        match refused {
            None => Ok(()),
            Some((entry, source)) => Err(TunnelError::Entry {
                operation: format!("{verb} {entry}"),
                source,
            }),
        }
    }
}

/// The kernel's errors for something that no longer exists.
const GONE: &[Errno] = &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV];
