//! The nodes that can take a task without preferences, the best first. Examines as few as possible: nodes
//! come in the state's order by load, and those that already have tasks of the service are held back.

use std::collections::BTreeMap;

use super::{
    filter::{self, Reason},
    spread::{Candidate, Key, fair_share},
};
use crate::objects::{Node, State, Task, Timestamp};

/// Nodes in the order in which they take tasks.
pub(super) struct Queue<'a> {
    state: &'a State,
    task: &'a Task,
    now: Timestamp,
    /// The nodes that have not been examined yet, the emptiest first.
    rest: Box<dyn Iterator<Item = (u32, &'a Node)> + 'a>,
    next: Option<(u32, &'a Node)>,
    /// The examined nodes that can take a task.
    candidates: BTreeMap<Key<'a>, Candidate<'a>>,
    share: Option<u32>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(state: &'a State, task: &'a Task, now: Timestamp) -> Self {
        let mut rest = Box::new(state.nodes_by_load());
        Self {
            state,
            task,
            now,
            next: rest.next(),
            rest,
            candidates: BTreeMap::new(),
            share: None,
        }
    }

    /// Removes and returns the best node; `refused` counts those that cannot take any task of the group.
    pub(super) fn take(&mut self, refused: &mut BTreeMap<Reason, u32>) -> Option<Candidate<'a>> {
        while let Some((tasks, node)) = self.next {
            // No other node of the rest can be better than one without failures and tasks of the service.
            let best_possible: Key<'_> = (false, false, 0, tasks, &node.id);
            if self
                .candidates
                .first_key_value()
                .is_some_and(|(key, _)| *key < best_possible)
            {
                break;
            }
            self.next = self.rest.next();
            let mut candidate = Candidate::new(self.state, node, self.task, self.now);
            let (state, share) = (self.state, &mut self.share);
            candidate.limit_returned(node, self.now, || *share.get_or_insert_with(|| fair_share(state)));
            match filter::check(state, node, self.task).or_else(|| candidate.refuses(self.task)) {
                None => self.put(candidate),
                Some(reason) => *refused.entry(reason).or_default() += 1,
            }
        }
        self.candidates.pop_first().map(|(_, candidate)| candidate)
    }

    /// Puts a node back that [`Self::take`] returned.
    pub(super) fn put(&mut self, candidate: Candidate<'a>) {
        self.candidates.insert(candidate.key(), candidate);
    }
}
