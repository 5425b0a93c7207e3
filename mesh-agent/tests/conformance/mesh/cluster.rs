//! The cluster that a story makes up, and each node's desired data path from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use mesh_agent::{
    model::{
        Balance, Container as LocalContainer, Desired, HostInterface, Local, NextHop, Protocol,
        PublishedPort, Service, ServiceKey, Task, TaskState, desired::desired,
    },
    probes::ProbeReport,
};

use super::{ECHO, Mesh, WEB};
use crate::{
    rungs::SERVICE_ADDRESS,
    talk::{TCP_PORT, UDP_PORT},
    world::{GATEWAY, Node},
};

impl Mesh<'_> {
    /// Publishes a service.
    pub(crate) fn publish(&mut self, name: &str, ports: &[ServiceKey], balance: Balance) {
        let ports = ports
            .iter()
            .map(|key| PublishedPort {
                protocol: key.protocol,
                published: key.port,
                target: match key.protocol {
                    Protocol::Tcp => TCP_PORT,
                    Protocol::Udp => UDP_PORT,
                },
            })
            .collect();
        let service = Service {
            name: name.to_owned(),
            ports,
            balance,
            health: None,
            clients: mesh_agent::model::Clients::default(),
            idle: mesh_agent::model::IdleLimits::default(),
            publish_on: mesh_agent::model::PublishOn::default(),
            weights: mesh_agent::model::Weights::default(),
            drain_timeout: None,
            limits: mesh_agent::model::Limits::default(),
            invalid_labels: Vec::new(),
        };
        self.cluster.services.insert(name.to_owned(), service);
    }

    /// Publishes the service of most stories: `web` on both its ports, with replicas in containers.
    pub(crate) fn publish_web(&mut self, balance: Balance, containers: &[&str]) {
        self.publish("web", &[WEB, ECHO], balance);
        for container in containers {
            self.add_task("web", container);
        }
    }

    /// Adds a replica of a service in a container.
    pub(crate) fn add_task(&mut self, service: &str, container: &str) {
        let node = format!("node{}", &container[1..]);
        let task = Task {
            service: service.to_owned(),
            name: format!("{service}.{container}"),
            slot: None,
            node,
            address: ingress_address(container),
            state: TaskState::Active,
        };
        self.cluster.tasks.insert(task_id(service, container), task);
    }

    /// Adds a replica of a service on node 2 that gets no requests.
    pub(crate) fn add_unused_task(&mut self, service: &str, number: usize) {
        let container = format!("{number}");
        let task = Task {
            service: service.to_owned(),
            name: format!("{service}.{container}"),
            slot: None,
            node: "node2".to_owned(),
            address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number as u32),
            state: TaskState::Active,
        };
        self.cluster.tasks.insert(task_id(service, &container), task);
    }

    /// Starts draining a replica.
    pub(crate) fn drain(&mut self, service: &str, container: &str) {
        if let Some(task) = self.cluster.tasks.get_mut(&task_id(service, container)) {
            task.state = TaskState::Draining;
        }
    }

    /// Removes a replica.
    pub(crate) fn remove(&mut self, service: &str, container: &str) {
        self.cluster.tasks.remove(&task_id(service, container));
    }

    /// A node's desired data path.
    pub(crate) fn desired(&self, number: usize) -> Desired {
        desired(&self.cluster, &self.local(number), SERVICE_ADDRESS)
    }

    fn local(&self, number: usize) -> Local {
        let probed = if number == 1 {
            self.probed.clone()
        } else {
            ProbeReport::default()
        };
        let node = self.world.node(number);
        let containers = self
            .cluster
            .tasks
            .iter()
            .filter(|(_, task)| task.node == node.netns.name)
            .filter_map(|(id, task)| {
                let found = node
                    .containers
                    .iter()
                    .find(|container| ingress_address(container.name) == task.address)?;
                let container = LocalContainer {
                    ingress_address: task.address,
                    address: found.address,
                    mac: found.mac,
                    host_interface: found.host_interface,
                    gateway_mac: node.gateway_mac,
                };
                Some((id.clone(), container))
            })
            .collect();
        Local {
            node: node.netns.name.clone(),
            datapath: self.rung.node_datapath(),
            addresses: BTreeSet::from([node.address, GATEWAY]),
            ipv6_addresses: match node.frontend {
                IpAddr::V4(_) => BTreeSet::new(),
                IpAddr::V6(address) => BTreeSet::from([address]),
            },
            containers,
            macs: node.uplinks.values().filter_map(|uplink| uplink.mac).collect(),
            uplinks: node
                .uplinks
                .iter()
                .map(|(name, uplink)| {
                    let has_vlans = uplink.has_vlans || self.finds_vlans;
                    (name.clone(), HostInterface { has_vlans, ..*uplink })
                })
                .collect(),
            container_interfaces: node
                .containers
                .iter()
                .map(|container| container.host_interface)
                .collect(),
            mesh0: self.agents[number - 1].mesh0,
            next_hops: self.next_hops(node),
            answered: probed.answered(),
            silent: probed.silent(),
            lost: probed.lost(),
            ..Local::default()
        }
    }

    fn next_hops(&self, node: &Node) -> BTreeMap<Ipv4Addr, NextHop> {
        self.world
            .nodes
            .iter()
            .filter(|peer| peer.address != node.address)
            .map(|peer| {
                let hop = NextHop {
                    interface: node.uplink.index,
                    source_mac: node.uplink.mac.unwrap_or_default(),
                    destination_mac: peer.uplink.mac.unwrap_or_default(),
                    mtu: Some(peer.uplink.mtu),
                };
                (peer.address, hop)
            })
            .collect()
    }
}

fn task_id(service: &str, container: &str) -> String {
    format!("{service}-{container}")
}

/// A container's address on the ingress network: no packet ever bears it here.
pub(crate) fn ingress_address(container: &str) -> Ipv4Addr {
    let name = container.as_bytes();
    Ipv4Addr::new(10, 0, name[1], name[0])
}
