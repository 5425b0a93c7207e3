//! Committing a draft, and finding out whether it was committed when the store's answer was lost.
//! Imports `draft` and the store's trait.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{ChangeError, Cluster, draft::Batch, stored};
use crate::store::{Expected, Key, Prefix, Revision, StoreError, Transaction, membership::Leadership};

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
    async fn commit_one(
        &self,
        transaction: Transaction,
        witness: Option<(&Key, Option<&[u8]>)>,
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
                Err(conflict @ StoreError::Conflict { .. }) if unknown.is_some() => {
                    let Some((key, value)) = witness else {
                        return Err(conflict);
                    };
                    let found = store.get(key).await?;
                    return match (found, value) {
                        (Some(entry), Some(value)) if entry.value == value => Ok(entry.modified),
                        (None, None) => Ok(store.list(&Prefix::everything(), 1).await?.revision),
                        _ => Err(conflict),
                    };
                }
                Err(error) => return Err(unknown.map_or(error, |(lost, _)| lost)),
            }
            sleep(RETRY).await;
        }
    }
}
