//! What IPVS needs besides its own table: the nftables rules, bridge ports and tunnel for a desired state.
//! Pure.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    IpvsOptions,
    address::{mesh_address, node_mesh_address, peers_mesh_addresses},
    kernel::VirtualService,
    rules::{Rules, Target},
    tunnel::TunnelPlan,
    wanted::{Role, Table, WantedService},
};
use crate::model::{Desired, Location};

/// MTU assumed until an uplink is known: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// The rules for a state. Their frontends are the wanted virtual services that `answer`: those that IPVS has,
/// and those without a destination, which are refused. A port that IPVS could not take is left to Docker's
/// rules.
pub(super) fn rules(
    state: &Desired,
    options: &IpvsOptions,
    wanted: &Table,
    answer: impl Fn(&VirtualService) -> bool,
) -> Rules {
    let mut rules = Rules {
        node_address: state.settings.node_address,
        bridge: options.bridge.clone(),
        tunnel_port: options.tunnel_port,
        uplink_mtu: state
            .uplinks
            .values()
            .map(|uplink| uplink.mtu)
            .min()
            .unwrap_or(DEFAULT_MTU),
        uplinks: state.uplinks.keys().cloned().collect(),
        peers: state.peers.keys().copied().collect(),
        ..Rules::default()
    };
    for (name, service) in wanted.iter().filter(|(name, _)| answer(name)) {
        let Role::Frontend(key) = service.role else {
            continue;
        };
        if let IpAddr::V4(address) = name.address {
            rules.frontends.insert((address, name.protocol, name.port));
        }
        rules.localhost.entry(key).or_insert_with(|| targets(service));
    }
    for backend in state.backends.values() {
        if let Location::Local(container) = backend.location {
            rules.local_replicas.insert(container.address);
        }
    }
    // By network alone: rules by replica as well would be many, and this rung hides most clients anyway.
    for (key, source) in &state.masquerades {
        rules.masquerades.entry(key.clients).or_insert(*source);
    }
    rules
}

/// Where local processes' connections to 127.0.0.0/8 go: the destinations of the service's frontends.
fn targets(service: &WantedService) -> Vec<Target> {
    service
        .destinations
        .iter()
        .filter_map(|(destination, wanted)| match destination.address {
            IpAddr::V4(address) => Some(Target {
                backend: wanted.backend,
                address,
                port: destination.port,
                weight: wanted.weight,
            }),
            IpAddr::V6(_) => None,
        })
        .collect()
}

/// The interfaces that lead to this node's replicas, by index.
pub(super) fn replica_interfaces(state: &Desired) -> BTreeSet<u32> {
    let interfaces = state.backends.values().map(|backend| match backend.location {
        Location::Local(container) => Some(container.host_interface),
        Location::Remote(_) => None,
    });
    interfaces.flatten().collect()
}

/// The tunnel for a state; `None` while this node does not know which address its peers use for it.
pub(super) fn tunnel(state: &Desired, options: &IpvsOptions) -> Option<TunnelPlan> {
    let node_address = state.settings.node_address?;
    let peers: BTreeSet<_> = state.peers.keys().copied().collect();
    // The nodes themselves answer probes.
    let nodes = peers_mesh_addresses(node_address, peers.iter().copied());
    let mut plan = TunnelPlan {
        bridge: options.bridge.clone(),
        vni: state.settings.vni,
        port: options.tunnel_port,
        node_address,
        peers,
        remote: nodes.into_iter().map(|(peer, address)| (address, peer)).collect(),
        local: BTreeSet::from([node_mesh_address(node_address)]),
    };
    for (key, backend) in &state.backends {
        let address = mesh_address(key.address);
        match backend.location {
            Location::Local(_) => drop(plan.local.insert(address)),
            Location::Remote(peer) => drop(plan.remote.insert(address, peer)),
        }
    }
    Some(plan)
}

/// The new plan and what only the old one has, for as long as something may refer to that.
pub(super) fn widened(old: &TunnelPlan, new: &TunnelPlan) -> TunnelPlan {
    let mut plan = new.clone();
    plan.peers.extend(&old.peers);
    for (address, peer) in &old.remote {
        if !plan.local.contains(address) {
            plan.remote.entry(*address).or_insert(*peer);
        }
    }
    plan.local.extend(
        old.local
            .iter()
            .filter(|address| !new.remote.contains_key(address)),
    );
    plan
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        datapath::ipvs::{
            detour,
            wanted::{
                self,
                tests::{container, state},
            },
        },
        model::{Balance, HostInterface, MacAddress, ServiceKey},
    };

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn node() -> Desired {
        let backends = [(7, container(7), 2), (8, Location::Remote(PEER), 0)];
        let mut state = state(Balance::default(), &backends);
        state.settings.node_address = Some(NODE);
        state.settings.vni = 77;
        state.peers.insert(PEER, None);
        for (name, mtu) in [("eth0", 1500), ("eth1", 1400)] {
            let uplink = HostInterface {
                index: 2,
                mac: Some(MacAddress::default()),
                mtu,
                has_vlans: false,
            };
            state.uplinks.insert(name.to_owned(), uplink);
        }
        state
    }

    fn rules_of(state: &Desired, answer: bool) -> Rules {
        let options = IpvsOptions::default();
        let wanted = wanted::table(state, options.service_address);
        rules(state, &options, &wanted, |_| answer)
    }

    #[test]
    fn the_rules_name_what_ipvs_answers_and_where_local_processes_go() {
        let rules = rules_of(&node(), true);
        let [(address, protocol, port), (detour, ..)] =
            rules.frontends.iter().copied().collect::<Vec<_>>()[..]
        else {
            panic!("mesh addresses are no frontends: {:?}", rules.frontends);
        };
        assert_eq!((address, port, detour), (NODE, 9200, detour::FRONTEND));
        let key = ServiceKey { protocol, port };
        let targets: Vec<_> = rules.localhost[&key]
            .iter()
            .map(|target| (target.address.to_string(), target.port, target.weight))
            .collect();
        assert_eq!(
            targets,
            [
                ("172.18.0.7".to_owned(), 80, 2),
                ("250.0.0.8".to_owned(), 9200, 0)
            ]
        );
        assert_eq!(rules.uplink_mtu, 1400, "the smallest");
        assert_eq!(rules.local_replicas, [Ipv4Addr::new(172, 18, 0, 7)].into());
    }

    #[test]
    fn a_port_that_ipvs_could_not_take_is_left_to_docker() {
        let rules = rules_of(&node(), false);
        assert!(rules.frontends.is_empty() && rules.localhost.is_empty());
    }

    #[test]
    fn only_local_replicas_have_interfaces() {
        assert_eq!(replica_interfaces(&node()), [7].into());
    }

    #[test]
    fn the_tunnel_leads_each_mesh_address_to_its_node() {
        let plan = tunnel(&node(), &IpvsOptions::default()).unwrap();
        let [replica, own] = [[250, 0, 0, 7], [251, 0, 2, 1]].map(Ipv4Addr::from);
        assert_eq!(plan.local, [replica, own].into());
        let [replica, node] = [[250, 0, 0, 8], [251, 0, 2, 2]].map(Ipv4Addr::from);
        assert_eq!(plan.remote, [(replica, PEER), (node, PEER)].into());
        assert_eq!(plan.vni, 77);
        assert_eq!(tunnel(&Desired::default(), &IpvsOptions::default()), None);
    }

    #[test]
    fn during_a_change_the_tunnel_serves_both_states() {
        let old = tunnel(&node(), &IpvsOptions::default()).unwrap();
        let mut new = old.clone();
        new.peers.clear();
        new.remote.clear();
        // The address 250.0.0.7 has moved to the peer.
        new.local.remove(&Ipv4Addr::new(250, 0, 0, 7));
        new.remote.insert(Ipv4Addr::new(250, 0, 0, 7), PEER);
        let both = widened(&old, &new);
        assert_eq!(both.peers, old.peers);
        assert_eq!(both.remote.len(), 3);
        let own = Ipv4Addr::new(251, 0, 2, 1);
        assert_eq!(both.local, [own].into(), "no address is both local and remote");
        assert_eq!(widened(&old, &old), old);
    }
}
