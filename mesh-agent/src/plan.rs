//! The difference between two desired data paths, as an ordered list of changes. Pure: no I/O, no clock, and
//! no choice left to the data path that applies it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::model::{
    Backend, BackendKey, Desired, Frontend, HostInterface, MacAddress, Masquerade, NextHop, ServiceEntry,
    ServiceKey, desired::Settings,
};

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatapathChange {
    /// Node-wide settings.
    Configure(Settings),
    /// The MAC addresses that the node's frames have.
    SetMacs(BTreeSet<MacAddress>),
    /// A peer appears, or its next hop changes; `None` while that is not resolved.
    UpsertPeer(Ipv4Addr, Option<NextHop>),
    /// A container sees a source instead of clients of one of its networks.
    UpsertMasquerade(Masquerade, Ipv4Addr),
    /// A backend appears or changes (state, weight, location).
    UpsertBackend(BackendKey, Backend),
    /// A service appears or its rotation changes.
    UpsertService(ServiceKey, ServiceEntry),
    /// An IPv6 address of the node is translated to an IPv4 one, at which it answers.
    AddOwnIpv6(Ipv6Addr, Ipv4Addr),
    /// An address starts to answer.
    AddFrontend(Frontend),
    /// Attach to the host end of a container's veth, which sees its replies and its connections to the node.
    AttachContainer(u32),
    /// Attach to an interface that traffic from outside arrives on.
    AttachUplink(String, HostInterface),
    /// An interface is no longer an uplink.
    DetachUplink(String),
    /// An address no longer answers.
    RemoveFrontend(Frontend),
    /// An IPv6 address is no longer translated.
    RemoveOwnIpv6(Ipv6Addr, Ipv4Addr),
    /// A service is gone.
    RemoveService(ServiceKey),
    /// A backend is gone: its flows must no longer be delivered.
    RemoveBackend(BackendKey),
    /// The container is gone, or no longer has the network.
    RemoveMasquerade(Masquerade),
    /// The container is gone.
    DetachContainer(u32),
    /// A node has left the cluster.
    RemovePeer(Ipv4Addr),
}

impl DatapathChange {
    /// The service that it is about, if it is about one.
    #[must_use]
    pub fn service(&self) -> Option<ServiceKey> {
        match self {
            Self::UpsertBackend(key, _) | Self::RemoveBackend(key) => Some(key.service),
            Self::UpsertService(key, _) | Self::RemoveService(key) => Some(*key),
            Self::AddFrontend(frontend) | Self::RemoveFrontend(frontend) => Some(frontend.service),
            Self::Configure(_)
            | Self::SetMacs(_)
            | Self::UpsertPeer(..)
            | Self::RemovePeer(_)
            | Self::UpsertMasquerade(..)
            | Self::RemoveMasquerade(_)
            | Self::AddOwnIpv6(..)
            | Self::RemoveOwnIpv6(..)
            | Self::AttachContainer(_)
            | Self::DetachContainer(_)
            | Self::AttachUplink(..)
            | Self::DetachUplink(_) => None,
        }
    }

    /// Whether it takes something away.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        match self {
            Self::RemoveFrontend(_)
            | Self::RemoveOwnIpv6(..)
            | Self::RemoveService(_)
            | Self::RemoveBackend(_)
            | Self::RemovePeer(_)
            | Self::RemoveMasquerade(_)
            | Self::DetachContainer(_)
            | Self::DetachUplink(_) => true,
            Self::Configure(_)
            | Self::SetMacs(_)
            | Self::UpsertPeer(..)
            | Self::UpsertMasquerade(..)
            | Self::UpsertBackend(..)
            | Self::UpsertService(..)
            | Self::AddOwnIpv6(..)
            | Self::AddFrontend(_)
            | Self::AttachContainer(_)
            | Self::AttachUplink(..) => false,
        }
    }

    /// Whether programs are attached by it.
    #[must_use]
    pub fn attaches(&self) -> bool {
        match self {
            Self::Configure(_) | Self::AttachContainer(_) | Self::AttachUplink(..) => true,
            Self::SetMacs(_)
            | Self::UpsertPeer(..)
            | Self::UpsertMasquerade(..)
            | Self::UpsertBackend(..)
            | Self::UpsertService(..)
            | Self::AddOwnIpv6(..)
            | Self::RemoveOwnIpv6(..)
            | Self::AddFrontend(_)
            | Self::RemoveFrontend(_)
            | Self::RemoveService(_)
            | Self::RemoveBackend(_)
            | Self::RemoveMasquerade(_)
            | Self::RemovePeer(_)
            | Self::DetachContainer(_)
            | Self::DetachUplink(_) => false,
        }
    }
}

/// One line, as plans are printed.
impl fmt::Display for DatapathChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configure(settings) => write!(formatter, "configure {settings}"),
            Self::SetMacs(macs) => {
                write!(formatter, "set MAC addresses")?;
                macs.iter().try_for_each(|mac| write!(formatter, " {mac}"))
            }
            Self::UpsertPeer(address, Some(hop)) => write!(formatter, "set peer {address} by {hop}"),
            Self::UpsertPeer(address, None) => write!(formatter, "set peer {address} unresolved"),
            Self::UpsertMasquerade(key, source) => write!(formatter, "set masquerade {key} as {source}"),
            Self::RemoveMasquerade(key) => write!(formatter, "remove masquerade {key}"),
            Self::UpsertBackend(key, backend) => write!(formatter, "set backend {key} {backend}"),
            Self::UpsertService(key, service) => write!(formatter, "set service {key} {service}"),
            Self::AddOwnIpv6(address, mapped) => write!(formatter, "translate {address} to {mapped}"),
            Self::AddFrontend(frontend) => write!(formatter, "add frontend {frontend}"),
            Self::AttachContainer(index) => write!(formatter, "attach to container interface {index}"),
            Self::AttachUplink(name, uplink) => {
                write!(
                    formatter,
                    "attach to uplink {name} interface {} mtu {}",
                    uplink.index, uplink.mtu
                )
            }
            Self::DetachUplink(name) => write!(formatter, "detach from uplink {name}"),
            Self::RemoveFrontend(frontend) => write!(formatter, "remove frontend {frontend}"),
            Self::RemoveOwnIpv6(address, mapped) => {
                write!(formatter, "stop to translate {address} to {mapped}")
            }
            Self::RemoveService(key) => write!(formatter, "remove service {key}"),
            Self::RemoveBackend(key) => write!(formatter, "remove backend {key}"),
            Self::DetachContainer(index) => write!(formatter, "detach from container interface {index}"),
            Self::RemovePeer(address) => write!(formatter, "remove peer {address}"),
        }
    }
}

/// The changes that lead from `old` to `new`.
///
/// The order keeps every intermediate state correct: an object is added before those that refer to it and
/// removed after them, so that a packet never finds a frontend without its service, a service without its
/// backends, or a backend whose replies are not caught. An object that changes its identity under the
/// same name (a re-created interface, an address that Swarm has given to another task) is removed first
/// and added again, so that it inherits nothing from the old one.
#[must_use]
pub fn plan(old: &Desired, new: &Desired) -> Vec<DatapathChange> {
    let mut changes = retire(old, new);
    if changes.is_empty() {
        return difference(old, new);
    }
    let mut base = old.clone();
    for change in changes.iter().cloned() {
        fold(&mut base, change);
    }
    changes.extend(difference(&base, new));
    changes
}

/// Applies one change to a state.
pub fn fold(state: &mut Desired, change: DatapathChange) {
    match change {
        DatapathChange::Configure(settings) => state.settings = settings,
        DatapathChange::SetMacs(macs) => state.macs = macs,
        DatapathChange::UpsertPeer(address, hop) => drop(state.peers.insert(address, hop)),
        DatapathChange::UpsertMasquerade(key, source) => drop(state.masquerades.insert(key, source)),
        DatapathChange::RemoveMasquerade(key) => drop(state.masquerades.remove(&key)),
        DatapathChange::UpsertBackend(key, backend) => drop(state.backends.insert(key, backend)),
        DatapathChange::UpsertService(key, service) => drop(state.services.insert(key, service)),
        DatapathChange::AddOwnIpv6(address, mapped) => drop(state.own_ipv6.insert(address, mapped)),
        DatapathChange::RemoveOwnIpv6(address, _) => drop(state.own_ipv6.remove(&address)),
        DatapathChange::AddFrontend(frontend) => drop(state.frontends.insert(frontend)),
        DatapathChange::AttachContainer(index) => drop(state.container_interfaces.insert(index)),
        DatapathChange::AttachUplink(name, uplink) => drop(state.uplinks.insert(name, uplink)),
        DatapathChange::DetachUplink(name) => drop(state.uplinks.remove(&name)),
        DatapathChange::RemoveFrontend(frontend) => drop(state.frontends.remove(&frontend)),
        DatapathChange::RemoveService(key) => drop(state.services.remove(&key)),
        DatapathChange::RemoveBackend(key) => drop(state.backends.remove(&key)),
        DatapathChange::DetachContainer(index) => drop(state.container_interfaces.remove(&index)),
        DatapathChange::RemovePeer(address) => drop(state.peers.remove(&address)),
    }
}

/// Removes objects whose name stays but whose identity changes: backends of another task (from the
/// rotation first), interfaces with another index.
fn retire(old: &Desired, new: &Desired) -> Vec<DatapathChange> {
    let replaced: BTreeSet<BackendKey> = old
        .backends
        .iter()
        .filter(|(key, backend)| {
            new.backends
                .get(key)
                .is_some_and(|successor| successor.task != backend.task)
        })
        .map(|(key, _)| *key)
        .collect();
    let services: BTreeSet<ServiceKey> = replaced.iter().map(|key| key.service).collect();
    let mut changes = Vec::new();
    for key in services {
        if let Some(service) = old.services.get(&key)
            && service.active.iter().any(|backend| replaced.contains(backend))
        {
            let mut service = service.clone();
            service.active.retain(|backend| !replaced.contains(backend));
            changes.push(DatapathChange::UpsertService(key, service));
        }
    }
    changes.extend(replaced.into_iter().map(DatapathChange::RemoveBackend));
    changes.extend(retire_ipv6(old, new));
    changes
        .extend(recreated(&old.uplinks, &new.uplinks).map(|name| DatapathChange::DetachUplink(name.clone())));
    changes
}

/// Removes the IPv6 addresses that are translated to another IPv4 one than before, with their frontends: the
/// old one may be another address's next.
fn retire_ipv6(old: &Desired, new: &Desired) -> Vec<DatapathChange> {
    let moved: BTreeMap<Ipv4Addr, Ipv6Addr> = old
        .own_ipv6
        .iter()
        .filter(|(address, mapped)| {
            let is_moved = new.own_ipv6.get(*address).is_some_and(|next| next != *mapped);
            let is_taken = |(other, next): (&Ipv6Addr, &Ipv4Addr)| other != *address && next == *mapped;
            is_moved || new.own_ipv6.iter().any(is_taken)
        })
        .map(|(address, mapped)| (*mapped, *address))
        .collect();
    let frontends = old.frontends.iter();
    let frontends = frontends.filter(|frontend| moved.contains_key(&frontend.address));
    frontends
        .map(|frontend| DatapathChange::RemoveFrontend(*frontend))
        .chain(
            moved
                .iter()
                .map(|(mapped, address)| DatapathChange::RemoveOwnIpv6(*address, *mapped)),
        )
        .collect()
}

fn recreated<'a>(
    old: &'a BTreeMap<String, HostInterface>,
    new: &'a BTreeMap<String, HostInterface>,
) -> impl Iterator<Item = &'a String> {
    old.iter()
        .filter(|(name, interface)| {
            new.get(*name)
                .is_some_and(|successor| successor.index != interface.index)
        })
        .map(|(name, _)| name)
}

fn difference(old: &Desired, new: &Desired) -> Vec<DatapathChange> {
    let mut changes = Vec::new();
    if old.settings != new.settings {
        changes.push(DatapathChange::Configure(new.settings));
    }
    if old.macs != new.macs {
        changes.push(DatapathChange::SetMacs(new.macs.clone()));
    }
    changes.extend(
        upserts(&old.peers, &new.peers).map(|(address, hop)| DatapathChange::UpsertPeer(*address, *hop)),
    );
    changes.extend(
        new.container_interfaces
            .difference(&old.container_interfaces)
            .map(|index| DatapathChange::AttachContainer(*index)),
    );
    changes.extend(
        upserts(&old.masquerades, &new.masquerades)
            .map(|(key, source)| DatapathChange::UpsertMasquerade(*key, *source)),
    );
    changes.extend(
        upserts(&old.backends, &new.backends)
            .map(|(key, backend)| DatapathChange::UpsertBackend(*key, backend.clone())),
    );
    changes.extend(
        upserts(&old.services, &new.services)
            .map(|(key, service)| DatapathChange::UpsertService(*key, service.clone())),
    );
    changes.extend(
        upserts(&old.own_ipv6, &new.own_ipv6)
            .map(|(address, mapped)| DatapathChange::AddOwnIpv6(*address, *mapped)),
    );
    changes.extend(
        new.frontends
            .difference(&old.frontends)
            .map(|frontend| DatapathChange::AddFrontend(*frontend)),
    );
    changes.extend(
        upserts(&old.uplinks, &new.uplinks)
            .map(|(name, uplink)| DatapathChange::AttachUplink(name.clone(), *uplink)),
    );

    changes
        .extend(removals(&old.uplinks, &new.uplinks).map(|name| DatapathChange::DetachUplink(name.clone())));
    changes.extend(
        old.frontends
            .difference(&new.frontends)
            .map(|frontend| DatapathChange::RemoveFrontend(*frontend)),
    );
    changes.extend(
        old.own_ipv6
            .iter()
            .filter(|(address, _)| !new.own_ipv6.contains_key(*address))
            .map(|(address, mapped)| DatapathChange::RemoveOwnIpv6(*address, *mapped)),
    );
    changes.extend(removals(&old.services, &new.services).map(|key| DatapathChange::RemoveService(*key)));
    changes.extend(removals(&old.backends, &new.backends).map(|key| DatapathChange::RemoveBackend(*key)));
    changes.extend(
        removals(&old.masquerades, &new.masquerades).map(|key| DatapathChange::RemoveMasquerade(*key)),
    );
    changes.extend(
        old.container_interfaces
            .difference(&new.container_interfaces)
            .map(|index| DatapathChange::DetachContainer(*index)),
    );
    changes.extend(removals(&old.peers, &new.peers).map(|address| DatapathChange::RemovePeer(*address)));
    changes
}

fn upserts<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value))
}

fn removals<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

#[cfg(test)]
mod tests;
