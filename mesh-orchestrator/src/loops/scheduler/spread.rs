//! The order in which nodes take tasks: evenly over the values of each preference, then fewest tasks of the
//! service, then fewest tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    objects::{Node, NodeId, State, Task, Timestamp, state::FAILURES_TO_AVOID},
    spec::{Resources, Spread},
};

/// Time during which a node that has become ready again takes no more than its share.
pub(super) const RETURN_PERIOD: Duration = Duration::from_secs(300);

/// A node that could take a task, and what it has so far.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) id: &'a NodeId,
    pub(super) free: Resources,
    /// Wanted tasks of the service on it.
    pub(super) service: u32,
    /// Wanted tasks on it.
    pub(super) total: u32,
    /// Tasks of this group that were just placed on it.
    pub(super) added: u32,
    /// Whether the service has recently failed there too often.
    avoided: bool,
    /// Set if it has recently become ready again: with this total or more, other nodes go first.
    share: Option<u32>,
}

/// Compares by: recent failures, above its share, tasks of the service, all tasks, id. Less is better.
pub(super) type Key<'a> = (bool, bool, u32, u32, &'a NodeId);

impl<'a> Candidate<'a> {
    pub(super) fn new(state: &State, node: &'a Node, task: &Task, now: Timestamp) -> Self {
        let index = state.tasks_on(&node.id);
        let service = index
            .and_then(|index| index.services.get(&task.service))
            .copied()
            .unwrap_or(0);
        let failures = state.recent_failures(&node.id, &task.service, task.spec_version, now);
        Self {
            id: &node.id,
            free: node
                .resources
                .minus(index.map_or(Resources::default(), |index| index.reserved)),
            service,
            total: index.map_or(0, |index| index.active),
            added: 0,
            avoided: failures >= FAILURES_TO_AVOID,
            share: None,
        }
    }

    /// Limits a node that has recently become ready again. It is empty, so without a limit it would take
    /// every task until it has as many of each service as the others.
    pub(super) fn limit_returned(&mut self, node: &Node, now: Timestamp, share: impl FnOnce() -> u32) {
        let is_back = |time: Timestamp| now.since(time) < RETURN_PERIOD;
        self.share = node.returned_at.is_some_and(is_back).then(share);
    }

    pub(super) fn add(&mut self, task: &Task) {
        self.free = self.free.minus(task.spec.resources.reservations);
        self.service += 1;
        self.total += 1;
        self.added += 1;
    }

    pub(super) fn key(&self) -> Key<'a> {
        let over = self.share.is_some_and(|share| self.total >= share);
        (self.avoided, over, self.service, self.total, self.id)
    }
}

/// The number of tasks per schedulable node if they were spread evenly, rounded up.
pub(super) fn fair_share(state: &State) -> u32 {
    let mut nodes = 0_u32;
    let mut total = 0_u32;
    for (tasks, _) in state.nodes_by_load().filter(|(_, node)| node.is_schedulable()) {
        nodes += 1;
        total += tasks;
    }
    total.div_ceil(nodes.max(1))
}

/// Candidates, grouped by the values of the spread preferences.
pub(super) struct Tree<'a> {
    preferences: &'a [Spread],
    root: Branch<'a>,
    /// The values of each candidate that was inserted.
    paths: BTreeMap<&'a NodeId, Vec<&'a str>>,
}

#[derive(Default)]
struct Branch<'a> {
    /// Tasks of the service on all nodes of the branch.
    tasks: u32,
    children: BTreeMap<&'a str, Branch<'a>>,
    /// Below the last preference: the nodes, the best first.
    order: BTreeSet<Key<'a>>,
    candidates: BTreeMap<&'a NodeId, Candidate<'a>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(preferences: &'a [Spread]) -> Self {
        Self {
            preferences,
            root: Branch::default(),
            paths: BTreeMap::new(),
        }
    }

    /// Adds a node with its tasks.
    pub(super) fn insert(&mut self, candidate: Candidate<'a>, node: &'a Node) {
        let path: Vec<&str> = self
            .preferences
            .iter()
            .map(|preference| node.attribute(&preference.spread))
            .collect();
        let mut branch = &mut self.root;
        for value in &path {
            branch.tasks += candidate.service;
            branch = branch.children.entry(value).or_default();
        }
        branch.tasks += candidate.service;
        self.paths.insert(candidate.id, path);
        branch.put(candidate);
    }

    /// Removes and returns the best node. Put it back if it can take another task.
    pub(super) fn take(&mut self) -> Option<Candidate<'a>> {
        self.root.take()
    }

    /// Puts a node back that [`Self::take`] returned.
    pub(super) fn put(&mut self, candidate: Candidate<'a>) {
        let mut branch = &mut self.root;
        for value in self.paths.get(candidate.id).into_iter().flatten() {
            branch = branch.children.entry(value).or_default();
        }
        branch.put(candidate);
    }

    /// The best node, if moving a task there from `from`, which has `from_count` tasks of the service, makes
    /// the spread better: at the first level at which the two nodes differ, the target must have at least two
    /// fewer.
    pub(super) fn improves(&mut self, from: &Node, from_count: u32) -> Option<&'a NodeId> {
        let best = self.root.best()?;
        if best.id == &from.id || best.avoided || best.key().1 {
            return None;
        }
        let (to, to_count) = (best.id, best.service);
        let mut branch = &self.root;
        for (index, preference) in self.preferences.iter().enumerate() {
            let to_value = self.paths.get(to).and_then(|path| path.get(index)).copied()?;
            let from_value = from.attribute(&preference.spread);
            let tasks = |value: &str| branch.children.get(value).map_or(0, |child| child.tasks);
            if to_value != from_value {
                // If no node of the old group is a candidate, the tree does not count that group's tasks.
                let old = tasks(from_value).max(from_count);
                return (tasks(to_value) + 2 <= old).then_some(to);
            }
            branch = branch.children.get(to_value)?;
        }
        (to_count + 2 <= from_count).then_some(to)
    }
}

impl<'a> Branch<'a> {
    fn put(&mut self, candidate: Candidate<'a>) {
        self.order.insert(candidate.key());
        self.candidates.insert(candidate.id, candidate);
    }

    fn by_tasks(&self) -> Vec<&'a str> {
        let mut values: Vec<(u32, &str)> = self
            .children
            .iter()
            .map(|(value, child)| (child.tasks, *value))
            .collect();
        values.sort_unstable();
        values.into_iter().map(|(_, value)| value).collect()
    }

    fn take(&mut self) -> Option<Candidate<'a>> {
        if let Some(key) = self.order.pop_first() {
            let candidate = self.candidates.remove(key.4)?;
            self.tasks += 1;
            return Some(candidate);
        }
        for value in self.by_tasks() {
            if let Some(candidate) = self.children.get_mut(value).and_then(Branch::take) {
                self.tasks += 1;
                return Some(candidate);
            }
        }
        None
    }

    fn best(&self) -> Option<&Candidate<'a>> {
        if let Some(key) = self.order.first() {
            return self.candidates.get(key.4);
        }
        self.by_tasks()
            .into_iter()
            .find_map(|value| self.children.get(value).and_then(Branch::best))
    }
}
