//! One seeded history of a simulated cluster.
//!
//! Users create, change, scale and remove services; nodes join, fall silent, lose power, are drained and come
//! back; containers start slowly, crash, or have no image. The invariants are checked after every single
//! change. At the end nothing fails any more, and the cluster must settle in the state that users asked for.

use std::collections::BTreeMap;

use mesh_orchestrator::{
    loops::Controller,
    objects::{ObjectChange, Refused, State, Timestamp},
};

use crate::{
    agents::Agents,
    invariants::{Violation, Watcher},
    random::Random,
    users::Users,
};

/// The start of a history: any time will do.
const START: Timestamp = Timestamp(1_700_000_000_000);
/// Steps in which the cluster must settle once nothing fails any more.
const STEPS_TO_SETTLE: u32 = 20_000;

/// What happened in a history, to see that a set of histories covers enough.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Changes that were made, by kind.
    pub(crate) changes: BTreeMap<&'static str, u64>,
    /// Finished updates, by their outcome.
    pub(crate) updates: BTreeMap<String, u64>,
    /// Simulated time, in milliseconds.
    pub(crate) milliseconds: u64,
}

/// A cluster, its users and its failures.
pub(crate) struct Simulation {
    now: Timestamp,
    random: Random,
    controller: Controller,
    watcher: Watcher,
    agents: Agents,
    users: Users,
    summary: Summary,
}

/// Runs one history of this many steps.
///
/// # Errors
/// The violated invariant, and when and how it was violated.
pub(crate) fn run(seed: u64, steps: u32) -> Result<Summary, Violation> {
    let mut simulation = Simulation::new(seed);
    let locate = |now: Timestamp| {
        move |text: String| Violation {
            seed,
            at: now.since(START),
            text,
        }
    };
    simulation.populate().map_err(locate(simulation.now))?;
    for _ in 0..steps {
        simulation.step().map_err(locate(simulation.now))?;
    }
    simulation.settle().map_err(locate(simulation.now))?;
    simulation.summary.milliseconds =
        u64::try_from(simulation.now.since(START).as_millis()).unwrap_or(u64::MAX);
    Ok(simulation.summary)
}

impl Simulation {
    fn new(seed: u64) -> Self {
        Self {
            now: START,
            random: Random::new(seed),
            controller: Controller::default(),
            watcher: Watcher::default(),
            agents: Agents::default(),
            users: Users::default(),
            summary: Summary::default(),
        }
    }

    fn populate(&mut self) -> Result<(), String> {
        for _ in 0..self.random.between(1, 7) {
            let changes = self
                .agents
                .join(&mut self.random, self.controller.state(), self.now);
            self.make(&changes)?;
        }
        self.decide()
    }

    /// Something happens, time passes, and the loops react.
    fn step(&mut self) -> Result<(), String> {
        let state = self.controller.state();
        let changes = match self.random.below(10) {
            0..=2 => self.users.act(&mut self.random, state, self.now)?,
            3 => self.agents.fail(&mut self.random, state, self.now),
            _ => Vec::new(),
        };
        self.make(&changes)?;
        if self.random.chance(1, 250) {
            self.change_leader()?;
        }
        self.now = self.now + std::time::Duration::from_millis(self.random.between(1, 4_000));
        let reports = self
            .agents
            .work(&mut self.random, self.controller.state(), self.now);
        self.make(&reports)?;
        self.decide()
    }

    /// Nothing fails any more: the cluster must settle.
    fn settle(&mut self) -> Result<(), String> {
        let changes = self.agents.calm(self.controller.state(), self.now);
        self.make(&changes)?;
        for _ in 0..STEPS_TO_SETTLE {
            self.decide()?;
            let reports = self
                .agents
                .work(&mut self.random, self.controller.state(), self.now);
            self.make(&reports)?;
            if !reports.is_empty() {
                continue;
            }
            let next = [self.agents.next_due(), self.controller.wake_at()]
                .into_iter()
                .flatten()
                .min();
            match next {
                Some(time) => self.now = self.now.max(time),
                None => {
                    for service in self.controller.state().services().values() {
                        if let Some(status) = &service.update_status {
                            *self
                                .summary
                                .updates
                                .entry(format!("{:?}", status.state))
                                .or_default() += 1;
                        }
                    }
                    return self
                        .watcher
                        .settled(self.controller.state(), &self.users, self.now);
                }
            }
        }
        Err(format!("does not settle in {STEPS_TO_SETTLE} steps"))
    }

    /// Makes changes of users and agents. Late reports are refused, as in reality.
    fn make(&mut self, changes: &[ObjectChange]) -> Result<(), String> {
        for change in changes {
            match self.controller.apply(change) {
                Ok(()) => self.watch(change, false)?,
                Err(Refused::Backwards { .. } | Refused::UnknownTask(_)) => {}
                Err(error) => return Err(format!("a change of a user or agent was refused: {error}")),
            }
        }
        Ok(())
    }

    fn decide(&mut self) -> Result<(), String> {
        if self.random.chance(1, 20) {
            self.decide_and_undo()?;
        }
        let seed = u128::from(self.random.number()) << 64 | u128::from(self.random.number());
        let made = self
            .controller
            .step(self.now, seed)
            .map_err(|error| format!("a loop planned what does not apply: {error}"))?;
        for change in &made {
            self.watch(change, true)?;
        }
        // Comparing whole states takes longer than everything else.
        if self.random.chance(1, 100) {
            self.watcher.same(self.controller.state())?;
        }
        Ok(())
    }

    /// The store refuses the loops' decisions: all of them are undone, and made again later.
    fn decide_and_undo(&mut self) -> Result<(), String> {
        let stored = self.controller.state().clone();
        let seed = u128::from(self.random.number()) << 64 | u128::from(self.random.number());
        let made = self
            .controller
            .step(self.now, seed)
            .map_err(|error| format!("a loop planned what does not apply: {error}"))?;
        for change in made.iter().rev() {
            let undo = match change {
                ObjectChange::PutService(service) => {
                    stored.service(&service.id).cloned().map(ObjectChange::PutService)
                }
                ObjectChange::PutPorts(_) => Some(ObjectChange::PutPorts(stored.port_ledger().clone())),
                ObjectChange::CreateTask(task) | ObjectChange::PutTask(task) => {
                    Some(ObjectChange::RemoveTask(task.id.clone()))
                }
                ObjectChange::Assign { task, .. }
                | ObjectChange::SetDesired { task, .. }
                | ObjectChange::Observe { task, .. }
                | ObjectChange::GiveUp(task)
                | ObjectChange::RemoveTask(task) => stored
                    .tasks()
                    .get(task)
                    .map(|task| ObjectChange::PutTask(Box::new(task.clone()))),
                ObjectChange::RemoveService(_) | ObjectChange::PutNode(_) | ObjectChange::RemoveNode(_) => {
                    None
                }
            };
            if let Some(undo) = undo {
                self.controller.apply(&undo).map_err(|error| error.to_string())?;
            }
        }
        self.controller.undo();
        Ok(())
    }

    fn watch(&mut self, change: &ObjectChange, is_ours: bool) -> Result<(), String> {
        let kind = match change {
            ObjectChange::PutService(_) => "put service",
            ObjectChange::RemoveService(_) => "remove service",
            ObjectChange::PutNode(_) => "put node",
            ObjectChange::RemoveNode(_) => "remove node",
            ObjectChange::PutPorts(_) => "put ports",
            ObjectChange::CreateTask(_) => "create task",
            ObjectChange::PutTask(_) => "put task",
            ObjectChange::Assign { .. } => "assign",
            ObjectChange::SetDesired { .. } => "set desired",
            ObjectChange::GiveUp(_) => "give up",
            ObjectChange::Observe { .. } => "observe",
            ObjectChange::RemoveTask(_) => "remove task",
        };
        *self.summary.changes.entry(kind).or_default() += 1;
        self.watcher.watch(change, is_ours)
    }

    /// A new leader starts from the stored objects, and nothing else.
    fn change_leader(&mut self) -> Result<(), String> {
        let old = self.controller.state();
        let mut state = State::default();
        let objects = old
            .nodes()
            .values()
            .map(|node| ObjectChange::PutNode(Box::new(node.clone())))
            .chain(
                old.services()
                    .values()
                    .map(|service| ObjectChange::PutService(service.clone())),
            )
            .chain(
                old.tasks()
                    .values()
                    .map(|task| ObjectChange::CreateTask(Box::new(task.clone()))),
            )
            .chain([ObjectChange::PutPorts(old.port_ledger().clone())]);
        for change in objects {
            let json = serde_json::to_vec(&change).map_err(|error| error.to_string())?;
            let change: ObjectChange = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
            state.apply(&change).map_err(|error| error.to_string())?;
        }
        self.controller = Controller::new(state);
        Ok(())
    }
}
