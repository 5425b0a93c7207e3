//! The state of a service in a settled cluster: what users asked for, as far as it is possible.

use std::collections::BTreeMap;

use mesh_orchestrator::{
    loops::{dependencies::is_ready, jobs::is_complete, reaper::HISTORY, replicated::is_taken, scheduler},
    objects::{NodeId, Service, Slot, State, Task, TaskState},
    spec::ServiceMode,
};

/// Checks one service.
pub(crate) fn check(state: &State, service: &Service) -> Result<(), String> {
    let name = &service.spec.name;
    let slots: BTreeMap<Slot, Vec<&Task>> = state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.slots.keys())
        .map(|slot| (slot.clone(), state.slot(&service.id, slot).collect()))
        .collect();
    let taken = slots
        .values()
        .filter(|tasks| tasks.iter().any(|task| is_taken(task)))
        .count();
    let mut stuck = false;
    let mut running_old = false;
    let failed = service
        .update_status
        .as_ref()
        .map(|status| status.failed.clone())
        .unwrap_or_default();
    for (slot, tasks) in &slots {
        let ended = tasks
            .iter()
            .filter(|task| task.status.state.is_terminal() && !task.desired.is_wanted())
            .count();
        if ended > HISTORY {
            return Err(format!("slot {slot} of {name} keeps {ended} ended tasks"));
        }
        let live: Vec<&&Task> = tasks.iter().filter(|task| task.is_live()).collect();
        for task in &live {
            match task.status.state {
                TaskState::Running => {
                    running_old |= task.spec_version != service.task_version && !failed.contains(slot);
                }
                TaskState::Pending => stuck = true,
                TaskState::New if !service.released => stuck = true,
                TaskState::Ready if task.desired == TaskState::Ready => {
                    return Err(format!("a task is held forever: {task:#?}"));
                }
                _ => return Err(format!("a task does not advance: {task:#?}")),
            }
        }
        // Besides a running task there may be a pending one.
        if live.len() > 1 && !live.iter().any(|task| task.status.state == TaskState::Pending) {
            return Err(format!("slot {slot} of {name} has more than one task: {live:#?}"));
        }
    }
    if !service.released {
        let ready = |name: &String| {
            state
                .service_named(name)
                .is_some_and(|other| is_ready(state, other))
        };
        if service.spec.depends_on.iter().all(ready) {
            return Err(format!("{name} waits for services that are ready"));
        }
    }
    let paused = service.is_updating()
        && service
            .update_status
            .as_ref()
            .is_some_and(|status| !status.state.is_active());
    if service.is_updating() && !paused && !stuck {
        return Err(format!(
            "the update of {name} does not end: {:?}{}",
            service.update_status,
            describe(state, service)
        ));
    }
    if running_old && !service.is_updating() && !service.spec.mode.is_job() {
        return Err(format!(
            "{name} still runs old tasks: {:?}{}",
            service.update_status,
            describe(state, service)
        ));
    }
    if service.rebalance.is_some() && !stuck && !service.is_updating() {
        return Err(format!(
            "the rebalancing of {name} does not end{}",
            describe(state, service)
        ));
    }

    let expected = match service.spec.mode {
        ServiceMode::Replicated(settings) => settings.replicas as usize,
        ServiceMode::Global(_) | ServiceMode::GlobalJob(_) => {
            let suits = |node: &&mesh_orchestrator::objects::Node| {
                scheduler::suits(node, &service.spec.task_template.placement)
            };
            state.nodes().values().filter(suits).count()
        }
        ServiceMode::ReplicatedJob(job) => {
            let given_up = slots.values().any(|tasks| tasks.iter().any(|task| task.given_up));
            let done = is_complete(state, service, job.total_completions as usize);
            if done || given_up || stuck {
                return Ok(());
            }
            return Err(format!(
                "the job {name} is not complete: {}",
                describe(state, service)
            ));
        }
    };
    // A job that completed on a node stays complete, whatever happens to the node.
    let is_right = if service.spec.mode.is_job() {
        taken >= expected
    } else {
        taken == expected
    };
    if !is_right {
        return Err(format!(
            "{name} has {taken} slots instead of {expected}: {}",
            describe(state, service)
        ));
    }
    Ok(())
}

/// A service's tasks, one a line.
fn describe(state: &State, service: &Service) -> String {
    let mut text = format!(" (task version {})", service.task_version);
    for slot in state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.slots.keys())
    {
        for task in state.slot(&service.id, slot) {
            let node = task.node.as_ref().map_or("-", NodeId::as_str);
            text += &format!(
                "\n  {} {} version {} on {node}: {} (desired {}) since {} made {} began {:?} given up {}: {}",
                task.name(),
                task.id,
                task.spec_version,
                task.status.state,
                task.desired,
                task.status.at.0,
                task.created_at.0,
                task.update_began.map(|time| time.0),
                task.given_up,
                task.status.message,
            );
        }
    }
    text
}
