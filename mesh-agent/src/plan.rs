//! The difference between two desired data paths, as the ordered list of changes that leads from
//! one to the other. Pure: no I/O, no clock, no choice left to whoever applies it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::model::{
    Backend, BackendKey, Desired, Frontend, HostInterface, NextHop, ServiceEntry, ServiceKey,
    desired::Settings,
};

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Node-wide settings.
    Configure(Settings),
    /// A peer appears, or the way to it changes; `None` while its next hop is not resolved.
    UpsertPeer(Ipv4Addr, Option<NextHop>),
    /// A backend appears or changes (state, weight, place).
    UpsertBackend(BackendKey, Backend),
    /// A service appears or its rotation changes.
    UpsertService(ServiceKey, ServiceEntry),
    /// An address begins to answer.
    AddFrontend(Frontend),
    /// Catch replies at the host end of a container's veth.
    AttachContainer(u32),
    /// Catch what containers send to the node's published ports.
    AttachBridge(String, HostInterface),
    /// Balance what arrives on an interface.
    AttachUplink(String, HostInterface),
    /// An interface is no uplink any more.
    DetachUplink(String),
    /// A bridge is gone.
    DetachBridge(String),
    /// An address no longer answers.
    RemoveFrontend(Frontend),
    /// A service is gone.
    RemoveService(ServiceKey),
    /// A backend is gone: its flows must not be delivered any more.
    RemoveBackend(BackendKey),
    /// The container is gone.
    DetachContainer(u32),
    /// A node has left the cluster.
    RemovePeer(Ipv4Addr),
}

/// What must change to get from `old` to `new`.
///
/// The order keeps every intermediate state correct: what others refer to is made before them and
/// removed after them, so that a packet never finds a frontend without its service, a service
/// without its backends, or a backend whose replies nobody catches.
#[must_use]
pub fn plan(old: &Desired, new: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.settings != new.settings {
        changes.push(Change::Configure(new.settings));
    }
    changes.extend(upserts(&old.peers, &new.peers).map(|(address, hop)| Change::UpsertPeer(*address, *hop)));
    changes.extend(
        new.container_interfaces
            .difference(&old.container_interfaces)
            .map(|index| Change::AttachContainer(*index)),
    );
    changes.extend(
        upserts(&old.backends, &new.backends)
            .map(|(key, backend)| Change::UpsertBackend(*key, backend.clone())),
    );
    changes.extend(
        upserts(&old.services, &new.services)
            .map(|(key, service)| Change::UpsertService(*key, service.clone())),
    );
    changes.extend(
        new.frontends
            .difference(&old.frontends)
            .map(|frontend| Change::AddFrontend(*frontend)),
    );
    changes.extend(
        upserts(&old.bridges, &new.bridges).map(|(name, bridge)| Change::AttachBridge(name.clone(), *bridge)),
    );
    changes.extend(
        upserts(&old.uplinks, &new.uplinks).map(|(name, uplink)| Change::AttachUplink(name.clone(), *uplink)),
    );

    changes.extend(removals(&old.uplinks, &new.uplinks).map(|name| Change::DetachUplink(name.clone())));
    changes.extend(removals(&old.bridges, &new.bridges).map(|name| Change::DetachBridge(name.clone())));
    changes.extend(
        old.frontends
            .difference(&new.frontends)
            .map(|frontend| Change::RemoveFrontend(*frontend)),
    );
    changes.extend(removals(&old.services, &new.services).map(|key| Change::RemoveService(*key)));
    changes.extend(removals(&old.backends, &new.backends).map(|key| Change::RemoveBackend(*key)));
    changes.extend(
        old.container_interfaces
            .difference(&new.container_interfaces)
            .map(|index| Change::DetachContainer(*index)),
    );
    changes.extend(removals(&old.peers, &new.peers).map(|address| Change::RemovePeer(*address)));
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
