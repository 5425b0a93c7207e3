//! Handles the tasks of a node that is drained, goes down, is removed or no longer suits them.

use std::time::Duration;

use super::{
    LoopOutput, Round, Subject,
    scheduler::suits,
    tasks::{stop, successor},
};
use crate::{
    objects::{Node, NodeId, NodeStatus, ObjectChange, Slot, State, Task, TaskState, TaskStatus},
    spec::Resources,
};

/// Time after which the tasks of a node that is down count as orphaned.
pub const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Moves tasks away from a node that cannot keep them. As the tasks have not failed, this is neither delayed
/// nor counted as a restart. Tasks of global services only stop; [`super::global`] handles their slot.
#[must_use]
pub fn nodes(round: &Round, state: &State, id: &NodeId) -> LoopOutput {
    let mut output = LoopOutput::default();
    let node = state.nodes().get(id);
    if let Some(node) = node.filter(|node| node.status != NodeStatus::Down && node.keeps_tasks()) {
        unsuitable(&mut output, round, state, node);
        return output;
    }
    let mut orphaned = node.is_none();
    if let Some(node) = node.filter(|node| node.status == NodeStatus::Down) {
        let time = node.status_since + ORPHANED_AFTER;
        orphaned = time <= round.now;
        if !orphaned && state.tasks_on(id).is_some_and(|index| !index.tasks.is_empty()) {
            output.wake(time, Subject::Node(id.clone()));
        }
    }
    for task in state.tasks_on(id).into_iter().flat_map(|index| &index.tasks) {
        let Some(task) = state.tasks().get(task) else {
            continue;
        };
        if task.is_live() {
            evict(&mut output, round, state, task);
        }
        if orphaned && task.status.state.holds_resources() {
            output.push(ObjectChange::Observe {
                task: task.id.clone(),
                status: TaskStatus::new(
                    TaskState::Orphaned,
                    round.now,
                    "its node was removed or has been down for too long",
                ),
            });
        }
    }
    output
}

/// Moves tasks away that the node no longer suits, as its labels or its capacity have changed. Of tasks that
/// reserve more than there is, the oldest stay.
fn unsuitable(output: &mut LoopOutput, round: &Round, state: &State, node: &Node) {
    let tasks = state
        .tasks_on(&node.id)
        .into_iter()
        .flat_map(|index| &index.tasks);
    let holds = |task: &&Task| task.is_live() && task.status.state.holds_resources();
    let mut tasks: Vec<&Task> = tasks
        .filter_map(|id| state.tasks().get(id))
        .filter(holds)
        .collect();
    tasks.sort_by_key(|task| (task.created_at, &task.id));
    let mut reserved = Resources::default();
    for task in tasks {
        let with_it = reserved.plus(task.spec.resources.reservations);
        // Global services follow the nodes themselves.
        let is_free_to_move = matches!(task.slot, Slot::Number(_));
        if is_free_to_move && !(suits(node, &task.spec.placement) && fits(with_it, task, node)) {
            evict(output, round, state, task);
        } else {
            reserved = with_it;
        }
    }
}

/// Whether what is reserved on a node, with a task, is there. Only what the task itself reserves counts, and
/// only what is known of the node: 0 is not.
fn fits(reserved: Resources, task: &Task, node: &Node) -> bool {
    let own = task.spec.resources.reservations;
    let is_there = |own, reserved, all| own == 0 || all == 0 || reserved <= all;
    is_there(own.nano_cpus, reserved.nano_cpus, node.resources.nano_cpus)
        && is_there(
            own.memory_bytes,
            reserved.memory_bytes,
            node.resources.memory_bytes,
        )
}

fn evict(output: &mut LoopOutput, round: &Round, state: &State, task: &Task) {
    stop(output, task, TaskState::Shutdown, round.now);
    let has_another = state
        .slot(&task.service, &task.slot)
        .any(|other| other.id != task.id && other.is_live());
    if let (Slot::Number(_), Some(service), false) = (&task.slot, state.service(&task.service), has_another) {
        output.push(ObjectChange::CreateTask(Box::new(successor(
            round, service, task, "evicted",
        ))));
    }
}
