//! The tunnel between IPVS nodes: a VXLAN device that is a port of Docker's bridge, and what leads packets
//! into it. Imports the data path's netlink and addresses only.
//!
//! Nothing is learned or flooded: each peer's end has a MAC address that follows from the peer's address.
//! What the mesh has made carries its own protocol number ([`PROTOCOL`]), by which it is found again.

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

/// What the tunnel should be.
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

/// The tunnel could not be made what it should be.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No netlink socket.
    #[error("cannot reach rtnetlink to make {DEVICE}; the agent needs CAP_NET_ADMIN")]
    Open(#[source] NetlinkError),
    /// The bridge is not there.
    #[error("there is no bridge {0} to put {DEVICE} on; is this node in a Swarm, and its engine running?")]
    NoBridge(String),
    /// Something else has the name.
    #[error("an interface {DEVICE} that is no VXLAN device is in the way; rename or remove it")]
    NameTaken,
    /// The kernel made the device, but does not list it.
    #[error("the kernel does not list {DEVICE} that was just made; is something else removing interfaces?")]
    Vanished,
    /// Something could not be listed.
    #[error("cannot list {0}")]
    List(&'static str, #[source] NetlinkError),
    /// The kernel could not be asked, or refused an operation on the device.
    #[error("cannot {operation}; does the kernel have the modules vxlan and bridge?")]
    Device {
        /// What was tried, on what.
        operation: String,
        /// What the kernel said.
        source: NetlinkError,
    },
    /// The kernel refused an entry of one of its tables.
    #[error("cannot {operation}")]
    Entry {
        /// What was tried, on what.
        operation: String,
        /// What the kernel said.
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

    /// Makes the device and its entries what they should be, whatever is there; changes what differs only.
    ///
    /// # Errors
    /// When there is no bridge, the name is taken, or the kernel refuses a step; the other entries are made
    /// all the same, and calling it again mends the rest.
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
        // What is wanted replaces what has its place, and is there before what is stale goes.
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

    /// Removes the device and every entry, whatever bridge they were made for; nothing to do where there is
    /// nothing.
    ///
    /// # Errors
    /// When the kernel refuses, or the name belongs to somebody else; the rest is removed all the same.
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

    /// The mesh's entries. Those that belong to the device go with it, and are listed only if it is named.
    fn entries(&mut self, interfaces: Option<Interfaces>) -> Result<BTreeSet<Entry>, TunnelError> {
        let mut found = BTreeSet::new();
        for (what, request) in listing::lists(interfaces) {
            let list = self
                .connection
                .dump(&Message::encode(&request, 0))
                .map_err(|error| TunnelError::List(what, error))?;
            for message in list {
                // Messages that the crate cannot read are not ours: ours have nothing unusual.
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

/// What the kernel says of something that is not there any more.
const GONE: &[Errno] = &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV];
