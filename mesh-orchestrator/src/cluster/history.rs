//! Old revisions of services: to inspect, compare and roll back to. Imports `commands` and the store's
//! revisions.

use std::sync::Arc;

use super::{ChangeError, Changed, Cluster, stored::SERVICES};
use crate::{
    commands,
    objects::{Previous, Service, ServiceId},
    store::{
        Difference, diff,
        revisions::{Author, Revised, RevisionError, Revisions},
    },
};

impl Cluster {
    fn revisions(&self) -> Revisions<Service> {
        Revisions::new(Arc::clone(self.store()), SERVICES)
    }

    /// The kept revisions of a service, the current one first. An old one shows the service as it was when it
    /// was replaced.
    ///
    /// # Errors
    /// [`RevisionError::Missing`] for an unknown service; when the store is unavailable.
    pub async fn history(&self, service: &ServiceId) -> Result<Vec<Revised<Service>>, RevisionError> {
        self.revisions().history(service.as_str()).await
    }

    /// One of the kept revisions of a service.
    ///
    /// # Errors
    /// [`RevisionError::NotKept`]; as [`Self::history`].
    pub async fn revision_of(
        &self,
        service: &ServiceId,
        number: u64,
    ) -> Result<Revised<Service>, RevisionError> {
        self.revisions().at(service.as_str(), number).await
    }

    /// The differences between two revisions of a service's specification.
    ///
    /// # Errors
    /// As [`Self::revision_of`].
    pub async fn diff(
        &self,
        service: &ServiceId,
        from: u64,
        to: u64,
    ) -> Result<Vec<Difference>, RevisionError> {
        let (from, to) = (
            self.revision_of(service, from).await?,
            self.revision_of(service, to).await?,
        );
        let json = |revised: Revised<Service>| {
            serde_json::to_value(&*revised.value.spec).map_err(|source| RevisionError::Damaged {
                key: service.to_string(),
                source,
            })
        };
        Ok(diff(&json(from)?, &json(to)?))
    }

    /// Rolls a service back to its specification at a revision, by its rollback policy; without a number, to
    /// the previous one. Changes nothing if that is the current one.
    ///
    /// # Errors
    /// As [`Self::revision_of`] and [`Self::change`].
    pub async fn roll_back(
        &self,
        author: Author,
        service: &ServiceId,
        to: Option<u64>,
    ) -> Result<Changed, ChangeError> {
        let Some(number) = to else {
            return self
                .change(author, |state, now| {
                    commands::rollback_service(state, service, now)
                })
                .await;
        };
        let old = self.revision_of(service, number).await?.value;
        let older = Previous {
            spec: old.spec,
            task_version: old.task_version,
        };
        self.change(author, |state, now| {
            commands::roll_back_to(state, service, &older, now)
        })
        .await
    }
}
