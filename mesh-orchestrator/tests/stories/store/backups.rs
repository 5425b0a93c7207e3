//! Backups of a store: complete, refused when damaged, and restored whole.

use std::{collections::BTreeSet, fs, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use mesh_orchestrator::{
    backups::{self, BackupError, BackupKind, BackupName, RestoreInto},
    objects::Timestamp,
    store::{
        Entry, Event, Heartbeat, Key, Lease, Listing, Prefix, Revision, Store, StoreError, Transaction, Watch,
    },
};
use mesh_orchestrator_testing::run;

use super::{
    Story,
    subject::{Subject, key},
};

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_backup_restores_everything", backup),
        ("a_damaged_backup_changes_nothing", damaged),
        ("a_restore_has_tasks_only_while_it_has_what_they_run", in_order),
        ("an_interrupted_restore_is_detected_and_repeated", interrupted),
    ]
}

const NAME: BackupName = BackupName {
    kind: BackupKind::Manual,
    at: Timestamp(1_795_287_600_000),
};

/// Entries of all kinds, for more than one page and more than one transaction.
async fn fill(store: &dyn Store) -> Result<()> {
    for name in 0..700 {
        if name % 100 == 0 {
            let batch = (name..name + 100).fold(Transaction::new(), |all, name| {
                all.put(key("many", name), format!("{name}"))
            });
            store.commit(batch).await?;
        }
    }
    for name in 0..3 {
        store
            .commit(Transaction::new().put(key("large", name), vec![0xfe; 1_400_000]))
            .await?;
    }
    store
        .commit(Transaction::new().put("/ephemeral/nodes/a".parse()?, "x"))
        .await?;
    Ok(())
}

async fn contents(store: &dyn Store) -> Result<Vec<(String, Vec<u8>)>> {
    let entries = store.snapshot().await?.entries().await?;
    Ok(entries
        .into_iter()
        .map(|entry| (entry.key.to_string(), entry.value))
        .collect())
}

fn backup(subject: &Subject) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let fresh = subject.fresh().await?;
        let store = fresh.store.as_ref();
        fill(store).await?;
        let mut expected = contents(store).await?;
        let info = backups::create(store, folder.path(), NAME).await?;
        ensure!(info.entries == 703, "{info:?}");
        ensure!(backups::inspect(&info.path)? == info);
        ensure!(backups::list(folder.path())? == [NAME]);
        let twice = backups::create(store, folder.path(), NAME).await;
        ensure!(matches!(twice, Err(BackupError::Write { .. })), "{twice:?}");
        let refused = backups::restore(store, &info.path, RestoreInto::Empty, as_it_is).await;
        ensure!(matches!(refused, Err(BackupError::NotEmpty(_))), "{refused:?}");
        // Into an empty store.
        expected.retain(|(key, _)| !key.starts_with("/ephemeral/"));
        let empty = subject.fresh().await?;
        backups::restore(empty.store.as_ref(), &info.path, RestoreInto::Empty, as_it_is).await?;
        ensure!(contents(empty.store.as_ref()).await? == expected);
        // Over later changes.
        store
            .commit(Transaction::new().delete(key("many", 1)).put(key("new", 1), "x"))
            .await?;
        backups::restore(store, &info.path, RestoreInto::Replace, as_it_is).await?;
        let mut found = contents(store).await?;
        found.retain(|(key, _)| !key.starts_with("/ephemeral/"));
        ensure!(found == expected);
        ensure!(!backups::interrupted(store).await?);
        let left = fs::read_dir(folder.path())?.count();
        ensure!(left == 1, "{left} files are in the folder");
        let nowhere = backups::create(store, &folder.path().join("missing"), NAME).await;
        ensure!(matches!(nowhere, Err(BackupError::Write { .. })), "{nowhere:?}");
        Ok(())
    })
}

fn in_order(subject: &Subject) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let fresh = subject.fresh().await?;
        let store = fresh.store.as_ref();
        for first in [0, 100] {
            let tasks = (first..first + 100).fold(Transaction::new(), |all, name| {
                all.put(key("tasks", name), "a task")
                    .put(key("specs", 1), "what it runs")
            });
            store.commit(tasks).await?;
        }
        let info = backups::create(store, folder.path(), NAME).await?;
        let before = store.snapshot().await?;
        let mut watch = store.watch(&Prefix::everything(), before.revision).await?;
        let mut present: BTreeSet<Key> = before
            .entries()
            .await?
            .into_iter()
            .map(|entry| entry.key)
            .collect();
        backups::restore(store, &info.path, RestoreInto::Replace, as_it_is).await?;
        let (newest, mut transactions) = (store.newest().await?, 0);
        loop {
            let batch = watch.next().await.context("the watch ended")??;
            transactions += 1;
            for event in &batch.events {
                match event {
                    Event::Put(entry) => present.insert(entry.key.clone()),
                    Event::Delete(key) => present.remove(key),
                };
            }
            let has = |kind| present.iter().any(|key| key.segments().next() == Some(kind));
            ensure!(
                has("specs") || !has("tasks"),
                "transaction {transactions}: {present:?}"
            );
            if batch.revision >= newest {
                ensure!(
                    transactions > 3 && present.len() == 201,
                    "{transactions}: {present:?}"
                );
                return Ok(());
            }
        }
    })
}

fn damaged(subject: &Subject) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let fresh = subject.fresh().await?;
        let store = fresh.store.as_ref();
        store
            .commit((0..20).fold(Transaction::new(), |all, name| all.put(key("a", name), "value")))
            .await?;
        let info = backups::create(store, folder.path(), NAME).await?;
        let whole = fs::read_to_string(&info.path)?;
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        let path = folder.path().join("damaged");
        let empty = subject.fresh().await?;
        for (what, text) in [
            ("empty", String::new()),
            ("not a backup", "hello\n".to_owned()),
            ("cut in a line", whole[..whole.len() / 2].to_owned()),
            ("cut between two lines", lines[..5].concat()),
            ("without its last line", lines[..lines.len() - 1].concat()),
            ("without an entry", [&lines[..3], &lines[4..]].concat().concat()),
            (
                "with two entries exchanged",
                [&lines[..3], &[lines[4], lines[3]], &lines[5..]]
                    .concat()
                    .concat(),
            ),
            ("with an entry changed", whole.replacen("/a/00003", "/a/99999", 1)),
            (
                "with its header changed",
                whole.replacen(&NAME.at.0.to_string(), "1", 1),
            ),
            ("with more at its end", whole.clone() + "more\n"),
        ] {
            fs::write(&path, text)?;
            let refused = backups::restore(empty.store.as_ref(), &path, RestoreInto::Empty, as_it_is).await;
            ensure!(
                matches!(
                    refused,
                    Err(BackupError::Damaged { .. } | BackupError::NotABackup(_))
                ),
                "{what}: {refused:?}"
            );
        }
        fs::write(&path, whole.replacen("\"schema\":1", "\"schema\":2", 1))?;
        let refused = backups::restore(empty.store.as_ref(), &path, RestoreInto::Empty, as_it_is).await;
        ensure!(matches!(refused, Err(BackupError::TooNew { .. })), "{refused:?}");
        ensure!(
            contents(empty.store.as_ref()).await?.is_empty(),
            "something was changed"
        );
        Ok(())
    })
}

/// A store that becomes unavailable after some commits.
#[derive(Debug)]
struct Failing {
    store: Arc<dyn Store>,
    left: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Failing {
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
        use std::sync::atomic::Ordering::Relaxed;
        if self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_err()
        {
            return Err(StoreError::Unavailable {
                operation: "commit",
                store: self.describe(),
                advice: "the test stopped it",
                source: "gone".into(),
            });
        }
        self.store.commit(transaction).await
    }

    async fn lease(&self, heartbeat: Heartbeat) -> Result<Lease, StoreError> {
        self.store.lease(heartbeat).await
    }

    async fn commit_under(&self, lease: &Lease, transaction: Transaction) -> Result<Revision, StoreError> {
        self.store.commit_under(lease, transaction).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }
}

fn interrupted(subject: &Subject) -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let fresh = subject.fresh().await?;
        fill(fresh.store.as_ref()).await?;
        let info = backups::create(fresh.store.as_ref(), folder.path(), NAME).await?;
        let mut expected = contents(fresh.store.as_ref()).await?;
        expected.retain(|(key, _)| !key.starts_with("/ephemeral/"));
        let target = subject.fresh().await?;
        let failing = Failing {
            store: Arc::clone(&target.store),
            left: 4.into(),
        };
        let interrupted = backups::restore(&failing, &info.path, RestoreInto::Empty, as_it_is).await;
        ensure!(
            matches!(interrupted, Err(BackupError::Store(_))),
            "{interrupted:?}"
        );
        let store = target.store.as_ref();
        ensure!(backups::interrupted(store).await?);
        ensure!(contents(store).await?.len() < expected.len());
        backups::restore(store, &info.path, RestoreInto::Empty, as_it_is).await?;
        ensure!(!backups::interrupted(store).await?);
        ensure!(contents(store).await? == expected);
        Ok(())
    })
}

fn as_it_is(_: &Key, value: Vec<u8>) -> Vec<u8> {
    value
}
