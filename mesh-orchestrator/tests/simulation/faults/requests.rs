//! What users ask of a machine while things fail, and what the machines answered: an acknowledged change is
//! in the store once, a refused one is not there at all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_orchestrator::{
    cluster::{ChangeError, Changed, Cluster},
    commands::{self, CommandError},
    objects::{Availability, NodeId, ObjectChange, ServiceId, State, Timestamp},
    spec::ServiceSpec,
    store::StoreError,
};

use crate::{
    random::Random,
    users::{change, new_spec, read},
};

/// The service that is counted up.
const COUNTER: &str = "counter";
/// The label that is counted.
const COUNT: &str = "count";
const MAX_SERVICES: usize = 4;

/// How often something was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    /// It was acknowledged.
    surely: u64,
    /// No answer, or none yet.
    perhaps: u64,
}

/// What the machines answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<Subject, Times>>>);

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Count,
    Create(ServiceId),
    Remove(ServiceId),
}

/// What a user asks for.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Count,
    Create(ServiceId, Box<ServiceSpec>),
    Update(ServiceId, Box<ServiceSpec>, u64),
    Scale(ServiceId, u32),
    RollBack(ServiceId),
    Rebalance(ServiceId),
    Remove(ServiceId),
    SetAvailability(NodeId, Availability),
}

/// The service that is counted up; its tasks change as well, so that the loops write it meanwhile.
pub(crate) fn counter() -> Result<Request, String> {
    let spec = read(&serde_json::json!({
        "name": COUNTER,
        "mode": { "replicated": { "replicas": 2 } },
        "task_template": { "container_spec": { "image": "good" } },
        "update_config": { "parallelism": 1, "failure_action": "continue", "monitor": "0" },
    }))?;
    Ok(Request::Create(ServiceId::from(COUNTER), Box::new(spec)))
}

/// Draws a request from what a machine knows.
pub(crate) fn draw(random: &mut Random, state: &State, number: u64) -> Result<Request, String> {
    let counter = ServiceId::from(COUNTER);
    let services: Vec<_> = state
        .services()
        .values()
        .filter(|service| service.id != counter)
        .collect();
    let create = |random: &mut Random| {
        let id = ServiceId::from(format!("service{number}").as_str());
        Ok::<_, String>(Request::Create(id, Box::new(new_spec(random, number)?)))
    };
    match random.below(10) {
        0..=3 => return Ok(Request::Count),
        4 => {
            let nodes: Vec<_> = state.nodes().keys().collect();
            let availability =
                random.one_of(&[Availability::Active, Availability::Active, Availability::Drain]);
            if !nodes.is_empty() {
                return Ok(Request::SetAvailability(
                    random.one_of(&nodes).clone(),
                    availability,
                ));
            }
        }
        5 if services.len() < MAX_SERVICES => return create(random),
        _ => {}
    }
    if services.is_empty() {
        return create(random);
    }
    let service = random.one_of(&services);
    let id = service.id.clone();
    Ok(match random.below(8) {
        0 | 1 => Request::Scale(id, u32::try_from(random.below(6)).unwrap_or(0)),
        2 => Request::RollBack(id),
        3 => Request::Rebalance(id),
        4 => Request::Remove(id),
        _ => Request::Update(id, Box::new(change(random, service)?), service.version),
    })
}

impl Request {
    /// Makes the request and notes the answer.
    pub(crate) async fn make(self, cluster: Cluster, ledger: Ledger) {
        let subject = match &self {
            Self::Count => Some(Subject::Count),
            Self::Create(id, _) => Some(Subject::Create(id.clone())),
            Self::Remove(id) => Some(Subject::Remove(id.clone())),
            _ => None,
        };
        if let Some(subject) = &subject {
            ledger.times().entry(subject.clone()).or_default().perhaps += 1;
        }
        let author = cluster.author("someone", "change");
        let made = cluster.change(author, |state, now| self.plan(state, now)).await;
        if let Some(subject) = subject {
            ledger.note(subject, &made);
        }
    }

    fn plan(&self, state: &State, now: Timestamp) -> Result<Vec<ObjectChange>, CommandError> {
        match self {
            Self::Count => count_up(state, now),
            Self::Create(id, spec) => commands::create_service(state, id.clone(), (**spec).clone(), now),
            Self::Update(id, spec, version) => {
                commands::update_service(state, id, *version, (**spec).clone(), now)
            }
            Self::Scale(id, replicas) => commands::scale_service(state, id, *replicas, now),
            Self::RollBack(id) => commands::rollback_service(state, id, now),
            Self::Rebalance(id) => commands::rebalance_service(state, id, now),
            Self::Remove(id) => commands::remove_service(state, id),
            Self::SetAvailability(node, availability) => {
                commands::modify_node(state, node, Some(*availability), &BTreeMap::new(), now)
            }
        }
    }
}

fn count(state: &State) -> Option<u64> {
    let counter = state.service(&ServiceId::from(COUNTER))?;
    Some(
        counter
            .spec
            .labels
            .get(COUNT)
            .and_then(|count| count.parse().ok())
            .unwrap_or(0),
    )
}

fn count_up(state: &State, now: Timestamp) -> Result<Vec<ObjectChange>, CommandError> {
    let id = ServiceId::from(COUNTER);
    let counter = state
        .service(&id)
        .ok_or_else(|| CommandError::UnknownService(id.clone()))?;
    let next = count(state).unwrap_or(0) + 1;
    let mut spec = (*counter.spec).clone();
    spec.labels.insert(COUNT.to_owned(), next.to_string());
    if next.is_multiple_of(3) {
        let mut task = (*spec.task_template).clone();
        task.force_update = next;
        spec.task_template = Arc::new(task);
    }
    commands::update_service(state, &id, counter.version, spec, now)
}

impl Ledger {
    fn times(&self) -> MutexGuard<'_, BTreeMap<Subject, Times>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, subject: Subject, made: &Result<Changed, ChangeError>) {
        let mut times = self.times();
        let times = times.entry(subject).or_default();
        match made {
            Ok(_) => {
                times.perhaps -= 1;
                times.surely += 1;
            }
            Err(ChangeError::Store(StoreError::OutcomeUnknown { .. })) => {}
            Err(_) => times.perhaps -= 1,
        }
    }

    /// Whether the store has what was acknowledged, and nothing that was refused.
    pub(crate) fn check(&self, state: &State) -> Result<(), String> {
        let all = self.times();
        let times = |subject: Subject| all.get(&subject).copied().unwrap_or_default();
        for (subject, times_made) in all.iter() {
            match subject {
                Subject::Count => {
                    let found = count(state).unwrap_or(0);
                    let Times { surely, perhaps } = *times_made;
                    if found < surely || found > surely + perhaps {
                        return Err(format!(
                            "counted to {found}: {surely} times acknowledged, {perhaps} times without an answer"
                        ));
                    }
                }
                Subject::Create(id) => {
                    let is_there = state.service(id).is_some();
                    let created = *times_made;
                    let removed = times(Subject::Remove(id.clone()));
                    if created == Times::default() && is_there {
                        return Err(format!("{id} is there, but its creation was refused"));
                    }
                    if created.surely > 0 && removed == Times::default() && !is_there {
                        return Err(format!("{id} was created and is not there"));
                    }
                    if removed.surely > 0 && is_there {
                        return Err(format!("{id} was removed and is there"));
                    }
                }
                Subject::Remove(_) => {}
            }
        }
        Ok(())
    }
}
