//! The difference between two desired data paths, as the ordered list of changes that leads from
//! one to the other. Pure: no I/O, no clock, no choice left to whoever applies it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use crate::model::{
    Backend, BackendKey, Desired, Frontend, HostInterface, NextHop, ServiceEntry, ServiceKey,
    desired::Settings,
};

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatapathChange {
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
    /// Catch what a container sends at the host end of its veth: replies, and connections to the node.
    AttachContainer(u32),
    /// Balance what arrives on an interface.
    AttachUplink(String, HostInterface),
    /// An interface is no uplink any more.
    DetachUplink(String),
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
/// without its backends, or a backend whose replies nobody catches. What changes its identity under
/// the same name (an interface made anew, an address that Swarm has given to another task) is removed
/// first and made again, so that nothing of the old one is inherited.
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

/// Adds one change to the state it has made true.
pub fn fold(state: &mut Desired, change: DatapathChange) {
    match change {
        DatapathChange::Configure(settings) => state.settings = settings,
        DatapathChange::UpsertPeer(address, hop) => drop(state.peers.insert(address, hop)),
        DatapathChange::UpsertBackend(key, backend) => drop(state.backends.insert(key, backend)),
        DatapathChange::UpsertService(key, service) => drop(state.services.insert(key, service)),
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

/// Takes out what `new` has under the same name but is something else: backends whose task is another
/// (out of the rotation first), interfaces with another index.
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
    changes.extend(remade(&old.uplinks, &new.uplinks).map(|name| DatapathChange::DetachUplink(name.clone())));
    changes
}

fn remade<'a>(
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
    changes.extend(
        upserts(&old.peers, &new.peers).map(|(address, hop)| DatapathChange::UpsertPeer(*address, *hop)),
    );
    changes.extend(
        new.container_interfaces
            .difference(&old.container_interfaces)
            .map(|index| DatapathChange::AttachContainer(*index)),
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
    changes.extend(removals(&old.services, &new.services).map(|key| DatapathChange::RemoveService(*key)));
    changes.extend(removals(&old.backends, &new.backends).map(|key| DatapathChange::RemoveBackend(*key)));
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        datapath::{Datapath, memory::MemoryDatapath},
        model::{BackendState, Balance, Container, Location, MacAddress, Protocol, ReturnMode},
    };

    const INTERFACE: HostInterface = HostInterface {
        index: 2,
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
    }

    fn address() -> impl Strategy<Value = Ipv4Addr> {
        (1_u8..8).prop_map(|last| Ipv4Addr::new(10, 0, 0, last))
    }

    /// A handful of each thing, so that two arbitrary states overlap often.
    fn service_key() -> impl Strategy<Value = ServiceKey> {
        (protocol(), 9000_u16..9004).prop_map(|(protocol, port)| ServiceKey { protocol, port })
    }

    fn host_interface() -> impl Strategy<Value = HostInterface> {
        (2_u32..6, prop_oneof![Just(1500_u32), Just(9000)]).prop_map(|(index, mtu)| HostInterface {
            index,
            mtu,
            ..INTERFACE
        })
    }

    fn location() -> impl Strategy<Value = Location> {
        prop_oneof![
            address().prop_map(Location::Remote),
            (address(), 10_u32..14).prop_map(|(address, host_interface)| Location::Local(Container {
                ingress_address: address,
                address,
                mac: INTERFACE.mac,
                host_interface,
                gateway_mac: INTERFACE.mac,
            })),
        ]
    }

    /// Task ids come from a small pool, so that one address often changes hands.
    fn backend() -> impl Strategy<Value = (Ipv4Addr, Location, bool, u8)> {
        (address(), location(), any::<bool>(), 0_u8..3)
    }

    prop_compose! {
        /// Any state that `desired()` could compute: nothing refers to what is not there.
        fn state()(
            services in prop::collection::btree_map(
                service_key(),
                (0_u8..3, prop::collection::vec(backend(), 0..4)),
                0..4,
            ),
            addresses in prop::collection::btree_set(address(), 0..3),
            peers in prop::collection::btree_map(address(), any::<bool>(), 0..4),
            uplinks in prop::collection::btree_map("eth[0-2]", host_interface(), 0..3),
            dsr in any::<bool>(),
        ) -> Desired {
            let mut state = Desired { uplinks, ..Desired::default() };
            if dsr {
                state.settings.return_mode = ReturnMode::Dsr;
            }
            for (peer, resolved) in peers {
                let hop = NextHop {
                    interface: 2,
                    source_mac: INTERFACE.mac,
                    destination_mac: INTERFACE.mac,
                };
                state.peers.insert(peer, resolved.then_some(hop));
            }
            for (key, (id, backends)) in services {
                let mut entry = ServiceEntry { id: format!("service{id}"), name: "web".into(), balance: Balance::default(), active: vec![] };
                for (address, location, active, task) in backends {
                    let backend_key = BackendKey { service: key, address };
                    let state_of = if active { BackendState::Active } else { BackendState::Draining };
                    let backend = Backend {
                        task: format!("task{task}"),
                        task_name: format!("web.{task}"),
                        slot: None,
                        node: "node".into(),
                        node_name: "node".into(),
                        target_port: 80,
                        location,
                        state: state_of,
                        weight: u32::from(active),
                    };
                    if state.backends.contains_key(&backend_key) {
                        continue;
                    }
                    match location {
                        Location::Local(container) => {
                            state.container_interfaces.insert(container.host_interface);
                        }
                        Location::Remote(peer) => {
                            state.peers.entry(peer).or_insert(None);
                        }
                    }
                    if active {
                        entry.active.push(backend_key);
                    }
                    state.backends.insert(backend_key, backend);
                }
                for address in &addresses {
                    state.frontends.insert(Frontend { address: *address, service: key });
                }
                state.services.insert(key, entry);
            }
            state
        }
    }

    /// Every reference in the state leads somewhere.
    fn check_closed(state: &Desired) -> Result<(), TestCaseError> {
        for frontend in &state.frontends {
            prop_assert!(
                state.services.contains_key(&frontend.service),
                "{frontend:?} has no service"
            );
        }
        for (key, service) in &state.services {
            for backend in &service.active {
                prop_assert!(state.backends.contains_key(backend), "{key:?} lacks {backend:?}");
            }
        }
        for (key, backend) in &state.backends {
            match backend.location {
                Location::Local(container) => prop_assert!(
                    state.container_interfaces.contains(&container.host_interface),
                    "nobody catches the replies of {key:?}"
                ),
                Location::Remote(peer) => {
                    prop_assert!(state.peers.contains_key(&peer), "{key:?} has no peer");
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn applying_a_plan_leads_from_one_state_to_the_other(old in state(), new in state()) {
            let mut datapath = MemoryDatapath { state: old.clone() };
            prop_assert!(datapath.apply(&plan(&old, &new)).is_empty());
            prop_assert_eq!(datapath.state, new);
        }

        #[test]
        fn a_state_needs_no_change_to_stay(state in state()) {
            prop_assert_eq!(plan(&state, &state), vec![]);
        }

        #[test]
        fn every_intermediate_state_is_closed(old in state(), new in state()) {
            let mut state = old.clone();
            for change in plan(&old, &new) {
                fold(&mut state, change);
                check_closed(&state)?;
            }
        }

        #[test]
        fn applying_a_plan_twice_changes_nothing_more(old in state(), new in state()) {
            let changes = plan(&old, &new);
            let mut datapath = MemoryDatapath { state: old };
            datapath.apply(&changes);
            datapath.apply(&changes);
            prop_assert_eq!(datapath.state, new);
        }

        #[test]
        fn another_task_never_inherits_a_backend(old in state(), new in state()) {
            let mut state = old.clone();
            for change in plan(&old, &new) {
                if let DatapathChange::UpsertBackend(key, backend) = &change {
                    prop_assert!(state.backends.get(key).is_none_or(|before| before.task == backend.task));
                }
                fold(&mut state, change);
            }
        }
    }

    #[test]
    fn an_interface_made_anew_under_its_name_is_attached_anew() {
        let named = |index| BTreeMap::from([("eth0".to_owned(), HostInterface { index, ..INTERFACE })]);
        let old = Desired {
            uplinks: named(2),
            ..Desired::default()
        };
        let new = Desired {
            uplinks: named(3),
            ..Desired::default()
        };
        assert_eq!(
            plan(&old, &new),
            [
                DatapathChange::DetachUplink("eth0".into()),
                DatapathChange::AttachUplink(
                    "eth0".into(),
                    HostInterface {
                        index: 3,
                        ..INTERFACE
                    }
                ),
            ]
        );
    }

    #[test]
    fn an_uplink_with_another_mtu_is_not_taken_off() {
        let named = |mtu| BTreeMap::from([("eth0".to_owned(), HostInterface { mtu, ..INTERFACE })]);
        let old = Desired {
            uplinks: named(1500),
            ..Desired::default()
        };
        let new = Desired {
            uplinks: named(9000),
            ..Desired::default()
        };
        assert_eq!(
            plan(&old, &new),
            [DatapathChange::AttachUplink(
                "eth0".into(),
                HostInterface {
                    mtu: 9000,
                    ..INTERFACE
                }
            )]
        );
    }
}
