//! Leases, registrations and elections, on every store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::FutureExt;
use mesh_orchestrator::store::{
    Entry, Heartbeat, Key, Lease, Listing, Prefix, Revision, Store, StoreError, Transaction, Watch,
    membership::{Leader, Leadership, NodeSession, campaign, election_key, node_key},
};
use mesh_orchestrator_testing::{PATIENCE, QUICK, run};

use super::{
    Story,
    subject::{Fresh, Subject, key, wait_until},
};

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("keys_put_under_a_lease_go_with_it", lease),
        ("a_node_is_registered_until_it_withdraws", registration),
        (
            "a_registration_that_is_stored_late_replaces_no_newer_one",
            late_registration,
        ),
        ("one_candidate_leads_until_it_resigns", election),
        ("a_former_leader_changes_nothing", fence),
    ]
}

/// The leader of an election, if there is one.
pub(super) async fn leader(store: &dyn Store, election: &str) -> Result<Option<Leader>> {
    let entry = store.get(&election_key(election)?).await?;
    Ok(entry
        .map(|entry| serde_json::from_slice(&entry.value))
        .transpose()?)
}

fn is_lost(leadership: &Leadership) -> bool {
    leadership.lost().now_or_never().is_some()
}

fn lease(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (gone, kept, again) = ("/ephemeral/a/1".parse()?, key("a", 2), "/ephemeral/a/3".parse()?);
        let lease = store.lease(QUICK).await?;
        let transaction = Transaction::new()
            .put(gone, "x")
            .put(kept.clone(), "x")
            .put(again, "x");
        store.commit_under(&lease, transaction).await?;
        let again = "/ephemeral/a/3".parse()?;
        let other = store.lease(QUICK).await?;
        store
            .commit_under(&other, Transaction::new().put(again, "y"))
            .await?;
        lease.revoke().await;
        let entries = store.snapshot().await?.entries().await?;
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        ensure!(keys == [kept.as_str(), "/ephemeral/a/3"], "{keys:?}");
        // Dropping a lease revokes it, too.
        drop(other);
        wait_until("the other lease's key is gone", || async {
            Ok(store.get(&"/ephemeral/a/3".parse()?).await?.is_none())
        })
        .await
    })
}

/// A store that also keeps what was committed under leases, to send it once more.
#[derive(Debug)]
struct Recorded {
    store: Arc<dyn Store>,
    sent: Mutex<Vec<Transaction>>,
}

#[async_trait]
impl Store for Recorded {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: usize) -> Result<Listing, StoreError> {
        self.store.list(prefix, page).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.store.commit(transaction).await
    }

    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        self.store.lease(heartbeat).await
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        self.sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(transaction.clone());
        self.store.commit_under(lease, transaction).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }
}

fn late_registration(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let recorded = Arc::new(Recorded {
            store: Arc::clone(store),
            sent: Mutex::default(),
        });
        let name = node_key("node1")?;
        let node = NodeSession::start(recorded.clone(), name.clone(), b"old".to_vec(), QUICK);
        let is = |value: &'static [u8]| {
            let name = &name;
            move || async move {
                let entry = store.get(name).await?;
                Ok(entry.is_some_and(|entry| entry.value == value))
            }
        };
        wait_until("the node is registered", is(b"old")).await?;
        node.set(b"new".to_vec());
        wait_until("its registration has changed", is(b"new")).await?;
        let sent = recorded
            .sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for late in sent {
            let committed = store.commit(late).await;
            ensure!(
                matches!(committed, Err(StoreError::Conflict { .. })),
                "{committed:?}"
            );
        }
        ensure!(is(b"new")().await?, "an old value is back");
        Ok(())
    })
}

fn registration(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let nodes = Prefix::new(["ephemeral", "nodes"])?;
        let listing = store.list(&nodes, 10).await?;
        let mut watch = store.watch(&nodes, listing.revision).await?;
        let name = node_key("node1")?;
        let node = NodeSession::start(Arc::clone(store), name.clone(), b"here".to_vec(), QUICK);
        let batch = watch.next().await.context("the watch has ended")??;
        ensure!(
            batch.events.len() == 1 && *batch.events[0].key() == name,
            "{batch:?}"
        );
        tokio::time::timeout(PATIENCE, node.present().wait_for(|present| *present)).await??;
        // Longer than its time to live: heartbeats keep it.
        tokio::time::sleep(QUICK.time_to_live() + Duration::from_secs(1)).await;
        let entry = store
            .get(&name)
            .await?
            .context("the registration ended by itself")?;
        ensure!(entry.value == b"here" && entry.version == 1, "{entry:?}");
        node.withdraw().await;
        ensure!(store.get(&name).await?.is_none(), "the node is still there");
        Ok(())
    })
}

fn election(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let first = campaign(store, "loops", "node1", QUICK).await?;
        let name = leader(store.as_ref(), "loops")
            .await?
            .context("there is no leader")?;
        ensure!(name.candidate == "node1");
        let mut others = tokio::task::JoinSet::new();
        for candidate in ["node2", "node3"] {
            let store = Arc::clone(store);
            others.spawn(async move { campaign(&store, "loops", candidate, QUICK).await });
        }
        // Another election has a leader of its own.
        let other = campaign(store, "backups", "node2", QUICK).await?;
        ensure!(others.try_join_next().is_none() && !is_lost(&first));
        let mut term = first.term();
        first.resign().await;
        for _ in 0..2 {
            let next = tokio::time::timeout(PATIENCE, others.join_next())
                .await?
                .context("no candidate is left")???;
            ensure!(others.try_join_next().is_none(), "two candidates lead");
            ensure!(next.term() > term, "a later term has a lower number");
            term = next.term();
            next.resign().await;
        }
        ensure!(leader(store.as_ref(), "loops").await?.is_none());
        ensure!(!is_lost(&other));
        Ok(())
    })
}

fn fence(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let write = || Transaction::new().put(key("a", 1), "x");
        let first = campaign(store, "loops", "node1", QUICK).await?;
        store.commit(first.fence(write())).await?;
        let late = first.fence(write());
        first.resign().await;
        let refused = store.commit(late.clone()).await;
        ensure!(
            refused.is_err_and(|error| error.is_conflict()),
            "there is no leader, but it was committed"
        );
        let second = campaign(store, "loops", "node1", QUICK).await?;
        let refused = store.commit(late).await;
        ensure!(
            refused.is_err_and(|error| error.is_conflict()),
            "another term's transaction was committed"
        );
        store.commit(second.fence(write())).await?;
        Ok(())
    })
}
