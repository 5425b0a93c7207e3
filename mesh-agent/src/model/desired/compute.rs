//! Computes the desired data path.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use super::{
    access::{Access, Combined, access},
    fingerprint::vni,
    node_condition::weight,
    reachability::{Reachability, reachable, unreached},
    types::{
        Backend, BackendKey, BackendState, Desired, Frontend, Location, Masquerade, ServiceEntry, ServiceKey,
        Settings,
    },
};
use crate::model::{
    Attached, Cluster, Compiled, FULL_SHARE, Local, NextHop, NodeDatapath, Prefix, TaskId, mapped,
};

/// Computes what this node's data path must look like.
///
/// `service_address` is the address that connections of local processes are redirected to (see
/// ARCHITECTURE.md, "Local processes"); it is answered like an address of the node.
///
/// A service is not answered at IPv6 addresses if a rule is about IPv6 clients, which the data path cannot
/// tell apart.
///
/// A service is also yielded if a rule of the host's firewall about its port cannot be expressed.
///
/// A service is yielded if it has active tasks but this node can reach none of them (their nodes have no
/// data path, or one of the other kind, or there is no hook on the way to them): it gets no frontends, so
/// that whatever else answers its ports does, while the flows that the mesh already has go on. A service
/// without any active task, or whose tasks are all drained, is not yielded; the mesh refuses its
/// connections. A node that is leaving yields
/// every service, and a service that publishes a port which the cluster itself needs is yielded always.
#[must_use]
pub fn desired(cluster: &Cluster, local: &Local, service_address: Ipv4Addr) -> Desired {
    let mut desired = Desired {
        macs: local.macs.clone(),
        uplinks: local.uplinks.clone(),
        container_interfaces: local.container_interfaces.clone(),
        settings: Settings {
            node_address: cluster.nodes.get(&local.node).map(|node| node.address),
            vni: vni(&cluster.cluster_id),
            return_mode: local.return_mode,
            mesh0: local.mesh0,
        },
        ..Desired::default()
    };
    // No other data path translates.
    if local.datapath == NodeDatapath::Ebpf {
        desired.own_ipv6 = mapped::own(&local.ipv6_addresses);
    }
    for (id, node) in &cluster.nodes {
        if *id != local.node && !node.address.is_unspecified() {
            let next_hop = local.next_hops.get(&node.address).map(|hop| NextHop {
                mtu: smaller(hop.mtu, local.path_mtus.get(&node.address).copied()),
                ..*hop
            });
            desired.peers.insert(node.address, next_hop);
        }
    }
    let addresses = node_addresses(local, &desired);
    let own = cluster.nodes.get(&local.node);
    let uplinks = local.uplinks.iter();
    let uplinks = uplinks.map(|(name, uplink)| (name.as_str(), uplink.index));
    let mut combined = Combined::default();
    let mut of_node = Compiled::new(&local.policy, uplinks.collect());
    let reachable = reachable(cluster, local);
    let unreached = unreached(cluster, local, &reachable);
    for (id, service) in &cluster.services {
        for port in &service.ports {
            let key = ServiceKey {
                protocol: port.protocol,
                port: port.published,
            };
            if let Some(reserved) = local
                .reserved
                .iter()
                .find(|reserved| (reserved.protocol, reserved.port) == (key.protocol, key.port))
            {
                desired.left.insert(key, reserved.purpose.clone());
            }
            let is_left = desired.left.contains_key(&key);
            // Swarm refuses a second service on a published port. If a source lists one all the same,
            // the port stays with the first by id, whatever their order.
            desired.services.entry(key).or_insert_with(|| {
                let of_node = of_node.of(key.protocol, key.port);
                let access = access(local, own, key, service, of_node, &addresses, &mut combined);
                if let Err(rule) = &access {
                    desired.inexpressible.insert(key, Arc::clone(rule));
                }
                if !local.leaving && !is_left && !unreached.contains(id) && access.is_ok() {
                    for address in addresses.keys().copied().chain([service_address]) {
                        desired.frontends.insert(Frontend {
                            address,
                            service: key,
                        });
                    }
                }
                let Access { policy, closed } = access.unwrap_or_default();
                ServiceEntry {
                    id: id.clone(),
                    name: service.name.clone(),
                    balance: service.balance,
                    limits: service.limits,
                    active: Vec::new(),
                    policy,
                    closed,
                    idle: service.idle,
                }
            });
        }
    }
    for (id, reachability) in reachable {
        let share = local.starting.get(id).copied().unwrap_or(FULL_SHARE);
        add_backends(&mut desired, cluster, id, reachability, share);
    }
    for (interface, attached) in &local.attached {
        if desired.container_interfaces.contains(interface) {
            add_masquerades(&mut desired, *interface, attached);
        }
    }
    desired
}

/// The addresses of frontends on this node, and what they are outside of the data path.
fn node_addresses(local: &Local, desired: &Desired) -> BTreeMap<Ipv4Addr, Prefix> {
    let ipv4 = local.addresses.iter();
    let ipv6 = desired.own_ipv6.iter();
    ipv4.map(|address| (*address, Prefix::from(*address)))
        .chain(ipv6.map(|(address, mapped)| (*mapped, Prefix::from(*address))))
        .collect()
}

/// As for what containers send out of the node, the source becomes the node's address; but if the container
/// would answer that by one of its networks as well, its gateway's.
fn add_masquerades(desired: &mut Desired, interface: u32, attached: &Attached) {
    let hides = |address| attached.subnets.iter().any(|subnet| subnet.contains(address));
    let node = desired.settings.node_address.filter(|address| !hides(*address));
    let source = node.unwrap_or(attached.gateway);
    for clients in attached.subnets.iter().copied() {
        desired
            .masquerades
            .insert(Masquerade { interface, clients }, source);
    }
}

/// The smaller of what a route carries and what was found to arrive.
fn smaller(route: Option<u32>, found: Option<u16>) -> Option<u32> {
    match (route, found.map(u32::from)) {
        (Some(route), Some(found)) => Some(route.min(found)),
        (route, found) => route.or(found),
    }
}

fn add_backends(
    desired: &mut Desired,
    cluster: &Cluster,
    id: &TaskId,
    reachability: Reachability,
    share: u8,
) {
    let Some(task) = cluster.tasks.get(id) else {
        return;
    };
    let (Some(service), Some(node)) = (cluster.services.get(&task.service), cluster.nodes.get(&task.node))
    else {
        return;
    };
    let Reachability { location, state } = reachability;
    let weight = match state {
        BackendState::Active => weight(&service.weights, &task.node, node),
        BackendState::Draining => 0,
    };
    for port in &service.ports {
        let key = ServiceKey {
            protocol: port.protocol,
            port: port.published,
        };
        let Some(entry) = desired
            .services
            .get_mut(&key)
            .filter(|entry| entry.id == task.service)
        else {
            continue;
        };
        let backend_key = BackendKey {
            service: key,
            address: task.address,
        };
        // If a draining task still has the address of a running one, the running one gets it; between
        // equals, the first by id.
        if let Some(holder) = desired.backends.get(&backend_key)
            && (holder.state == BackendState::Active || state == BackendState::Draining)
        {
            continue;
        }
        if state == BackendState::Active {
            entry.active.push(backend_key);
        }
        if let Location::Local(container) = location {
            desired.container_interfaces.insert(container.host_interface);
        }
        desired.backends.insert(
            backend_key,
            Backend {
                task: id.clone(),
                task_name: task.name.clone(),
                slot: task.slot,
                node: task.node.clone(),
                node_name: node.hostname.clone(),
                target_port: port.target,
                location,
                state,
                weight,
                share,
            },
        );
    }
}
