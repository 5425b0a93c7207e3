//! A replicated service has as many slots as it has replicas.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LoopOutput, Round,
    tasks::{create, new_task, stop},
};
use crate::objects::{NodeId, Service, Slot, State, Task, TaskState};

/// Creates tasks in the lowest free slots, or removes slots: first those given up, then those that do not
/// run, then those on the nodes with most tasks of the service.
#[must_use]
pub fn replicated(round: &Round, state: &State, service: &Service, replicas: u32) -> LoopOutput {
    let mut output = LoopOutput::default();
    let index = state.tasks_of(&service.id);
    let replicas = replicas as usize;
    let taken = index.map_or(0, |index| {
        let also_given_up = index
            .given_up
            .keys()
            .filter(|slot| !index.wanted.contains_key(slot));
        index.wanted.len() + also_given_up.count()
    });
    if taken < replicas {
        let is_taken = |slot: &Slot| {
            index.is_some_and(|index| index.wanted.contains_key(slot) || index.given_up.contains_key(slot))
        };
        let free = (1..=u32::MAX).map(Slot::Number).filter(|slot| !is_taken(slot));
        for slot in free.take(replicas - taken) {
            create(
                &mut output,
                state,
                service,
                new_task(round, service, slot, "replica"),
            );
        }
    } else if taken > replicas {
        for slot in surplus(state, service, taken - replicas) {
            for task in state.slot(&service.id, &slot) {
                stop(&mut output, task, TaskState::Remove, round.now);
            }
        }
    }
    output
}

/// The slots to remove.
fn surplus(state: &State, service: &Service, mut count: usize) -> Vec<Slot> {
    let Some(index) = state.tasks_of(&service.id) else {
        return Vec::new();
    };
    let mut chosen = Vec::new();
    let mut running: BTreeMap<&NodeId, BTreeSet<&Slot>> = BTreeMap::new();
    let mut others: Vec<(bool, TaskState, &Slot)> = Vec::new();
    let slots: BTreeSet<&Slot> = index.wanted.keys().chain(index.given_up.keys()).collect();
    for slot in slots {
        let tasks = || state.slot(&service.id, slot);
        match tasks()
            .filter(|task| task.is_running())
            .find_map(|task| task.node.as_ref())
        {
            Some(node) => drop(running.entry(node).or_default().insert(slot)),
            None => {
                let progress = tasks()
                    .filter(|task| task.is_live())
                    .map(|task| task.status.state)
                    .max();
                others.push((progress.is_some(), progress.unwrap_or(TaskState::New), slot));
            }
        }
    }
    // Given up first, then the least advanced, then the highest number.
    others.sort_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)).then(other.2.cmp(one.2)));
    chosen.extend(others.into_iter().map(|(_, _, slot)| slot.clone()).take(count));
    count -= chosen.len();
    let mut fullest: BTreeSet<(usize, &NodeId)> =
        running.iter().map(|(node, slots)| (slots.len(), *node)).collect();
    while count > 0 {
        let Some((_, node)) = fullest.pop_last() else {
            break;
        };
        let Some(slots) = running.get_mut(node) else {
            continue;
        };
        if let Some(slot) = slots.pop_last() {
            chosen.push(slot.clone());
            count -= 1;
            fullest.insert((slots.len(), node));
        }
    }
    chosen
}

/// Whether a task takes its slot.
#[must_use]
pub fn is_taken(task: &Task) -> bool {
    task.desired.is_wanted() || (task.given_up && task.desired == TaskState::Shutdown)
}
