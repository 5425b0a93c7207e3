//! What tasks run: stored once for all tasks of a service's task version, which share it in memory, too.
//! Imports `objects`.

use std::{collections::BTreeMap, sync::Arc};

use super::{Mirror, Update};
use crate::{
    cluster::stored::{self, Name, StoredTask},
    objects::{ObjectChange, Refused, ServiceId, Task, Timestamp},
    spec::TaskSpec,
    store::Entry,
};

/// The stored specifications of tasks.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Specs(BTreeMap<ServiceId, BTreeMap<u64, Arc<TaskSpec>>>);

impl Specs {
    /// What the tasks of a service's task version run, if that is stored.
    pub(in crate::cluster) fn get(&self, service: &ServiceId, version: u64) -> Option<&Arc<TaskSpec>> {
        self.0.get(service)?.get(&version)
    }

    /// Service and task version of each.
    pub(in crate::cluster) fn names(&self) -> impl Iterator<Item = (&ServiceId, u64)> {
        let versions = self.0.iter();
        versions.flat_map(|(service, versions)| versions.keys().map(move |version| (service, *version)))
    }

    pub(super) fn remove(&mut self, service: &ServiceId, version: u64) {
        if let Some(versions) = self.0.get_mut(service) {
            versions.remove(&version);
            if versions.is_empty() {
                self.0.remove(service);
            }
        }
    }
}

impl Mirror {
    pub(super) fn put_spec(
        &mut self,
        service: &ServiceId,
        version: u64,
        spec: Arc<TaskSpec>,
        now: Timestamp,
        update: &mut Update,
    ) -> Result<(), Refused> {
        let before = self.specs.get(service, version).cloned();
        if before.as_ref() != Some(&spec) {
            let current = self
                .state
                .service(service)
                .map(|service| &service.spec.task_template);
            let spec = current
                .filter(|current| **current == spec)
                .unwrap_or(&spec)
                .clone();
            let versions = self.specs.0.entry(service.clone()).or_default();
            versions.insert(version, spec.clone());
            if let Some(before) = before {
                self.replace(service, &before, &spec, update)?;
            }
        }
        // Tasks that came first.
        for entry in std::mem::take(&mut self.incomplete).into_values() {
            update.touched.insert(stored::name(&entry.key));
            self.put(&entry, now, update)?;
        }
        Ok(())
    }

    /// Gives tasks another specification. Only a restored backup has another one under the same name, or one
    /// to which a later release has added something.
    fn replace(
        &mut self,
        service: &ServiceId,
        before: &Arc<TaskSpec>,
        after: &Arc<TaskSpec>,
        update: &mut Update,
    ) -> Result<(), Refused> {
        let index = self.state.tasks_of(service);
        let tasks = index.into_iter().flat_map(|index| index.slots.values().flatten());
        let mut tasks: Vec<Task> = tasks
            .filter_map(|(_, id)| self.state.tasks().get(id))
            .filter(|task| Arc::ptr_eq(&task.spec, before))
            .cloned()
            .collect();
        for task in &mut tasks {
            task.spec = after.clone();
            update.touched.insert(Name::Task(task.id.clone()));
            self.state.apply(&ObjectChange::PutTask(Box::new(task.clone())))?;
        }
        Ok(())
    }

    /// The task of an entry with its specification. Without one it is set aside.
    pub(super) fn resolve(&mut self, entry: &Entry, stored: StoredTask) -> Option<Task> {
        let (service, version) = stored.version();
        let spec = match (&stored.spec, self.specs.get(service, version)) {
            (Some(own), _) => self.shared(&stored, own).clone(),
            (None, Some(spec)) => spec.clone(),
            (None, None) => {
                self.set_aside(entry, &stored.missing(&entry.key));
                self.incomplete.insert(entry.key.clone(), entry.clone());
                return None;
            }
        };
        Some(stored.with(spec))
    }

    /// The specification of a task that has one of its own: in memory, equal ones are one.
    fn shared<'a>(&'a self, task: &StoredTask, own: &'a Arc<TaskSpec>) -> &'a Arc<TaskSpec> {
        let known = self.state.tasks().get(&task.id).map(|known| &known.spec);
        let service = self.state.service(task.version().0);
        let current = service.map(|service| &service.spec.task_template);
        let mut equal = known.into_iter().chain(current).filter(|spec| *spec == own);
        equal.next().unwrap_or(own)
    }
}
