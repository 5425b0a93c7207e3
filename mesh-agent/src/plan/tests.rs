//! Properties of every plan between two arbitrary states.

use proptest::prelude::*;

use super::*;
use crate::{
    datapath::{Datapath, memory::MemoryDatapath},
    model::{
        BackendState, Balance, Container, IdleLimits, Location, MacAddress, Protocol, ReturnMode, Subnet,
        mapped::is_own,
    },
};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const INTERFACE: HostInterface = HostInterface {
    index: 2,
    mac: Some(MAC),
    mtu: 1500,
    has_vlans: false,
};

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    (1_u8..8).prop_map(|last| Ipv4Addr::new(10, 0, 0, last))
}

/// A handful of each kind of object, so that two arbitrary states overlap often.
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
            mac: MAC,
            host_interface,
            gateway_mac: MAC,
        })),
    ]
}

/// Task ids come from a small pool, so that an address often goes to another task.
fn backend() -> impl Strategy<Value = (Ipv4Addr, Location, bool, u8)> {
    (address(), location(), any::<bool>(), 0_u8..3)
}

prop_compose! {
    /// Any state that `desired()` could compute: every reference can be resolved.
    fn state()(
        services in prop::collection::btree_map(
            service_key(),
            (0_u8..3, prop::collection::vec(backend(), 0..4)),
            0..4,
        ),
        addresses in prop::collection::btree_set(address(), 0..3),
        peers in prop::collection::btree_map(address(), any::<Option<Option<u32>>>(), 0..4),
        uplinks in prop::collection::btree_map("eth[0-2]", host_interface(), 0..3),
        own_ipv6 in prop::collection::btree_map(0_u16..4, 0_u8..5, 0..4),
        masquerades in prop::collection::btree_map((10_u32..14, 22_u8..26), address(), 0..4),
        dsr in any::<bool>(),
    ) -> Desired {
        let mut state = Desired { uplinks, ..Desired::default() };
        for (address, mapped) in own_ipv6 {
            let mapped = Ipv4Addr::new(252, 0, 0, mapped);
            // No two have the same.
            if state.own_ipv6.values().all(|other| *other != mapped) {
                state.own_ipv6.insert(Ipv6Addr::from_bits(address.into()), mapped);
            }
        }
        for ((interface, prefix), source) in masquerades {
            let clients = Subnet::of(Ipv4Addr::new(10, 0, 0, 0), prefix);
            state.masquerades.insert(Masquerade { interface, clients }, source);
        }
        if dsr {
            state.settings.return_mode = ReturnMode::Dsr;
        }
        for (peer, resolved) in peers {
            let hop = resolved.map(|mtu| NextHop {
                interface: 2,
                source_mac: MAC,
                destination_mac: MAC,
                mtu,
            });
            state.peers.insert(peer, hop);
        }
        for (key, (id, backends)) in services {
            let mut entry = ServiceEntry { id: format!("service{id}"), name: "web".into(), balance: Balance::default(), active: vec![], limits: Default::default(), policy: None, closed: [].into(), idle: IdleLimits::default() };
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
                    share: 10, weight: u32::from(active),
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
            for address in addresses.iter().chain(state.own_ipv6.values()) {
                state.frontends.insert(Frontend { address: *address, service: key });
            }
            state.services.insert(key, entry);
        }
        state
    }
}

/// Every reference in the state can be resolved.
fn check_closed(state: &Desired) -> Result<(), TestCaseError> {
    for frontend in &state.frontends {
        prop_assert!(
            state.services.contains_key(&frontend.service),
            "{frontend:?} has no service"
        );
        prop_assert!(
            !is_own(frontend.address) || state.own_ipv6.values().any(|mapped| *mapped == frontend.address),
            "{frontend:?} has no IPv6 address"
        );
    }
    let stand_ins: BTreeSet<_> = state.own_ipv6.values().collect();
    prop_assert_eq!(stand_ins.len(), state.own_ipv6.len());
    for (key, service) in &state.services {
        for backend in &service.active {
            prop_assert!(state.backends.contains_key(backend), "{key:?} lacks {backend:?}");
        }
    }
    for (key, backend) in &state.backends {
        match backend.location {
            Location::Local(container) => prop_assert!(
                state.container_interfaces.contains(&container.host_interface),
                "the replies of {key:?} are not caught"
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
fn an_interface_re_created_under_its_name_is_attached_again() {
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
fn an_uplink_with_another_mtu_is_not_detached() {
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

#[test]
fn an_ipv6_address_is_translated_before_it_answers_and_until_it_no_longer_does() {
    let key = ServiceKey {
        protocol: Protocol::Tcp,
        port: 9200,
    };
    let (address, mapped) = (Ipv6Addr::LOCALHOST, Ipv4Addr::new(252, 0, 0, 1));
    let frontend = Frontend {
        address: mapped,
        service: key,
    };
    let served = Desired {
        own_ipv6: [(address, mapped)].into(),
        frontends: [frontend].into(),
        ..Desired::default()
    };
    assert_eq!(
        plan(&Desired::default(), &served),
        [
            DatapathChange::AddOwnIpv6(address, mapped),
            DatapathChange::AddFrontend(frontend),
        ]
    );
    assert_eq!(
        plan(&served, &Desired::default()),
        [
            DatapathChange::RemoveFrontend(frontend),
            DatapathChange::RemoveOwnIpv6(address, mapped),
        ]
    );
}
