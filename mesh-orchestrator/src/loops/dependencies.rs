//! `depends_on`: a service's first tasks wait until the services that it depends on are ready. After that the
//! dependencies no longer matter: if one fails later, the service can still restart its tasks.

use std::sync::Arc;

use super::{LoopOutput, Round, jobs::is_complete};
use crate::{
    objects::{ObjectChange, Service, State, TaskState, TaskStatus},
    spec::ServiceMode,
};

/// Releases a service whose dependencies are ready. If some are not, its tasks report which.
#[must_use]
pub fn dependencies(round: &Round, state: &State, service: &Service) -> LoopOutput {
    let mut output = LoopOutput::default();
    let missing: Vec<&str> = if service.released {
        Vec::new()
    } else {
        let depends_on = service.spec.depends_on.iter().map(String::as_str);
        depends_on
            .filter(|name| {
                !state
                    .service_named(name)
                    .is_some_and(|other| is_ready(state, other))
            })
            .collect()
    };
    if missing.is_empty() && !service.released {
        let released = Service {
            released: true,
            ..service.clone()
        };
        output.push(ObjectChange::PutService(Arc::new(released)));
    }
    let (next, message) = if missing.is_empty() {
        (TaskState::Pending, "waiting for a node".to_owned())
    } else {
        (TaskState::New, format!("waiting for {}", missing.join(", ")))
    };
    for id in state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| &index.waiting)
    {
        if state
            .tasks()
            .get(id)
            .is_some_and(|task| next != TaskState::New || task.status.message != message)
        {
            output.push(ObjectChange::Observe {
                task: id.clone(),
                status: TaskStatus::new(next, round.now, message.clone()),
            });
        }
    }
    output
}

/// Whether all tasks of a service run, or for a job have completed. A service without tasks is not ready.
#[must_use]
pub fn is_ready(state: &State, service: &Service) -> bool {
    let index = state.tasks_of(&service.id);
    let running = index.map_or(0, |index| index.running) as usize;
    let wanted = index.map_or(0, |index| index.wanted.len());
    match service.spec.mode {
        ServiceMode::Replicated(settings) => settings.replicas > 0 && running >= settings.replicas as usize,
        ServiceMode::Global(_) => wanted > 0 && running >= wanted,
        ServiceMode::ReplicatedJob(job) => is_complete(state, service, job.total_completions as usize),
        ServiceMode::GlobalJob(_) => wanted > 0 && is_complete(state, service, wanted),
    }
}
