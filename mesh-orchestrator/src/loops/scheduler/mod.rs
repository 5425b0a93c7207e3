//! Assigns tasks to nodes: a pipeline of filters, then the emptiest of the remaining nodes.
//!
//! Tasks of one specification version of a service are placed together, so that each node is examined once
//! for all of them. A task for which there is no node stays pending with the reason as its message.

mod filter;
mod queue;
mod spread;

use std::collections::{BTreeMap, BTreeSet};

pub use filter::{Reason, suits};
use queue::Queue;
use spread::{Candidate, Tree, fair_share};

use super::{LoopOutput, Round};
use crate::objects::{
    NodeId, ObjectChange, ServiceId, Slot, State, Task, TaskId, TaskState, TaskStatus, Timestamp,
};

/// Places the tasks of one specification version of a service.
#[must_use]
pub fn schedule(round: &Round, state: &State, tasks: &BTreeSet<(Slot, TaskId)>) -> LoopOutput {
    let mut output = LoopOutput::default();
    let mut anywhere: Vec<&Task> = Vec::new();
    for task in tasks.iter().filter_map(|(_, id)| state.tasks().get(id)) {
        match &task.node {
            Some(node) => schedule_on(&mut output, round, state, task, node),
            None => anywhere.push(task),
        }
    }
    let Some(first) = anywhere.first() else {
        return output;
    };
    let mut refused: BTreeMap<Reason, u32> = BTreeMap::new();
    let mut candidates = Candidates::new(round, state, first, &mut refused);
    let mut explanation = None;
    for task in anywhere {
        match candidates.take(&mut refused) {
            Some(mut candidate) => {
                assign(&mut output, task, candidate.id, round.now);
                candidate.add(task);
                match candidate.refuses(task) {
                    None => candidates.put(candidate),
                    Some(reason) => *refused.entry(reason).or_default() += 1,
                }
            }
            None => {
                let message = explanation.get_or_insert_with(|| explain(&refused));
                set_message(&mut output, task, message, round.now);
            }
        }
    }
    output
}

/// The nodes that can take a group of tasks, the best first.
enum Candidates<'a> {
    /// Without preferences: examines no more nodes than needed.
    Queue(Queue<'a>),
    /// With preferences: examines all nodes, because every group of nodes must be known.
    Tree(Tree<'a>),
}

impl<'a> Candidates<'a> {
    fn new(round: &Round, state: &'a State, task: &'a Task, refused: &mut BTreeMap<Reason, u32>) -> Self {
        if task.spec.placement.preferences.is_empty() {
            Self::Queue(Queue::new(state, task, round.now))
        } else {
            Self::Tree(tree(state, task, round.now, refused))
        }
    }

    fn take(&mut self, refused: &mut BTreeMap<Reason, u32>) -> Option<Candidate<'a>> {
        match self {
            Self::Queue(queue) => queue.take(refused),
            Self::Tree(tree) => tree.take(),
        }
    }

    fn put(&mut self, candidate: Candidate<'a>) {
        match self {
            Self::Queue(queue) => queue.put(candidate),
            Self::Tree(tree) => tree.put(candidate),
        }
    }
}

/// Places a task that is bound to a node: on that node or nowhere.
fn schedule_on(output: &mut LoopOutput, round: &Round, state: &State, task: &Task, id: &NodeId) {
    let refusal = match state.nodes().get(id) {
        None => Some(Reason::NotReady),
        Some(node) => filter::check(state, node, task)
            .or_else(|| Candidate::new(state, node, task, round.now).refuses(task)),
    };
    match refusal {
        None => assign(output, task, id, round.now),
        Some(reason) => set_message(output, task, &explain(&BTreeMap::from([(reason, 1)])), round.now),
    }
}

/// All nodes that can take a task; counts the reasons why the others cannot.
fn tree<'a>(
    state: &'a State,
    task: &'a Task,
    now: Timestamp,
    refused: &mut BTreeMap<Reason, u32>,
) -> Tree<'a> {
    let mut tree = Tree::new(&task.spec.placement.preferences);
    let mut share = None;
    for node in state.nodes().values() {
        let mut candidate = Candidate::new(state, node, task, now);
        candidate.limit_returned(node, now, || *share.get_or_insert_with(|| fair_share(state)));
        match filter::check(state, node, task).or_else(|| candidate.refuses(task)) {
            None => tree.insert(candidate, node),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    tree
}

/// The node that a running task could move to, if that spreads the service better.
#[must_use]
pub fn better_node<'a>(round: &Round, state: &'a State, task: &'a Task) -> Option<&'a NodeId> {
    let from = state.nodes().get(task.node.as_ref()?)?;
    let mut ignored = BTreeMap::new();
    let mut tree = tree(state, task, round.now, &mut ignored);
    tree.improves(
        from,
        state
            .tasks_on(&from.id)
            .map_or(0, |index| service_count(index, &task.service)),
    )
}

fn service_count(index: &crate::objects::index::NodeIndex, service: &ServiceId) -> u32 {
    index.services.get(service).copied().unwrap_or(0)
}

fn assign(output: &mut LoopOutput, task: &Task, node: &NodeId, at: Timestamp) {
    output.push(ObjectChange::Assign {
        task: task.id.clone(),
        node: node.clone(),
        at,
    });
}

fn set_message(output: &mut LoopOutput, task: &Task, message: &str, now: Timestamp) {
    if task.status.message != message {
        output.push(ObjectChange::Observe {
            task: task.id.clone(),
            status: TaskStatus::new(TaskState::Pending, now, message),
        });
    }
}

/// `no suitable node (insufficient memory on 2 nodes; constraint not met on 1)`
fn explain(refused: &BTreeMap<Reason, u32>) -> String {
    if refused.is_empty() {
        return "no suitable node (there are no nodes)".into();
    }
    let mut reasons: Vec<(Reason, u32)> = refused.iter().map(|(reason, count)| (*reason, *count)).collect();
    // The most frequent reason first.
    reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
    let parts: Vec<String> = reasons
        .iter()
        .enumerate()
        .map(|(index, (reason, count))| {
            let unit = match (index, count) {
                (0, 1) => " node",
                (0, _) => " nodes",
                _ => "",
            };
            format!("{reason} on {count}{unit}")
        })
        .collect();
    format!("no suitable node ({})", parts.join("; "))
}

#[cfg(test)]
mod tests;
