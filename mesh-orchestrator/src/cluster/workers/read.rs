//! What a worker may read: a pure function from an object to what the worker gets of it, or nothing.
//!
//! | object | the worker gets |
//! |---|---|
//! | its own tasks, what they run, and its own node | everything |
//! | another node's task | what routing needs, while it runs behind a routed port |
//! | a service | name, mode, routed ports and the mesh's labels; all labels if a task of it is on the node |
//! | another node, its registration | what routing needs |
//! | whether a backup is being restored | everything |
//! | everything else | nothing |
//!
//! Imports `mirror` and `stored`.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::{
    Registration, Unreadable,
    mirror::Mirror,
    stored::{self, Name, StoredTask},
};
use crate::{
    objects::{Node, NodeId, Service, ServiceId, State, Task, TaskState, TaskStatus},
    spec::{ContainerSpec, EndpointSpec, PublishMode, RebalanceConfig, ServiceSpec, TaskSpec, UpdateConfig},
    store::{
        Entry, InvalidKey, Key,
        revisions::{Author, Revised},
    },
};

/// The labels that the mesh reads begin with this.
const MESH_LABELS: &str = "mesh.";

/// What a worker gets of the object of a name; `None` if that is nothing, or if there is no such object.
///
/// # Errors
/// When the object cannot be written as JSON.
pub(super) fn view(mirror: &Mirror, worker: &NodeId, name: &Name) -> Result<Option<Entry>, Unreadable> {
    let state = mirror.state();
    let viewed = match name {
        Name::Task(id) => match state.tasks().get(id) {
            Some(task) if task.node.as_ref() == Some(worker) => {
                whole(mirror, stored::task(id), &own_task(mirror, task))?
            }
            Some(task) => part(stored::task(id), routed_task(state, task).as_ref())?,
            None => None,
        },
        Name::Spec(service, version) => match mirror.specs().get(service, *version) {
            Some(spec) if state.is_used_on(worker, service, *version) => {
                whole(mirror, stored::spec(service, *version), &**spec)?
            }
            Some(_) | None => None,
        },
        Name::Node(id) => match state.nodes().get(id) {
            Some(node) if id == worker => whole(mirror, stored::node(id), node)?,
            Some(node) => part(stored::node(id), Some(&other_node(node)))?,
            None => None,
        },
        Name::Service(id) => {
            let revised = mirror.revised(id);
            let viewed = revised.and_then(|revised| service(state, worker, revised));
            part(stored::service(id), viewed.as_ref())?
        }
        Name::Registration(id) => {
            let registration = mirror.registrations().get(id);
            let viewed = registration.map(|registration| match id == worker {
                true => registration.clone(),
                false => other_registration(registration),
            });
            part(stored::registration(id), viewed.as_ref())?
        }
        Name::Restore => {
            let unfinished = mirror.is_restoring().then_some("unfinished");
            part(stored::restore(), unfinished.as_ref())?
        }
        // Listed one by one, so that a new kind of object is decided about here. What is not mirrored
        // (secrets, tokens, old revisions, and what a later release stores) is `Other`.
        Name::Ports | Name::Guard | Name::Leader | Name::Other => None,
    };
    Ok(viewed.map(|(key, value)| {
        let modified = mirror.modified(&key).unwrap_or(mirror.revision());
        Entry {
            key,
            value,
            created: modified,
            modified,
            version: 1,
        }
    }))
}

/// Every object that the mirror has, in the order of their names.
pub(super) fn names(mirror: &Mirror) -> impl Iterator<Item = Name> {
    let state = mirror.state();
    let nodes = state.nodes().keys().cloned().map(Name::Node);
    let services = state.services().keys().cloned().map(Name::Service);
    let specs = mirror.specs().names();
    let specs = specs.map(|(service, version)| Name::Spec(service.clone(), version));
    let tasks = state.tasks().keys().cloned().map(Name::Task);
    let registrations = mirror.registrations().keys().cloned().map(Name::Registration);
    nodes
        .chain(services)
        .chain(specs)
        .chain(tasks)
        .chain(registrations)
        .chain([Name::Restore])
}

/// Whether the mesh routes a port to a service.
pub(super) fn is_routed(state: &State, service: &ServiceId) -> bool {
    state
        .service(service)
        .is_some_and(|service| has_routed_port(service))
}

fn has_routed_port(service: &Service) -> bool {
    let mut ports = service.ports.iter();
    ports.any(|port| port.publish_mode == PublishMode::Ingress)
}

/// Whether a task of a service is, or was, on a node.
fn has_task(state: &State, node: &NodeId, service: &ServiceId) -> bool {
    let index = state.tasks_on(node);
    let mut tasks = index.into_iter().flat_map(|index| &index.tasks);
    tasks.any(|id| state.tasks().get(id).is_some_and(|task| task.service == *service))
}

fn service(state: &State, worker: &NodeId, revised: Revised<Arc<Service>>) -> Option<Revised<Service>> {
    let Revised {
        revision,
        author,
        value,
    } = revised;
    let is_own = has_task(state, worker, &value.id);
    if !is_own && !has_routed_port(&value) {
        return None;
    }
    let labels = value.spec.labels.iter();
    let labels = labels.filter(|(name, _)| is_own || name.starts_with(MESH_LABELS));
    let spec = ServiceSpec {
        name: value.spec.name.clone(),
        labels: labels.map(|(name, text)| (name.clone(), text.clone())).collect(),
        mode: value.spec.mode,
        task_template: nothing_to_run(),
        update_config: UpdateConfig::default(),
        rollback_config: UpdateConfig::default(),
        rebalance_config: RebalanceConfig::default(),
        endpoint_spec: EndpointSpec::default(),
        depends_on: Vec::new(),
    };
    Some(Revised {
        revision,
        author: Author {
            by: String::new(),
            at: author.at,
            action: String::new(),
        },
        value: Service {
            id: value.id.clone(),
            spec: Arc::new(spec),
            version: value.version,
            task_version: value.task_version,
            previous: None,
            ports: value.ports.clone(),
            update_status: None,
            released: true,
            rebalance: None,
            created_at: value.created_at,
            updated_at: value.updated_at,
        },
    })
}

/// A task of the worker, as it is stored.
fn own_task(mirror: &Mirror, task: &Task) -> StoredTask {
    match mirror.specs().get(&task.service, task.spec_version) {
        Some(_) => StoredTask::new(task),
        None => StoredTask::whole(task),
    }
}

/// A task of which the worker does not get what it runs.
#[derive(Serialize)]
struct RoutedTask {
    #[serde(flatten)]
    task: StoredTask,
    /// The shortest text that is read as [`nothing_to_run`]: there may be many of these.
    spec: Value,
}

/// Another node's task as routing needs it; `None` for one that takes no connections.
fn routed_task(state: &State, task: &Task) -> Option<RoutedTask> {
    let address = task.status.address?;
    let is_reached =
        task.status.state == TaskState::Running && task.node.is_some() && is_routed(state, &task.service);
    if !is_reached {
        return None;
    }
    let viewed = Task {
        id: task.id.clone(),
        service: task.service.clone(),
        service_name: task.service_name.clone(),
        slot: task.slot.clone(),
        spec: nothing_to_run(),
        spec_version: task.spec_version,
        host_ports: Vec::new(),
        node: task.node.clone(),
        desired: task.desired,
        status: TaskStatus {
            address: Some(address),
            ..TaskStatus::new(task.status.state, task.status.at, "")
        },
        created_at: task.created_at,
        started_at: None,
        finished_at: None,
        not_before: None,
        restarts: Vec::new(),
        failures: 0,
        update_began: None,
        given_up: false,
    };
    Some(RoutedTask {
        task: StoredTask::new(&viewed),
        spec: json!({"container_spec": {"image": ""}}),
    })
}

fn other_node(node: &Node) -> Node {
    Node {
        id: node.id.clone(),
        hostname: node.hostname.clone(),
        address: node.address.clone(),
        role: node.role,
        // The conditions of `mesh.publish-on` are about them.
        labels: node.labels.clone(),
        engine_labels: Default::default(),
        platform: Default::default(),
        resources: Default::default(),
        availability: node.availability,
        status: node.status,
        status_since: node.status_since,
        returned_at: None,
    }
}

fn other_registration(registration: &Registration) -> Registration {
    Registration {
        address: registration.address.clone(),
        datapath: registration.datapath.clone(),
        engine: registration.engine,
        leaving: registration.leaving,
        replaced: registration.replaced,
        release: registration.release.clone(),
        keys: registration.keys.clone(),
        drains_node: registration.drains_node,
        drained_tasks: registration.drained_tasks.clone(),
        // Workers do not ask other nodes' agents.
        logs: None,
        engine_version: String::new(),
    }
}

/// In the stead of what a task runs.
pub(super) fn nothing_to_run() -> Arc<TaskSpec> {
    Arc::new(TaskSpec {
        runtime: Default::default(),
        container_spec: ContainerSpec::default(),
        resources: Default::default(),
        restart_policy: Default::default(),
        placement: Default::default(),
        networks: Vec::new(),
        log_driver: None,
        force_update: 0,
    })
}

/// With what a later release has added to it.
fn whole<T: Serialize>(
    mirror: &Mirror,
    key: Result<Key, InvalidKey>,
    object: &T,
) -> Result<Option<(Key, Vec<u8>)>, Unreadable> {
    let Ok(key) = key else {
        return Ok(None);
    };
    let value = stored::encode(&key, object, mirror.later(&key))?;
    Ok(Some((key, value)))
}

fn part<T: Serialize>(
    key: Result<Key, InvalidKey>,
    object: Option<&T>,
) -> Result<Option<(Key, Vec<u8>)>, Unreadable> {
    let (Ok(key), Some(object)) = (key, object) else {
        return Ok(None);
    };
    let value = stored::encode(&key, object, None)?;
    Ok(Some((key, value)))
}
