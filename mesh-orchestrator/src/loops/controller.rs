//! Runs the loops: passes each what has changed and applies its output, until nothing changes any more.

use std::collections::BTreeSet;

use super::{
    LoopOutput, Round, Subject, Wake, dependencies, global, jobs, nodes, reaper, rebalance, replicated,
    restart, scheduler, slots, update,
};
use crate::{
    objects::{Events, ObjectChange, Refused, ServiceId, Slot, State, Timestamp, Touched},
    spec::ServiceMode,
};

/// Maximum number of rounds in one step, so that no fault can make it run forever. The rest waits for the
/// next step.
const MAX_ROUNDS: u32 = 32;

/// The state, and the events that the loops have not processed yet.
///
/// Invariant: a new controller with the same objects comes to the same decisions, sooner or later. Nothing
/// that decisions depend on is kept outside the objects, except the failures that make the scheduler avoid a
/// node.
#[derive(Clone, Debug, Default)]
pub struct Controller {
    state: State,
    events: Events,
    wakes: BTreeSet<Wake>,
    /// The events that the last step started with.
    processed: Events,
}

impl Controller {
    /// Starts with a state; the first step examines all of it.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self {
            events: state.everything(),
            state,
            wakes: BTreeSet::new(),
            processed: Events::default(),
        }
    }

    /// The cluster's state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Applies a change that comes from a user, an agent or the store.
    ///
    /// # Errors
    /// If it cannot be applied. The state is unchanged then.
    pub fn apply(&mut self, change: &ObjectChange) -> Result<(), Refused> {
        let events = self.state.apply(change)?;
        self.events.extend(events);
        Ok(())
    }

    /// When to step again if nothing changes until then.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        if self.events.is_empty() {
            self.wakes.first().map(|wake| wake.at)
        } else {
            Some(Timestamp::default())
        }
    }

    /// Runs the loops. Their changes have been applied already and are returned to be stored.
    ///
    /// `seed` must be different in each step.
    ///
    /// # Errors
    /// If a change of a loop cannot be applied, which would be a bug.
    pub fn step(&mut self, now: Timestamp, seed: u128) -> Result<Vec<ObjectChange>, Refused> {
        let mut made = Vec::new();
        self.wake(now);
        self.processed.clone_from(&self.events);
        for number in 0..MAX_ROUNDS {
            let events = std::mem::take(&mut self.events);
            if events.is_empty() {
                break;
            }
            let round = Round {
                now,
                seed: seed.wrapping_add(u128::from(number) << 64),
            };
            self.run(&round, &events, &mut made)?;
        }
        Ok(made)
    }

    /// Makes the next step process the events of the last one again. To be called when its changes were not
    /// stored, or not all of them, after the state has been reset to what is stored.
    pub fn undo(&mut self) {
        let events = std::mem::take(&mut self.processed);
        self.events.extend(events);
    }

    /// Turns the wakes that are due into events.
    fn wake(&mut self, now: Timestamp) {
        while self.wakes.first().is_some_and(|wake| wake.at <= now) {
            match self.wakes.pop_first().map(|wake| wake.subject) {
                Some(Subject::Service(service)) => self.events.touch_service(&service),
                Some(Subject::Slot(service, slot)) => self.events.touch_slot(&service, &slot),
                Some(Subject::Node(node)) => drop(self.events.nodes.insert(node)),
                None => {}
            }
        }
    }

    fn run(&mut self, round: &Round, events: &Events, made: &mut Vec<ObjectChange>) -> Result<(), Refused> {
        for node in &events.nodes {
            let output = nodes::nodes(round, &self.state, node);
            self.follow(output, made)?;
        }
        if !events.nodes.is_empty() {
            let services: Vec<ServiceId> = self.state.global().iter().cloned().collect();
            for id in services {
                if let Some(service) = self.state.service(&id).cloned() {
                    let output = global::global(round, &self.state, &service, events.nodes.iter());
                    self.follow(output, made)?;
                }
            }
        }
        for (id, touched) in &events.services {
            self.run_service(round, id, touched, made)?;
        }
        if !events.services.is_empty() {
            let waiting: Vec<ServiceId> = self.state.waiting().iter().cloned().collect();
            for id in waiting {
                self.depend(round, &id, made)?;
            }
        }
        if events.unplaced {
            let groups: Vec<_> = self
                .state
                .unplaced()
                .map(|(id, version, _)| (id.clone(), version))
                .collect();
            for (id, version) in groups {
                if let Some(tasks) = self.state.unplaced_of(&id, version) {
                    let output = scheduler::schedule(round, &self.state, tasks);
                    self.follow(output, made)?;
                }
            }
        }
        Ok(())
    }

    fn run_service(
        &mut self,
        round: &Round,
        id: &ServiceId,
        touched: &Touched,
        made: &mut Vec<ObjectChange>,
    ) -> Result<(), Refused> {
        let Some(service) = self.state.service(id).cloned() else {
            let output = reaper::remove_all(round, &self.state, id);
            self.follow(output, made)?;
            for slot in self.slots(id, touched) {
                let output = reaper::reap(&self.state, id, &slot);
                self.follow(output, made)?;
            }
            return Ok(());
        };
        let output = match service.spec.mode {
            ServiceMode::Replicated(settings) => {
                replicated::replicated(round, &self.state, &service, settings.replicas)
            }
            ServiceMode::ReplicatedJob(job) => jobs::replicated_job(round, &self.state, &service, job),
            ServiceMode::GlobalJob(_) if touched.service => jobs::outdated(round, &self.state, &service),
            ServiceMode::Global(_) | ServiceMode::GlobalJob(_) => LoopOutput::default(),
        };
        self.follow(output, made)?;
        if service.spec.mode.is_global() && touched.service {
            let gone: Vec<_> = self
                .state
                .tasks_of(id)
                .into_iter()
                .flat_map(|index| index.slots.keys())
                .filter_map(|slot| match slot {
                    Slot::Node(node) if !self.state.nodes().contains_key(node) => Some(node.clone()),
                    Slot::Node(_) | Slot::Number(_) => None,
                })
                .collect();
            let output = global::global(
                round,
                &self.state,
                &service,
                self.state.nodes().keys().chain(&gone),
            );
            self.follow(output, made)?;
        }
        for slot in self.slots(id, touched) {
            let output = restart::restart(round, &self.state, &service, &slot);
            self.follow(output, made)?;
            let output = slots::settle(round, &self.state, &service, &slot);
            self.follow(output, made)?;
            let output = slots::promote(round, &self.state, &service, &slot);
            self.follow(output, made)?;
            let output = reaper::reap(&self.state, id, &slot);
            self.follow(output, made)?;
        }
        let output = update::update(round, &self.state, &service);
        self.follow(output, made)?;
        // The update may have changed the service.
        if let Some(service) = self.state.service(id).cloned() {
            let output = rebalance::rebalance(round, &self.state, &service);
            self.follow(output, made)?;
        }
        if touched.service {
            self.depend(round, id, made)?;
        }
        Ok(())
    }

    fn depend(&mut self, round: &Round, id: &ServiceId, made: &mut Vec<ObjectChange>) -> Result<(), Refused> {
        if let Some(service) = self.state.service(id).cloned() {
            let output = dependencies::dependencies(round, &self.state, &service);
            self.follow(output, made)?;
        }
        Ok(())
    }

    fn slots(&self, id: &ServiceId, touched: &Touched) -> Vec<Slot> {
        if !touched.service {
            return touched.slots.iter().cloned().collect();
        }
        let index = self.state.tasks_of(id);
        index
            .into_iter()
            .flat_map(|index| index.slots.keys())
            .cloned()
            .collect()
    }

    fn follow(&mut self, output: LoopOutput, made: &mut Vec<ObjectChange>) -> Result<(), Refused> {
        self.wakes.extend(output.wakes);
        for change in output.changes {
            self.apply(&change)?;
            made.push(change);
        }
        Ok(())
    }
}
