//! Commands on services.

use std::{collections::BTreeSet, sync::Arc};

use super::{CommandError, admission::admit};
use crate::{
    objects::{
        EndpointPort, ObjectChange, Previous, Rebalance, Service, ServiceId, State, Timestamp, UpdateState,
        UpdateStatus,
    },
    spec::{PublishMode, ServiceMode, ServiceSpec, SpecError},
};

/// The message of an update status after a user's rollback.
const BY_A_USER: &str = "rolled back by a user";

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

/// Replaces a service's specification; `version` is the one that the caller has read. Tasks are replaced if
/// the change affects them; a paused update resumes.
///
/// # Errors
/// If the service has changed since, or the specification does not fit the cluster.
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
        let allowed = format!("{}: the name of a service cannot change", service.spec.name);
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
        let allowed = format!("{}: the runtime of a service cannot change", found.name());
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

/// Sets the number of a service's replicas.
///
/// # Errors
/// If the service is not replicated, or the number is out of range.
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

/// Rolls back to the previous specification.
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

/// Rolls back to an older specification. Tasks that still have its task version are kept.
///
/// # Errors
/// If there is no such service, or the specification no longer fits the cluster.
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

/// Restores the previous specification, if there is one, with the published ports that are still free.
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
    // Another service may have taken a port meanwhile. Running tasks matter more than that port.
    let ports = admit(state, &previous.spec, &mut changes).unwrap_or_else(|_| service.ports.clone());
    changes.push(put_back(state, service, previous, ports, now, message));
    changes
}

/// The change that restores an older specification with its task version.
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

/// Starts to spread a service's running tasks evenly again, with at most as many moves as it has tasks.
///
/// # Errors
/// If there is no such service, or it is not replicated.
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

pub(super) fn set_rebalance(service: &Service, from: Timestamp, moves_left: u32) -> ObjectChange {
    ObjectChange::PutService(Arc::new(Service {
        rebalance: Some(Rebalance { from, moves_left }),
        ..service.clone()
    }))
}

/// The service that a command names.
pub(crate) fn known_service<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Arc<Service>, CommandError> {
    state
        .service(id)
        .ok_or_else(|| CommandError::UnknownService(id.clone()))
}

fn host(ports: &[EndpointPort]) -> Vec<&EndpointPort> {
    ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Host)
        .collect()
}
