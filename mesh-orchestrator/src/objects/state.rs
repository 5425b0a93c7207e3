//! The cluster's state in memory: the objects, their indexes, and the only way to change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use super::{
    Events, Node, NodeId, ObjectChange, PortLedger, Refused, Service, ServiceId, Slot, Task, TaskId,
    TaskState, TaskStatus, Timestamp,
    index::{Indexes, NodeIndex, ServiceIndex},
};
use crate::spec::Protocol;

/// How many recent failures of a service on a node make the scheduler avoid that node for it.
pub const FAILURES_TO_AVOID: usize = 5;
/// How long a failure counts as recent.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(300);

/// All objects of the cluster.
#[derive(Clone, Debug, Default)]
pub struct State {
    services: BTreeMap<ServiceId, Arc<Service>>,
    nodes: BTreeMap<NodeId, Node>,
    tasks: BTreeMap<TaskId, Task>,
    ports: PortLedger,
    names: BTreeMap<String, ServiceId>,
    published: BTreeMap<(Protocol, u16), ServiceId>,
    waiting: BTreeSet<ServiceId>,
    global: BTreeSet<ServiceId>,
    indexes: Indexes,
    /// The last failures of each service and task version on each node. Not stored: losing them costs at most
    /// a few more failures.
    failures: BTreeMap<(NodeId, ServiceId, u64), Vec<Timestamp>>,
}

impl State {
    /// Services by id.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<ServiceId, Arc<Service>> {
        &self.services
    }

    /// Nodes by id.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// Tasks by id.
    #[must_use]
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// Which port was assigned to which service.
    #[must_use]
    pub fn port_ledger(&self) -> &PortLedger {
        &self.ports
    }

    /// A service by its id.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// A service by its name.
    #[must_use]
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.names.get(name).and_then(|id| self.services.get(id))
    }

    /// The service that publishes a port in ingress mode.
    #[must_use]
    pub fn publisher(&self, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        self.published
            .get(&(protocol, port))
            .and_then(|id| self.services.get(id))
    }

    /// Services that wait for their dependencies.
    #[must_use]
    pub fn waiting(&self) -> &BTreeSet<ServiceId> {
        &self.waiting
    }

    /// Services that have a task on each suitable node.
    #[must_use]
    pub fn global(&self) -> &BTreeSet<ServiceId> {
        &self.global
    }

    /// The index of a service's tasks; `None` if it has none.
    #[must_use]
    pub fn tasks_of(&self, service: &ServiceId) -> Option<&ServiceIndex> {
        self.indexes.services.get(service)
    }

    /// The index of a node's tasks; `None` if neither the node nor a task on it is known.
    #[must_use]
    pub fn tasks_on(&self, node: &NodeId) -> Option<&NodeIndex> {
        self.indexes.nodes.get(node)
    }

    /// Services that have tasks, including removed services.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &ServiceId> {
        self.indexes.services.keys()
    }

    /// Nodes that have tasks, including removed nodes.
    pub fn nodes_with_tasks(&self) -> impl Iterator<Item = &NodeId> {
        let occupied = self
            .indexes
            .nodes
            .iter()
            .filter(|(_, index)| !index.tasks.is_empty());
        occupied.map(|(node, _)| node)
    }

    /// Nodes with their number of wanted tasks, the emptiest first.
    pub fn nodes_by_load(&self) -> impl Iterator<Item = (u32, &Node)> {
        self.indexes
            .load
            .iter()
            .filter_map(|(tasks, id)| Some((*tasks, self.nodes.get(id)?)))
    }

    /// The tasks of a slot, the oldest first.
    pub fn slot(&self, service: &ServiceId, slot: &Slot) -> impl DoubleEndedIterator<Item = &Task> {
        self.tasks_of(service)
            .and_then(|index| index.slots.get(slot))
            .into_iter()
            .flatten()
            .filter_map(|(_, id)| self.tasks.get(id))
    }

    /// Tasks that wait for a node, grouped by service and specification version.
    pub fn unplaced(&self) -> impl Iterator<Item = (&ServiceId, u64, &BTreeSet<(Slot, TaskId)>)> {
        self.indexes
            .unplaced
            .iter()
            .map(|((service, version), tasks)| (service, *version, tasks))
    }

    /// Tasks of one specification version of a service that wait for a node.
    #[must_use]
    pub fn unplaced_of(&self, service: &ServiceId, version: u64) -> Option<&BTreeSet<(Slot, TaskId)>> {
        self.indexes.unplaced.get(&(service.clone(), version))
    }

    /// The number of tasks, ended ones too, that have a specification version of a service.
    #[must_use]
    pub fn users(&self, service: &ServiceId, version: u64) -> u32 {
        let nodes = self.tasks_of(service).and_then(|index| index.specs.get(&version));
        nodes.map_or(0, |nodes| nodes.values().sum())
    }

    /// Whether a task with a specification version of a service is, or was, on a node.
    #[must_use]
    pub fn is_used_on(&self, node: &NodeId, service: &ServiceId, version: u64) -> bool {
        let nodes = self.tasks_of(service).and_then(|index| index.specs.get(&version));
        nodes.is_some_and(|nodes| nodes.contains_key(&Some(node.clone())))
    }

    /// How often this version of a service has recently failed on a node.
    #[must_use]
    pub fn recent_failures(&self, node: &NodeId, service: &ServiceId, version: u64, now: Timestamp) -> usize {
        if self.failures.is_empty() {
            return 0;
        }
        self.failures
            .get(&(node.clone(), service.clone(), version))
            .map_or(0, |times| {
                times
                    .iter()
                    .filter(|time| now.since(**time) < FAILURE_MEMORY)
                    .count()
            })
    }

    /// Events that mark everything as changed: what the control loops start with.
    #[must_use]
    pub fn everything(&self) -> Events {
        let mut events = Events {
            unplaced: true,
            ..Events::default()
        };
        for service in self.services.keys().chain(self.indexes.services.keys()) {
            events.touch_service(service);
        }
        events
            .nodes
            .extend(self.nodes.keys().chain(self.indexes.nodes.keys()).cloned());
        events
    }

    /// Applies a change and returns what it affects.
    ///
    /// # Errors
    /// If an object does not exist, or a task would return to an earlier state. The state is unchanged then.
    pub fn apply(&mut self, change: &ObjectChange) -> Result<Events, Refused> {
        let mut events = Events::default();
        match change {
            ObjectChange::PutService(service) => self.put_service(service, &mut events)?,
            ObjectChange::RemoveService(id) => {
                self.forget_service(id)?;
                events.touch_service(id);
            }
            ObjectChange::PutNode(node) => {
                self.touch_node(&node.id, &mut events);
                self.nodes.insert(node.id.clone(), (**node).clone());
                self.indexes.set_known(&node.id, true);
            }
            ObjectChange::RemoveNode(id) => {
                self.nodes
                    .remove(id)
                    .ok_or_else(|| Refused::UnknownNode(id.clone()))?;
                self.failures.retain(|(node, _, _), _| node != id);
                self.touch_node(id, &mut events);
                self.indexes.set_known(id, false);
            }
            ObjectChange::PutPorts(ledger) => self.ports = ledger.clone(),
            ObjectChange::CreateTask(task) => {
                if self.tasks.contains_key(&task.id) {
                    return Err(Refused::TaskExists(task.id.clone()));
                }
                events.touch_slot(&task.service, &task.slot);
                events.unplaced = task.status.state == TaskState::Pending;
                self.indexes.link(task);
                self.tasks.insert(task.id.clone(), (**task).clone());
            }
            ObjectChange::PutTask(task) => self.put_task(task, &mut events),
            ObjectChange::Assign { task, node, at } => {
                if !self.nodes.contains_key(node) {
                    return Err(Refused::UnknownNode(node.clone()));
                }
                self.change_task(task, &mut events, |task| task.assign(node, *at))?;
            }
            ObjectChange::SetDesired { task, desired } => {
                self.change_task(task, &mut events, |task| task.set_desired(*desired))?;
            }
            ObjectChange::GiveUp(task) => self.change_task(task, &mut events, Task::give_up)?,
            ObjectChange::Observe { task, status } => self.observe(task, status, &mut events)?,
            ObjectChange::RemoveTask(id) => {
                let task = self
                    .tasks
                    .remove(id)
                    .ok_or_else(|| Refused::UnknownTask(id.clone()))?;
                self.indexes.unlink(&task);
                events.touch_slot(&task.service, &task.slot);
            }
        }
        Ok(events)
    }

    fn put_service(&mut self, service: &Arc<Service>, events: &mut Events) -> Result<(), Refused> {
        if self
            .names
            .get(&service.spec.name)
            .is_some_and(|id| *id != service.id)
        {
            return Err(Refused::NameTaken(service.spec.name.clone()));
        }
        if self.services.contains_key(&service.id) {
            self.forget_service(&service.id)?;
        }
        events.touch_service(&service.id);
        self.names.insert(service.spec.name.clone(), service.id.clone());
        for port in &service.ports {
            if port.publish_mode == crate::spec::PublishMode::Ingress {
                self.published
                    .insert((port.protocol, port.published_port), service.id.clone());
            }
        }
        if !service.released {
            self.waiting.insert(service.id.clone());
        }
        if service.spec.mode.is_global() {
            self.global.insert(service.id.clone());
        }
        self.services.insert(service.id.clone(), service.clone());
        Ok(())
    }

    fn forget_service(&mut self, id: &ServiceId) -> Result<(), Refused> {
        let service = self
            .services
            .remove(id)
            .ok_or_else(|| Refused::UnknownService(id.clone()))?;
        self.names.remove(&service.spec.name);
        self.waiting.remove(id);
        self.global.remove(id);
        for port in &service.ports {
            let key = (port.protocol, port.published_port);
            if self.published.get(&key) == Some(id) {
                self.published.remove(&key);
            }
        }
        Ok(())
    }

    fn touch_node(&self, id: &NodeId, events: &mut Events) {
        events.nodes.insert(id.clone());
        events.unplaced = true;
        for task in self.tasks_on(id).into_iter().flat_map(|index| &index.tasks) {
            if let Some(task) = self.tasks.get(task) {
                events.touch_slot(&task.service, &task.slot);
            }
        }
    }

    fn observe(&mut self, id: &TaskId, status: &TaskStatus, events: &mut Events) -> Result<(), Refused> {
        let mut before = status.state;
        self.change_task(id, events, |task| {
            before = task.status.state;
            task.observe(status)
        })?;
        self.follow_status(id, before, events);
        Ok(())
    }

    /// Sets a task to what the store holds, even if that is an earlier state: a restored backup may be
    /// behind.
    fn put_task(&mut self, task: &Task, events: &mut Events) {
        let before = match self.tasks.get(&task.id) {
            Some(known) if known == task => return,
            Some(known) => {
                self.indexes.unlink(known);
                events.touch_slot(&known.service, &known.slot);
                known.status.state
            }
            None => TaskState::New,
        };
        events.touch_slot(&task.service, &task.slot);
        self.indexes.link(task);
        self.tasks.insert(task.id.clone(), task.clone());
        self.follow_status(&task.id, before, events);
    }

    /// Updates what depends on a task's status after it has changed.
    fn follow_status(&mut self, id: &TaskId, before: TaskState, events: &mut Events) {
        let Some(task) = self.tasks.get(id) else {
            return;
        };
        let freed = before.holds_resources() && task.status.state.is_terminal();
        events.unplaced |= freed || task.status.state == TaskState::Pending;
        if let Some(node) = task.node.as_ref().filter(|_| task.has_failed_since(before)) {
            let key = (node.clone(), task.service.clone(), task.spec_version);
            let times = self.failures.entry(key).or_default();
            times.push(task.status.at);
            if times.len() > FAILURES_TO_AVOID {
                times.remove(0);
            }
        }
    }

    fn change_task(
        &mut self,
        id: &TaskId,
        events: &mut Events,
        change: impl FnOnce(&mut Task) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let task = self
            .tasks
            .get_mut(id)
            .ok_or_else(|| Refused::UnknownTask(id.clone()))?;
        self.indexes.unlink(task);
        let result = change(task);
        self.indexes.link(task);
        events.touch_slot(&task.service, &task.slot);
        result
    }

    /// Whether the indexes match the objects; for tests.
    #[must_use]
    pub fn indexes_are_sound(&self) -> bool {
        let mut indexes = Indexes::default();
        self.nodes.keys().for_each(|node| indexes.set_known(node, true));
        self.tasks.values().for_each(|task| indexes.link(task));
        indexes == self.indexes
    }

    /// The number of a service's wanted tasks that have another version than the current one.
    #[must_use]
    pub fn outdated(&self, service: &ServiceId, current: u64) -> u32 {
        let count = |range: (Bound<u64>, Bound<u64>)| {
            self.tasks_of(service).map_or(0, |index| {
                index.versions.range(range).map(|(_, count)| *count).sum()
            })
        };
        count((Bound::Unbounded, Bound::Excluded(current)))
            + count((Bound::Excluded(current), Bound::Unbounded))
    }
}
