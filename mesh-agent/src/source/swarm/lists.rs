//! The snapshot that the engine's lists of services, tasks and nodes make. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use crate::{
    docker::{
        api::{self, EndpointPort, Progress},
        host,
    },
    model::{Cluster, Node, NodeId, NodeRole, Protocol, PublishedPort, Replicas, Service, Task, TaskState},
    source::labels::{self, LabelError, ServiceLabels},
};

/// The engine's three lists, as last read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) services: Vec<api::Service>,
    pub(crate) tasks: Vec<api::Task>,
    pub(crate) nodes: Vec<api::Node>,
}

impl Lists {
    /// The cluster as the three lists describe it.
    pub(crate) fn cluster(&self, cluster_id: &str) -> Cluster {
        let nodes: BTreeMap<_, _> = self
            .nodes
            .iter()
            .filter(|listed| !listed.id.is_empty())
            .filter_map(|listed| Some((listed.id.clone(), node(listed)?)))
            .collect();
        let services: BTreeMap<_, _> = self
            .services
            .iter()
            .map(|listed| (listed.id.clone(), service(listed)))
            .filter(|(id, service)| !id.is_empty() && !service.ports.is_empty())
            .collect();
        let tasks = self
            .tasks
            .iter()
            .filter(|listed| !listed.id.is_empty() && nodes.contains_key(&listed.node))
            .filter_map(|listed| {
                let service = services.get(&listed.service)?;
                Some((listed.id.clone(), task(listed, service)?))
            })
            .collect();
        let mut cluster = Cluster {
            cluster_id: cluster_id.to_owned(),
            data_path_port: None,
            nodes,
            services,
            tasks,
        };
        cluster.forget_unnamed_labels();
        cluster
    }

    /// The replicas of every service, by name.
    pub(crate) fn replicas(&self) -> Vec<Replicas> {
        let mut meant = BTreeMap::<_, (u64, u64)>::new();
        for task in self
            .tasks
            .iter()
            .filter(|task| task.desired_state == Progress::Running)
        {
            let (all, running) = meant.entry(&task.service).or_default();
            *all += 1;
            *running += u64::from(task.status.state == Progress::Running);
        }
        let services = self.services.iter().filter(|listed| !listed.id.is_empty());
        let mut replicas: Vec<_> = services
            .map(|listed| {
                let (all, running) = meant.get(&listed.id).copied().unwrap_or_default();
                let replicated = listed.spec.mode.replicated.as_ref();
                Replicas {
                    service: listed.spec.name.clone(),
                    wanted: replicated.and_then(|mode| mode.replicas).unwrap_or(all),
                    running,
                }
            })
            .collect();
        replicas.sort_by(|left, right| left.service.cmp(&right.service));
        replicas
    }

    /// The version of the newest object: a list made later from the same store has no lower one, unless that
    /// object was removed.
    pub(crate) fn epoch(&self) -> u64 {
        let services = self.services.iter().map(|listed| listed.version);
        let tasks = self.tasks.iter().map(|listed| listed.version);
        let nodes = self.nodes.iter().map(|listed| listed.version);
        let versions = services.chain(tasks).chain(nodes);
        versions.map(|version| version.index).max().unwrap_or_default()
    }

    /// The mesh's labels with invalid values.
    pub(crate) fn label_errors(&self) -> BTreeSet<String> {
        let services = self.services.iter();
        let services = services.flat_map(|listed| service(listed).invalid_labels);
        let nodes = self.nodes.iter().filter_map(|listed| node_weight(listed).1);
        let nodes = nodes.map(|error| error.to_string());
        services.chain(nodes).collect()
    }

    /// Whether a published service is changing, so that its tasks will change soon without any event. Tasks
    /// on a node that is down do not count: they can stay as they are for a day.
    pub(crate) fn converging(&self) -> bool {
        let away: BTreeSet<_> = self
            .nodes
            .iter()
            .filter(|node| !is_ready(node))
            .map(|node| &node.id)
            .collect();
        let mut tasks: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for task in &self.tasks {
            tasks.entry(&task.service).or_default().push(task);
        }
        self.services
            .iter()
            .filter(|listed| !service(listed).ports.is_empty())
            .any(|service| is_converging(service, tasks.get(&service.id).map_or(&[], Vec::as_slice), &away))
    }

    /// Whether a task belongs to a service that is not in the list of services (yet).
    pub(crate) fn names_unknown_service(&self) -> bool {
        let known: BTreeSet<_> = self.services.iter().map(|service| &service.id).collect();
        self.tasks
            .iter()
            .filter(|task| task.desired_state <= Progress::Running && !task.service.is_empty())
            .any(|task| !known.contains(&task.service))
    }
}

fn is_converging(service: &api::Service, tasks: &[&api::Task], away: &BTreeSet<&NodeId>) -> bool {
    let updating = service
        .update_status
        .as_ref()
        .is_some_and(|status| matches!(status.state.as_deref(), Some("updating" | "rollback_started")));
    let mut running = 0;
    let mut moving = false;
    for task in tasks {
        if task.desired_state <= Progress::Running {
            running += u64::from(task.status.state == Progress::Running);
            // A failed task is about to be replaced.
            moving |= task.status.state != Progress::Running;
        } else {
            moving |= task.status.state <= Progress::Running && !away.contains(&task.node);
        }
    }
    let replicas = service
        .spec
        .mode
        .replicated
        .as_ref()
        .and_then(|mode| mode.replicas);
    updating || moving || replicas.is_some_and(|replicas| replicas != running)
}

/// Only a node that is known to be down is not ready. The containers of the others keep running: after a
/// change of leader Swarm lists every node as `unknown` until it has reported again, which takes seconds, and
/// one that was sent to look for another manager as `disconnected` (swarmkit's dispatcher, `disconnectNode`).
fn is_ready(listed: &api::Node) -> bool {
    matches!(
        listed.status.state.as_deref(),
        Some("ready" | "unknown" | "disconnected")
    )
}

/// `None` while the node has no address: nothing can be sent to it.
fn node(listed: &api::Node) -> Option<Node> {
    // Some managers list themselves at 0.0.0.0; then the address that they advertise is right.
    let advertised = listed
        .manager_status
        .as_ref()
        .and_then(|status| status.addr.as_deref());
    let address = [listed.status.addr.as_deref(), advertised]
        .into_iter()
        .flatten()
        .find_map(host)?;
    let manager = listed.spec.role.as_deref() == Some("manager") || listed.manager_status.is_some();
    let role = if manager {
        NodeRole::Manager
    } else {
        NodeRole::Worker
    };
    let (weight, invalid_label) = node_weight(listed);
    Some(Node {
        ready: is_ready(listed),
        weight,
        labels: listed.spec.labels.clone().unwrap_or_default(),
        invalid_labels: invalid_label.iter().map(LabelError::to_string).collect(),
        ..Node::new(listed.description.hostname.clone(), address, role)
    })
}

fn service(listed: &api::Service) -> Service {
    let mut ports: Vec<_> = listed
        .endpoint
        .ports
        .iter()
        .flatten()
        .filter_map(published_port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let labels = match &listed.spec.labels {
        Some(labels) => labels::service(&listed.spec.name, labels, &ports),
        None => ServiceLabels::default(),
    };
    Service {
        name: listed.spec.name.clone(),
        ports,
        balance: labels.balance,
        weights: labels.weights,
        clients: labels.clients,
        idle: labels.idle,
        publish_on: labels.publish_on,
        limits: labels.limits,
        drain_timeout: labels.drain_timeout,
        health: labels.health,
        invalid_labels: labels.errors.iter().map(LabelError::to_string).collect(),
    }
}

fn node_weight(listed: &api::Node) -> (u32, Option<LabelError>) {
    match &listed.spec.labels {
        Some(labels) => labels::weight(&listed.description.hostname, labels),
        None => (1, None),
    }
}

fn published_port(port: &EndpointPort) -> Option<PublishedPort> {
    if port.publish_mode.as_deref().is_some_and(|mode| mode != "ingress") {
        return None;
    }
    let protocol = match port.protocol.as_deref() {
        None | Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some(_) => return None,
    };
    Some(PublishedPort {
        protocol,
        published: port.published_port.filter(|&port| port != 0)?,
        target: port.target_port.filter(|&port| port != 0)?,
    })
}

/// `None` when the task does not run, or has no address on the ingress network.
fn task(listed: &api::Task, service: &Service) -> Option<Task> {
    let state = match (listed.status.state, listed.desired_state) {
        (Progress::Running, Progress::Running) => TaskState::Active,
        (Progress::Running, Progress::After) => TaskState::Draining,
        (Progress::Running, Progress::Before) | (Progress::Before | Progress::After, _) => return None,
    };
    let name = match listed.slot.filter(|&slot| slot != 0) {
        Some(slot) => format!("{}.{slot}", service.name),
        None => format!("{}.{}", service.name, listed.node),
    };
    Some(Task {
        service: listed.service.clone(),
        name,
        slot: listed.slot.filter(|&slot| slot != 0),
        node: listed.node.clone(),
        address: ingress_address(listed)?,
        state,
    })
}

fn ingress_address(listed: &api::Task) -> Option<Ipv4Addr> {
    listed
        .networks_attachments
        .iter()
        .flatten()
        .filter(|attachment| {
            attachment.network.as_ref().is_some_and(|network| {
                let labels = network.spec.labels.iter().flatten();
                // Networks created before Docker 17.05 have a label instead.
                network.spec.ingress
                    || labels
                        .into_iter()
                        .any(|(name, _)| name == "com.docker.swarm.internal")
            })
        })
        .flat_map(|attachment| attachment.addresses.iter().flatten())
        .find_map(|address| address.split('/').next()?.parse().ok())
}
