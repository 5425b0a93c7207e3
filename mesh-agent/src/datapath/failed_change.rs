//! Which change a failure belongs to, and taking that change back. Pure.

use crate::{
    model::{Desired, ServiceKey},
    plan::{DatapathChange, fold},
};

/// The change that a failure is reported for: the last one about that service, else the last of all.
pub(in crate::datapath) fn culprit(
    changes: &[DatapathChange],
    service: Option<ServiceKey>,
) -> Option<&DatapathChange> {
    let about = |change: &&DatapathChange| service.is_some() && change.service() == service;
    changes.iter().rev().find(about).or(changes.last())
}

/// Takes a change back: restores what it is about to what it was before, so that the state stays what the
/// caller believes it to be.
pub(in crate::datapath) fn restore(state: &mut Desired, before: &Desired, change: &DatapathChange) {
    let back = match change {
        DatapathChange::Configure(_) => DatapathChange::Configure(before.settings),
        DatapathChange::SetMacs(_) => DatapathChange::SetMacs(before.macs.clone()),
        DatapathChange::UpsertPeer(address, _) | DatapathChange::RemovePeer(address) => {
            match before.peers.get(address) {
                Some(hop) => DatapathChange::UpsertPeer(*address, *hop),
                None => DatapathChange::RemovePeer(*address),
            }
        }
        DatapathChange::UpsertMasquerade(key, _) | DatapathChange::RemoveMasquerade(key) => {
            match before.masquerades.get(key) {
                Some(source) => DatapathChange::UpsertMasquerade(*key, *source),
                None => DatapathChange::RemoveMasquerade(*key),
            }
        }
        DatapathChange::UpsertBackend(key, _) | DatapathChange::RemoveBackend(key) => {
            match before.backends.get(key) {
                Some(backend) => DatapathChange::UpsertBackend(*key, backend.clone()),
                None => DatapathChange::RemoveBackend(*key),
            }
        }
        DatapathChange::UpsertService(key, _) | DatapathChange::RemoveService(key) => {
            match before.services.get(key) {
                Some(service) => DatapathChange::UpsertService(*key, service.clone()),
                None => DatapathChange::RemoveService(*key),
            }
        }
        DatapathChange::AddFrontend(frontend) | DatapathChange::RemoveFrontend(frontend) => {
            match before.frontends.contains(frontend) {
                true => DatapathChange::AddFrontend(*frontend),
                false => DatapathChange::RemoveFrontend(*frontend),
            }
        }
        DatapathChange::AddOwnIpv6(address, mapped) | DatapathChange::RemoveOwnIpv6(address, mapped) => {
            match before.own_ipv6.get(address) {
                Some(before) => DatapathChange::AddOwnIpv6(*address, *before),
                None => DatapathChange::RemoveOwnIpv6(*address, *mapped),
            }
        }
        DatapathChange::AttachContainer(index) | DatapathChange::DetachContainer(index) => {
            match before.container_interfaces.contains(index) {
                true => DatapathChange::AttachContainer(*index),
                false => DatapathChange::DetachContainer(*index),
            }
        }
        DatapathChange::AttachUplink(name, _) | DatapathChange::DetachUplink(name) => {
            match before.uplinks.get(name) {
                Some(uplink) => DatapathChange::AttachUplink(name.clone(), *uplink),
                None => DatapathChange::DetachUplink(name.clone()),
            }
        }
    };
    fold(state, back);
}
