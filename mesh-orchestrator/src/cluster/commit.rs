//! Committing a draft, and finding out whether it was committed when the store's answer was lost.
//! Imports `draft` and the store's trait.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use serde::Deserialize;

use super::{
    ChangeError, Cluster,
    draft::{Batch, Witness},
    stored::{self, SERVICES},
};
use crate::store::{
    Entry, Expected, Revision, StoreError, Transaction,
    membership::Leadership,
    revisions::{self, RevisionId},
};

/// How long to find out the outcome of a transaction whose answer was lost.
const OUTCOME: Duration = Duration::from_secs(15);

/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(200);

impl Cluster {
    /// Commits batches one after the other, under the leader's fence if there is one; stops at the first that
    /// fails. Returns the revision of the last committed batch, too, or 0.
    pub(super) async fn commit(
        &self,
        batches: &[Batch],
        leadership: Option<&Leadership>,
    ) -> (Revision, Result<(), ChangeError>) {
        let mut made = Vec::with_capacity(batches.len());
        let committed = self.commit_all(batches, leadership, &mut made).await;
        (made.last().copied().unwrap_or_default(), committed)
    }

    async fn commit_all(
        &self,
        batches: &[Batch],
        leadership: Option<&Leadership>,
        made: &mut Vec<Revision>,
    ) -> Result<(), ChangeError> {
        let restore = stored::restore()?;
        for batch in batches {
            let mut transaction = batch.transaction(made).expect(restore.clone(), Expected::Absent);
            if let Some(leadership) = leadership {
                transaction = leadership.fence(transaction);
            }
            let committed = self.commit_one(transaction, batch.witness()).await;
            self.note(committed.as_ref().err());
            match committed {
                Ok(revision) => made.push(revision),
                Err(StoreError::Conflict { key, .. }) if key == restore => {
                    return Err(ChangeError::Restoring);
                }
                Err(StoreError::Conflict { key, .. })
                    if leadership.is_some_and(|leadership| *leadership.key() == key) =>
                {
                    return Err(ChangeError::NotLeader);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Commits a transaction again if its answer was lost: its conditions hold only if it was not committed.
    /// Once one of them does not, it cannot be committed any more, and the store shows whether it was.
    async fn commit_one(
        &self,
        transaction: Transaction,
        witness: Option<Witness>,
    ) -> Result<Revision, StoreError> {
        let store = self.store();
        let mut unknown: Option<(StoreError, Instant)> = None;
        loop {
            let is_over = unknown.as_ref().is_some_and(|(_, until)| Instant::now() > *until);
            match store.commit(transaction.clone()).await {
                Ok(revision) => return Ok(revision),
                Err(lost @ StoreError::OutcomeUnknown { .. }) => {
                    if witness.is_none() || is_over {
                        return Err(lost);
                    }
                    let until = unknown.map_or_else(|| Instant::now() + OUTCOME, |(_, until)| until);
                    unknown = Some((lost, until));
                }
                Err(StoreError::Unavailable { .. }) if unknown.is_some() && !is_over => {}
                Err(conflict @ StoreError::Conflict { .. }) if let Some((lost, until)) = unknown => {
                    match self.outcome(witness.as_ref()).await {
                        Ok(Outcome::Committed(revision)) => return Ok(revision),
                        Ok(Outcome::Never) => return Err(conflict),
                        Ok(Outcome::Forgotten) => return Err(lost),
                        Err(error) if !error.is_unavailable() || is_over => return Err(lost),
                        Err(_) => unknown = Some((lost, until)),
                    }
                }
                Err(error) => return Err(unknown.map_or(error, |(lost, _)| lost)),
            }
            sleep(RETRY).await;
        }
    }

    /// Whether the store has what a transaction wrote.
    async fn outcome(&self, witness: Option<&Witness>) -> Result<Outcome, ChangeError> {
        let store = self.store();
        match witness {
            None => Ok(Outcome::Forgotten),
            Some(Witness::Value(key, value)) => Ok(match (store.get(key).await?, value) {
                (Some(entry), Some(value)) if entry.value == *value => Outcome::Committed(entry.modified),
                (None, None) => Outcome::Committed(store.newest().await?),
                _ => Outcome::Never,
            }),
            Some(Witness::Revision(service, revision)) => {
                // The service may have changed since: first the newest revision, then the one that was kept.
                let Some(newest) = store.get(&stored::service(service)?).await? else {
                    // Never created, or removed since: then it must not be created again.
                    return Ok(Outcome::Forgotten);
                };
                let entry = match revision_of(&newest) {
                    Some(found) if found.number > revision.number => {
                        let key = revisions::old_key(SERVICES, service.as_str(), revision.number)?;
                        match store.get(&key).await? {
                            Some(entry) => entry,
                            None => return Ok(Outcome::Forgotten),
                        }
                    }
                    _ => newest,
                };
                Ok(match revision_of(&entry) {
                    Some(found) if found == *revision => Outcome::Committed(entry.modified),
                    _ => Outcome::Never,
                })
            }
        }
    }
}

/// What became of a transaction whose answer was lost.
enum Outcome {
    /// It was committed, at this revision or earlier.
    Committed(Revision),
    /// It was not, and cannot be any more.
    Never,
    /// The store does not show it any more.
    Forgotten,
}

fn revision_of(entry: &Entry) -> Option<RevisionId> {
    #[derive(Deserialize)]
    struct Stamped {
        revision: RevisionId,
    }
    let stamped: Stamped = serde_json::from_slice(&entry.value).ok()?;
    Some(stamped.revision)
}
