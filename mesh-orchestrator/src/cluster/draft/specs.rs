//! What tasks run, stored once for all tasks of a service's task version: with the first of them, until the
//! last one is removed. Imports `mirror`.
//!
//! Only the leader creates and removes tasks. Its transactions are fenced, and it decides when the mirror has
//! all of the earlier ones: no task is created while the specification is removed that it names.

use super::{Draft, RESERVE};
use crate::{
    cluster::{ChangeError, stored},
    objects::{ServiceId, Task},
    store::{Key, later::LaterFields},
};

impl Draft<'_> {
    /// Creates a task, and before it what it runs, if no other task has it.
    pub(super) fn create_task(&mut self, task: &Task) -> Result<(), ChangeError> {
        let key = stored::spec(&task.service, task.spec_version)?;
        let is_stored = match self.written.get(&key) {
            Some((_, is_removed)) => !is_removed,
            None => self.mirror.specs().get(&task.service, task.spec_version) == Some(&task.spec),
        };
        if !is_stored {
            let later = self.later_of_template(task)?;
            let value = stored::encode(&key, &*task.spec, later.as_ref())?;
            self.put_value(key.clone(), value, RESERVE)?;
        }
        self.put_task(task.clone(), RESERVE)?;
        // It may be another batch.
        self.batch.bytes += key.as_str().len();
        self.expect(key)?;
        self.count_user(task.service.clone(), task.spec_version, 1);
        Ok(())
    }

    pub(super) fn count_user(&mut self, service: ServiceId, version: u64, difference: i64) {
        let versions = self.users.entry(service).or_default();
        *versions.entry(version).or_default() += difference;
    }

    /// Whether what a task runs is stored under its name. Otherwise it is stored with the task: an earlier
    /// release did so.
    pub(super) fn has_spec(&self, task: &Task) -> Result<bool, ChangeError> {
        let key = stored::spec(&task.service, task.spec_version)?;
        Ok(match self.written.get(&key) {
            Some((_, is_removed)) => !is_removed,
            None => self
                .mirror
                .specs()
                .get(&task.service, task.spec_version)
                .is_some(),
        })
    }

    /// Removes what no task runs any more. Something may also be left over when the second of two batches was
    /// not committed.
    pub(super) fn remove_unused_specs(&mut self) -> Result<(), ChangeError> {
        let state = self.mirror.state();
        let is_unused = |(service, version): &(&ServiceId, u64)| {
            let made = self
                .users
                .get(*service)
                .and_then(|versions| versions.get(version));
            i64::from(state.users(service, *version)) + made.copied().unwrap_or_default() == 0
        };
        let unused = self.mirror.specs().names().filter(is_unused);
        let keys: Result<Vec<Key>, _> = unused
            .map(|(service, version)| stored::spec(service, version))
            .collect();
        keys?.into_iter().try_for_each(|key| self.delete(key))
    }

    /// What a later release has added to the service's template, if the task is made from it.
    fn later_of_template(&self, task: &Task) -> Result<Option<LaterFields>, ChangeError> {
        let service = self.mirror.state().service(&task.service);
        let is_current = service.is_some_and(|service| {
            service.task_version == task.spec_version && service.spec.task_template == task.spec
        });
        let later = self.mirror.later(&stored::service(&task.service)?);
        let later = later.filter(|_| is_current);
        Ok(later.and_then(|later| later.of_part(&["value", "spec", "task_template"])))
    }
}
