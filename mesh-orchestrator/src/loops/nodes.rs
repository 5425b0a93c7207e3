//! Handles the tasks of a node that is drained, goes down or is removed.

use std::time::Duration;

use super::{
    LoopOutput, Round, Subject,
    tasks::{stop, successor},
};
use crate::objects::{NodeId, NodeStatus, ObjectChange, Slot, State, Task, TaskState, TaskStatus};

/// Time after which the tasks of a node that is down count as orphaned.
pub const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Moves tasks away from a node that cannot keep them. As the tasks have not failed, this is neither delayed
/// nor counted as a restart. Tasks of global services only stop; [`super::global`] handles their slot.
#[must_use]
pub fn nodes(round: &Round, state: &State, id: &NodeId) -> LoopOutput {
    let mut output = LoopOutput::default();
    let node = state.nodes().get(id);
    if node.is_some_and(|node| node.status != NodeStatus::Down && node.keeps_tasks()) {
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
