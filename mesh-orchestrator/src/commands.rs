//! What users and agents ask for, as changes: checked against the cluster's state, not yet applied. Imports
//! `objects` and `spec`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    objects::{
        Availability, EndpointPort, Node, NodeId, NodeStatus, ObjectChange, Previous, Rebalance, Service,
        ServiceId, State, Timestamp, UpdateState, UpdateStatus,
    },
    spec::{PublishMode, ServiceMode, ServiceSpec, SpecError, TaskRuntime, check_dependencies},
};

/// What an update's status says when a user goes back.
const BY_A_USER: &str = "rolled back by a user";

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The specification does not fit into the cluster.
    #[error("the service's specification is refused")]
    Spec(#[from] SpecError),
    /// The name belongs to another service.
    #[error("a service named {0} exists already: choose another name, or update that one")]
    NameTaken(String),
    /// There is no such service.
    #[error("no such service: {0}")]
    UnknownService(ServiceId),
    /// There is no such node.
    #[error("no such node: {0}")]
    UnknownNode(NodeId),
    /// Someone else has changed the service since it was read.
    #[error("service {name} is at version {found}, not {expected}: read it again, then repeat the change")]
    OutOfDate {
        /// The service's name.
        name: String,
        /// The version that the command names.
        expected: u64,
        /// The version that it is.
        found: u64,
    },
    /// The service was never anything else.
    #[error("service {0} has no previous specification to go back to")]
    NothingToRollBack(String),
    /// What a service is cannot change, only how many there are of it.
    #[error("service {name} is {from} and cannot become {to}: remove it and create another")]
    ModeChange {
        /// The service's name.
        name: String,
        /// Its mode.
        from: &'static str,
        /// The mode asked for.
        to: &'static str,
    },
    /// The service has no number of replicas.
    #[error("service {0} is not replicated: it cannot be scaled")]
    NotReplicated(String),
    /// The node still runs.
    #[error("node {0} is not down: stop its agent first, or drain it and wait")]
    NodeNotDown(NodeId),
}

/// Creates a service. The specification must have been validated.
///
/// # Errors
/// If the name or a port is taken, or dependencies would form a cycle.
pub fn create_service(
    state: &State,
    id: ServiceId,
    spec: ServiceSpec,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    if state.service_named(&spec.name).is_some() {
        return Err(CommandError::NameTaken(spec.name));
    }
    let mut changes = Vec::new();
    let ports = admit(state, &spec, &mut changes)?;
    changes.push(ObjectChange::PutService(Arc::new(Service {
        id,
        released: spec.depends_on.is_empty(),
        spec: Arc::new(spec),
        version: 1,
        task_version: 1,
        previous: None,
        ports,
        update_status: None,
        rebalance: None,
        created_at: now,
        updated_at: now,
    })));
    Ok(changes)
}

/// Changes a service's specification; `version` is the one that was read. Tasks are replaced if they would be
/// other ones; a paused update goes on.
///
/// # Errors
/// If the service has changed since, or the specification does not fit.
pub fn update_service(
    state: &State,
    id: &ServiceId,
    version: u64,
    spec: ServiceSpec,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    if service.version != version {
        return Err(CommandError::OutOfDate {
            name: service.spec.name.clone(),
            expected: version,
            found: service.version,
        });
    }
    if spec.name != service.spec.name {
        let allowed = format!("{}: a service's name cannot change", service.spec.name);
        return Err(SpecError::invalid("name", spec.name, allowed).into());
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&service.spec.mode) {
        return Err(CommandError::ModeChange {
            name: spec.name,
            from: service.spec.mode.name(),
            to: spec.mode.name(),
        });
    }
    let (runtime, found) = (spec.task_template.runtime, service.spec.task_template.runtime);
    if runtime != found {
        let allowed = format!("{}: what runs a service's tasks cannot change", found.name());
        return Err(SpecError::invalid("task_template.runtime", runtime.name(), allowed).into());
    }
    let mut changes = Vec::new();
    let ports = admit(state, &spec, &mut changes)?;
    let replaces = spec.task_template != service.spec.task_template || host(&ports) != host(&service.ports);
    let previous = Previous {
        spec: service.spec.clone(),
        task_version: service.task_version,
    };
    let mut next = Service {
        spec: Arc::new(spec),
        version: service.version + 1,
        previous: Some(previous),
        ports,
        updated_at: now,
        ..(**service).clone()
    };
    if replaces {
        next.task_version = next.version;
    }
    let resumes = service.is_updating() && state.outdated(id, next.task_version) > 0;
    if (replaces || resumes) && !next.spec.mode.is_job() {
        begin_update(&mut next, state, UpdateState::Updating, now, String::new());
    }
    changes.push(ObjectChange::PutService(Arc::new(next)));
    Ok(changes)
}

/// Changes a service's number of replicas.
///
/// # Errors
/// If the service is not replicated, or the number not possible.
pub fn scale_service(
    state: &State,
    id: &ServiceId,
    replicas: u32,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    let mut spec = (*service.spec).clone();
    match &mut spec.mode {
        ServiceMode::Replicated(settings) => settings.replicas = replicas,
        ServiceMode::Global(_) | ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_) => {
            return Err(CommandError::NotReplicated(spec.name));
        }
    }
    update_service(state, id, service.version, spec.validated()?, now)
}

/// Goes back to the previous specification.
///
/// # Errors
/// If there is none.
pub fn rollback_service(
    state: &State,
    id: &ServiceId,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    if service.previous.is_none() {
        return Err(CommandError::NothingToRollBack(service.spec.name.clone()));
    }
    Ok(roll_back(state, service, now, BY_A_USER.into()))
}

/// Goes back to an older specification, whose task version is known: tasks that still have it stay.
///
/// # Errors
/// If there is no such service, or the specification does not fit into the cluster any more.
pub fn roll_back_to(
    state: &State,
    id: &ServiceId,
    older: &Previous,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    if older.spec == service.spec {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    let ports = admit(state, &older.spec, &mut changes)?;
    changes.push(put_back(state, service, older, ports, now, BY_A_USER.into()));
    Ok(changes)
}

/// Puts the previous specification back, if there is one, with the numbers of ports that it can still have.
pub(crate) fn roll_back(
    state: &State,
    service: &Arc<Service>,
    now: Timestamp,
    message: String,
) -> Vec<ObjectChange> {
    let Some(previous) = &service.previous else {
        return Vec::new();
    };
    let mut changes = Vec::new();
    // A port may have gone to another service meanwhile. Tasks are more important than that one.
    let ports = admit(state, &previous.spec, &mut changes).unwrap_or_else(|_| service.ports.clone());
    changes.push(put_back(state, service, previous, ports, now, message));
    changes
}

/// A service as it was once, its tasks' version included.
fn put_back(
    state: &State,
    service: &Service,
    older: &Previous,
    ports: Vec<EndpointPort>,
    now: Timestamp,
    message: String,
) -> ObjectChange {
    let mut next = Service {
        previous: Some(Previous {
            spec: service.spec.clone(),
            task_version: service.task_version,
        }),
        spec: older.spec.clone(),
        version: service.version + 1,
        task_version: older.task_version,
        ports,
        updated_at: now,
        ..service.clone()
    };
    if !next.spec.mode.is_job() {
        begin_update(&mut next, state, UpdateState::RollbackStarted, now, message);
    }
    ObjectChange::PutService(Arc::new(next))
}

fn begin_update(service: &mut Service, state: &State, update: UpdateState, now: Timestamp, message: String) {
    let total = state.outdated(&service.id, service.task_version);
    service.rebalance = None;
    service.update_status = Some(UpdateStatus {
        state: update,
        started_at: now,
        completed_at: None,
        message,
        total,
        failed: BTreeSet::new(),
    });
}

/// Removes a service; its tasks stop.
///
/// # Errors
/// If there is no such service.
pub fn remove_service(state: &State, id: &ServiceId) -> Result<Vec<ObjectChange>, CommandError> {
    known_service(state, id)?;
    Ok(vec![ObjectChange::RemoveService(id.clone())])
}

/// Asks for a service's running tasks to be spread anew, each moved once at most.
///
/// # Errors
/// If there is no such service, or each node has its own task anyway.
pub fn rebalance_service(
    state: &State,
    id: &ServiceId,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    let service = known_service(state, id)?;
    if !matches!(service.spec.mode, ServiceMode::Replicated(_)) {
        return Err(CommandError::NotReplicated(service.spec.name.clone()));
    }
    let tasks = state.tasks_of(id).map_or(0, |index| index.wanted.len());
    let moves = u32::try_from(tasks).unwrap_or(u32::MAX);
    Ok(vec![set_rebalance(service, now, moves)])
}

fn set_rebalance(service: &Service, from: Timestamp, moves_left: u32) -> ObjectChange {
    ObjectChange::PutService(Arc::new(Service {
        rebalance: Some(Rebalance { from, moves_left }),
        ..service.clone()
    }))
}

/// A node as its agent or a user describes it anew. Sees to what follows from its coming back.
#[must_use]
pub fn put_node(state: &State, mut node: Node, now: Timestamp) -> Vec<ObjectChange> {
    let known = state.nodes().get(&node.id);
    if known.is_none_or(|known| known.status != node.status) {
        node.status_since = now;
    }
    let returns = node.is_schedulable() && !known.is_some_and(Node::is_schedulable);
    if returns && (known.is_some() || !state.tasks().is_empty()) {
        node.returned_at = Some(now);
    }
    let mut changes = vec![ObjectChange::PutNode(Box::new(node))];
    if returns && !state.tasks().is_empty() {
        for service in state.services().values() {
            let config = &service.spec.rebalance_config;
            if config.automatic && matches!(service.spec.mode, ServiceMode::Replicated(_)) {
                changes.push(set_rebalance(service, now + config.settle, config.max_moves));
            }
        }
    }
    changes
}

/// A node as its agent describes it. What users have set, and what the leader has found, stays.
#[must_use]
pub fn describe_node(state: &State, description: &Node, now: Timestamp) -> Vec<ObjectChange> {
    let Some(known) = state.nodes().get(&description.id) else {
        let node = Node {
            status: NodeStatus::Unknown,
            returned_at: None,
            ..description.clone()
        };
        return put_node(state, node, now);
    };
    let node = Node {
        labels: known.labels.clone(),
        availability: known.availability,
        status: known.status,
        status_since: known.status_since,
        returned_at: known.returned_at,
        ..description.clone()
    };
    if node == *known {
        return Vec::new();
    }
    put_node(state, node, now)
}

/// Sets what a node may be given.
///
/// # Errors
/// If there is no such node.
pub fn set_availability(
    state: &State,
    id: &NodeId,
    availability: Availability,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    change_node(state, id, now, |node| node.availability = availability)
}

/// Sets whether a node's agent is heard.
///
/// # Errors
/// If there is no such node.
pub fn set_node_status(
    state: &State,
    id: &NodeId,
    status: NodeStatus,
    now: Timestamp,
) -> Result<Vec<ObjectChange>, CommandError> {
    change_node(state, id, now, |node| node.status = status)
}

/// A service that a command names.
pub(crate) fn known_service<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Arc<Service>, CommandError> {
    state
        .service(id)
        .ok_or_else(|| CommandError::UnknownService(id.clone()))
}

fn change_node(
    state: &State,
    id: &NodeId,
    now: Timestamp,
    change: impl FnOnce(&mut Node),
) -> Result<Vec<ObjectChange>, CommandError> {
    let mut node = known_node(state, id)?.clone();
    change(&mut node);
    Ok(put_node(state, node, now))
}

fn known_node<'a>(state: &'a State, id: &NodeId) -> Result<&'a Node, CommandError> {
    state
        .nodes()
        .get(id)
        .ok_or_else(|| CommandError::UnknownNode(id.clone()))
}

/// Forgets a node that is down.
///
/// # Errors
/// If there is no such node, or it runs.
pub fn remove_node(state: &State, id: &NodeId) -> Result<Vec<ObjectChange>, CommandError> {
    let node = known_node(state, id)?;
    if node.status == NodeStatus::Ready {
        return Err(CommandError::NodeNotDown(id.clone()));
    }
    Ok(vec![ObjectChange::RemoveNode(id.clone())])
}

/// Ports for a specification, and whether its dependencies can ever be ready, and no other service has the agents.
fn admit(
    state: &State,
    spec: &ServiceSpec,
    changes: &mut Vec<ObjectChange>,
) -> Result<Vec<EndpointPort>, SpecError> {
    let mut ledger = state.port_ledger().clone();
    let ports = ledger.allocate(spec, |protocol, port| {
        state
            .publisher(protocol, port)
            .map(|service| service.spec.name.as_str())
    })?;
    if !spec.depends_on.is_empty() {
        let mut graph: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for other in state
            .services()
            .values()
            .map(|service| &*service.spec)
            .chain([spec])
        {
            let names = other.depends_on.iter().map(String::as_str).collect();
            graph.insert(&other.name, names);
        }
        check_dependencies(&graph)?;
    }
    if spec.task_template.runtime == TaskRuntime::Agent {
        let is_agents = |other: &&Arc<Service>| {
            other.spec.task_template.runtime == TaskRuntime::Agent && other.spec.name != spec.name
        };
        if let Some(other) = state.services().values().find(is_agents) {
            return Err(SpecError::invalid(
                "task_template.runtime",
                TaskRuntime::Agent.name(),
                format!("container: service {} has the nodes' agents", other.spec.name),
            ));
        }
    }
    if ledger != *state.port_ledger() {
        changes.push(ObjectChange::PutPorts(ledger));
    }
    Ok(ports)
}

fn host(ports: &[EndpointPort]) -> Vec<&EndpointPort> {
    ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Host)
        .collect()
}
