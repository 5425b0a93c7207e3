//! Moves running tasks to emptier nodes, a few at a time, on request or after a node has become ready again.

use std::{collections::BTreeSet, sync::Arc};

use super::{LoopOutput, Round, Subject, scheduler::better_node, update::replace};
use crate::objects::{NodeId, ObjectChange, Service, Slot, State, Task};

/// Takes the rebalancing of a service one step further: at most as many moves at a time as its update policy
/// allows, and only while all its tasks run. It ends when no move improves the spread.
#[must_use]
pub fn rebalance(round: &Round, state: &State, service: &Arc<Service>) -> LoopOutput {
    let mut output = LoopOutput::default();
    let Some(mut rebalance) = service.rebalance else {
        return output;
    };
    if rebalance.from > round.now {
        output.wake(rebalance.from, Subject::Service(service.id.clone()));
        return output;
    }
    let Some(index) = state.tasks_of(&service.id) else {
        output.push(put(service, None));
        return output;
    };
    let wanted: u32 = index.wanted.values().sum();
    if service.is_updating() || index.running != wanted {
        return output;
    }
    let config = &service.spec.update_config;
    let limit = if config.parallelism == 0 {
        u32::MAX
    } else {
        config.parallelism
    };
    let mut left: BTreeSet<&NodeId> = BTreeSet::new();
    let mut moves = 0;
    for task in fullest_first(state, service) {
        if moves >= limit.min(rebalance.moves_left) {
            break;
        }
        // At most one move from and one to each node at a time, so that moves do not undo each other.
        let Some(from) = task.node.as_ref().filter(|node| !left.contains(node)) else {
            continue;
        };
        let Some(to) = better_node(round, state, task).filter(|node| !left.contains(node)) else {
            continue;
        };
        left.extend([from, to]);
        replace(
            &mut output,
            round,
            state,
            service,
            &task.slot,
            config.order,
            "rebalance",
            None,
        );
        moves += 1;
    }
    rebalance.moves_left -= moves;
    let ends = moves == 0 || rebalance.moves_left == 0;
    output
        .changes
        .insert(0, put(service, (!ends).then_some(rebalance)));
    output
}

/// One running task of each node that has any, starting with the fullest node.
fn fullest_first<'a>(state: &'a State, service: &Service) -> Vec<&'a Task> {
    let mut nodes: std::collections::BTreeMap<&NodeId, (u32, &Task)> = std::collections::BTreeMap::new();
    let slots = state
        .tasks_of(&service.id)
        .into_iter()
        .flat_map(|index| index.wanted.keys());
    for slot in slots {
        let is_number = matches!(slot, Slot::Number(_));
        for task in state
            .slot(&service.id, slot)
            .filter(|task| is_number && task.is_running())
        {
            if let Some(node) = &task.node {
                let entry = nodes.entry(node).or_insert((0, task));
                *entry = (entry.0 + 1, task);
            }
        }
    }
    let mut fullest: Vec<(u32, &Task)> = nodes.into_values().collect();
    fullest.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.id.cmp(&other.1.id)));
    fullest.into_iter().map(|(_, task)| task).collect()
}

fn put(service: &Arc<Service>, rebalance: Option<crate::objects::Rebalance>) -> ObjectChange {
    ObjectChange::PutService(Arc::new(Service {
        rebalance,
        ..(**service).clone()
    }))
}
