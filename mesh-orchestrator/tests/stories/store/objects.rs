//! Versioned objects, the vault and backups, on every store.

use std::{collections::BTreeMap, fs, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::{
    backups::{self, BackupError, BackupKind, BackupName, RestoreInto},
    objects::Timestamp,
    secrets::{KeyRing, Kind, Plaintext, Vault, VaultError},
    store::{
        Entry, Event, Heartbeat, Key, Lease, Listing, Prefix, Revision, Store, StoreError, Transaction,
        Watch,
        revisions::{Author, KEPT, RevisionError, RevisionId, Revisions},
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    conformance::Story,
    subject::{Fresh, Subject, key, run},
};

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("an_update_must_name_the_revision_it_read", updates),
        ("old_revisions_are_kept_compared_and_rolled_back_to", history),
        ("an_object_as_large_as_may_be_keeps_its_history", large),
        ("concurrent_updates_make_one_history", race),
        (
            "a_removed_object_leaves_nothing_and_its_revisions_are_not_reused",
            removal,
        ),
        ("secrets_are_stored_encrypted_and_revealed_by_name", secrets),
        ("keys_are_rotated_without_losing_a_secret", rotation),
        ("a_lost_key_file_is_no_new_beginning", lost_key),
        ("a_backup_brings_everything_back", backup),
        ("a_damaged_backup_changes_nothing", damaged),
        ("a_restore_that_was_broken_off_is_known_and_repeated", broken_off),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Thing {
    image: String,
    replicas: u32,
}

fn thing(number: u32) -> Thing {
    Thing {
        image: format!("web:{number}"),
        replicas: 2,
    }
}

fn author(number: u32, action: &str) -> Author {
    Author {
        by: "someone".to_owned(),
        at: Timestamp(u64::from(number)),
        action: action.to_owned(),
    }
}

fn updates(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let things: Revisions<Thing> = Revisions::new(Arc::clone(store), "things");
        let missing = things.get("web").await?;
        ensure!(missing.is_none());
        let first = things.create("web", &thing(1), author(1, "create")).await?;
        let again = things.create("web", &thing(1), author(1, "create")).await;
        ensure!(matches!(again, Err(RevisionError::Exists { .. })), "{again:?}");
        let second = things
            .update("web", first, &thing(2), author(2, "update"))
            .await?;
        match things.update("web", first, &thing(3), author(3, "update")).await {
            Err(RevisionError::Stale { given, current, .. }) => ensure!((given, current) == (first, second)),
            other => bail!("{other:?}"),
        }
        let found = things.get("web").await?.context("it is gone")?;
        ensure!(found.revision == second && found.value == thing(2) && found.author == author(2, "update"));
        let (all, seen) = things.list().await?;
        ensure!(all == [found], "{all:?}");
        let mut watch = store.watch(&Prefix::new(["things"])?, seen).await?;
        // As it goes through HTTP's headers.
        let tag: RevisionId = second.to_string().parse()?;
        things.update("web", tag, &thing(4), author(4, "update")).await?;
        let told = watch.next().await.context("the watch has ended")??;
        let [Event::Put(entry)] = told.events.as_slice() else {
            bail!("{told:?}");
        };
        ensure!(Revisions::<Thing>::read(entry)?.value == thing(4));
        let unknown = things.update("api", first, &thing(3), author(3, "update")).await;
        ensure!(
            matches!(unknown, Err(RevisionError::Missing { .. })),
            "{unknown:?}"
        );
        let name = things.create("no/name", &thing(1), author(1, "create")).await;
        ensure!(matches!(name, Err(RevisionError::Name(_))), "{name:?}");
        Ok(())
    })
}

fn history(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let things: Revisions<Thing> = Revisions::new(Arc::clone(store), "things");
        let mut revision = things.create("web", &thing(1), author(1, "create")).await?;
        for number in 2..=15 {
            revision = things
                .update("web", revision, &thing(number), author(number, "update"))
                .await?;
        }
        let numbers: Vec<u64> = things
            .history("web")
            .await?
            .iter()
            .map(|old| old.revision.number)
            .collect();
        let kept: Vec<u64> = (15 - KEPT..=15).rev().collect();
        ensure!(numbers == kept, "{numbers:?}");
        let old = things.at("web", 8).await?;
        ensure!(old.value == thing(8) && old.author == author(8, "update"));
        match things.at("web", 2).await {
            Err(RevisionError::NotKept {
                number: 2,
                kept: told,
                ..
            }) => ensure!(told == kept),
            other => bail!("{other:?}"),
        }
        let differences = things.diff("web", 8, 15).await?;
        let paths: Vec<&str> = differences.iter().map(|one| one.path.as_str()).collect();
        ensure!(paths == ["image"], "{paths:?}");
        let back = things
            .roll_back("web", revision, 8, author(16, "rollback to 8"))
            .await?;
        let now = things.get("web").await?.context("it is gone")?;
        ensure!(now.revision == back && back.number == 16 && now.value == thing(8));
        ensure!(
            things.at("web", 15).await?.value == thing(15),
            "what was rolled back is kept, too"
        );
        let stale = things
            .roll_back("web", revision, 9, author(17, "rollback to 9"))
            .await;
        ensure!(matches!(stale, Err(RevisionError::Stale { .. })), "{stale:?}");
        Ok(())
    })
}

fn large(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let things: Revisions<Thing> = Revisions::new(Arc::clone(store), "things");
        let of = |letter: &str| Thing {
            image: letter.repeat(1 << 20),
            replicas: 1,
        };
        let mut revision = things.create("web", &of("a"), author(1, "create")).await?;
        for letter in ["b", "c", "d"] {
            revision = things
                .update("web", revision, &of(letter), author(2, "update"))
                .await?;
        }
        for (number, letter) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
            ensure!(
                things.at("web", number).await?.value == of(letter),
                "revision {number}"
            );
        }
        things.remove("web", revision).await?;
        ensure!(store.snapshot().await?.entries().await?.is_empty());
        Ok(())
    })
}

fn race(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let things: Revisions<Thing> = Revisions::new(Arc::clone(store), "things");
        let first = Thing {
            image: "web".to_owned(),
            replicas: 0,
        };
        things.create("web", &first, author(0, "create")).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let things = things.clone();
            tasks.spawn(async move {
                let mut done = 0;
                while done < 5 {
                    let read = things.get("web").await?.context("it is gone")?;
                    let next = Thing {
                        replicas: read.value.replicas + 1,
                        ..read.value
                    };
                    match things
                        .update("web", read.revision, &next, author(writer, "scale"))
                        .await
                    {
                        Ok(_) => done += 1,
                        Err(RevisionError::Stale { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        for (old, replicas) in things.history("web").await?.iter().zip((0..=20).rev()) {
            ensure!(old.value.replicas == replicas && old.revision.number == u64::from(replicas) + 1);
        }
        Ok(())
    })
}

fn removal(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let things: Revisions<Thing> = Revisions::new(Arc::clone(store), "things");
        let first = things.create("web", &thing(1), author(1, "create")).await?;
        let second = things
            .update("web", first, &thing(2), author(2, "update"))
            .await?;
        let stale = things.remove("web", first).await;
        ensure!(matches!(stale, Err(RevisionError::Stale { .. })), "{stale:?}");
        things.remove("web", second).await?;
        ensure!(
            store.snapshot().await?.entries().await?.is_empty(),
            "something is left"
        );
        let anew = things.create("web", &thing(3), author(3, "create")).await?;
        ensure!(anew.number == 1 && anew != first);
        let mistaken = things.update("web", first, &thing(4), author(4, "update")).await;
        ensure!(
            matches!(mistaken, Err(RevisionError::Stale { .. })),
            "{mistaken:?}"
        );
        Ok(())
    })
}

fn secret(text: &str) -> Plaintext {
    Plaintext::new(text.as_bytes().to_vec())
}

fn secrets(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let vault = Vault::open(Arc::clone(store), &folder.path().join("keys.json"), Timestamp(1)).await?;
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        vault
            .create(
                Kind::Secret,
                "password",
                labels.clone(),
                &secret("hunter2"),
                Timestamp(2),
            )
            .await?;
        vault
            .create(
                Kind::Config,
                "password",
                labels.clone(),
                &secret("not so secret"),
                Timestamp(3),
            )
            .await?;
        let again = vault
            .create(
                Kind::Secret,
                "password",
                labels.clone(),
                &secret("x"),
                Timestamp(2),
            )
            .await;
        ensure!(matches!(again, Err(VaultError::Exists { .. })), "{again:?}");
        ensure!(vault.reveal(Kind::Secret, "password").await? == secret("hunter2"));
        ensure!(vault.reveal(Kind::Config, "password").await? == secret("not so secret"));
        let record = vault.inspect(Kind::Secret, "password").await?;
        ensure!((record.labels, record.size, record.created_at) == (labels, 7, Timestamp(2)));
        vault
            .replace(
                Kind::RegistryCredential,
                "registry:5000",
                &secret("a"),
                Timestamp(4),
            )
            .await?;
        vault
            .replace(
                Kind::RegistryCredential,
                "registry:5000",
                &secret("b"),
                Timestamp(5),
            )
            .await?;
        ensure!(vault.reveal(Kind::RegistryCredential, "registry:5000").await? == secret("b"));
        let too_large = Plaintext::new(vec![0; Kind::Secret.max_bytes() + 1]);
        let refused = vault
            .create(Kind::Secret, "large", BTreeMap::new(), &too_large, Timestamp(6))
            .await;
        ensure!(matches!(refused, Err(VaultError::TooLarge { .. })), "{refused:?}");
        let largest = Plaintext::new(vec![7; Kind::Config.max_bytes()]);
        vault
            .create(Kind::Config, "largest", BTreeMap::new(), &largest, Timestamp(6))
            .await?;
        ensure!(vault.reveal(Kind::Config, "largest").await? == largest);
        let names: Vec<String> = vault
            .list(Kind::Config)
            .await?
            .into_iter()
            .map(|record| record.name)
            .collect();
        ensure!(names == ["largest", "password"], "{names:?}");
        // Nothing of it is in the store, or in what a log would show.
        for entry in store.snapshot().await?.entries().await? {
            let value = String::from_utf8_lossy(&entry.value);
            ensure!(
                !value.contains("hunter2") && !value.contains("aHVudGVyM"),
                "{}",
                entry.key
            );
        }
        ensure!(!format!("{vault:?}").contains("hunter2"));
        // Moved from one name to another, it is worthless.
        let stolen = store
            .get(&"/secrets/password".parse()?)
            .await?
            .context("it is gone")?;
        store
            .commit(Transaction::new().put("/secrets/mine".parse()?, stolen.value))
            .await?;
        let refused = vault.reveal(Kind::Secret, "mine").await;
        ensure!(matches!(refused, Err(VaultError::KeyFile(_))), "{refused:?}");
        vault.remove(Kind::Secret, "password").await?;
        let gone = vault.reveal(Kind::Secret, "password").await;
        ensure!(matches!(gone, Err(VaultError::Missing { .. })), "{gone:?}");
        Ok(())
    })
}

fn rotation(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let (path, copy) = (folder.path().join("keys.json"), folder.path().join("copy.json"));
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        for name in ["a", "b", "c"] {
            vault
                .create(Kind::Secret, name, BTreeMap::new(), &secret(name), Timestamp(2))
                .await?;
        }
        fs::copy(&path, &copy)?;
        let other = Vault::open(Arc::clone(store), &copy, Timestamp(3)).await?;
        vault.add_key(Timestamp(4))?;
        vault
            .create(Kind::Secret, "d", BTreeMap::new(), &secret("d"), Timestamp(5))
            .await?;
        ensure!(vault.encrypt_anew().await? == 3);
        ensure!(vault.encrypt_anew().await? == 0);
        for name in ["a", "b", "c", "d"] {
            ensure!(vault.reveal(Kind::Secret, name).await? == secret(name));
        }
        ensure!(
            KeyRing::load(&path)?.context("no key file")?.key_ids().len() == 1,
            "the old key is still there"
        );
        // A node that was forgotten says which key it lacks, until it has the file.
        let refused = other.reveal(Kind::Secret, "a").await;
        ensure!(
            refused.is_err_and(|error| format!("{:#}", anyhow::Error::from(error)).contains("copy the file"))
        );
        fs::copy(&path, &copy)?;
        other.reload()?;
        ensure!(other.reveal(Kind::Secret, "a").await? == secret("a"));
        Ok(())
    })
}

fn lost_key(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("keys.json");
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        vault
            .create(Kind::Secret, "a", BTreeMap::new(), &secret("a"), Timestamp(2))
            .await?;
        drop(vault);
        let elsewhere = folder.path().join("elsewhere.json");
        let refused = Vault::open(Arc::clone(store), &elsewhere, Timestamp(3)).await;
        ensure!(matches!(refused, Err(VaultError::NoKey { .. })), "{refused:?}");
        ensure!(!elsewhere.exists(), "a new key file was made");
        KeyRing::create(&elsewhere, Timestamp(3))?;
        let refused = Vault::open(Arc::clone(store), &elsewhere, Timestamp(3)).await;
        ensure!(matches!(refused, Err(VaultError::NoKey { .. })), "{refused:?}");
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(4)).await?;
        ensure!(vault.reveal(Kind::Secret, "a").await? == secret("a"));
        Ok(())
    })
}

const NAME: BackupName = BackupName {
    kind: BackupKind::Manual,
    at: Timestamp(1_795_287_600_000),
};

/// Some of everything, in more than one page and more than one transaction.
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
        let refused = backups::restore(store, &info.path, RestoreInto::Empty).await;
        ensure!(matches!(refused, Err(BackupError::NotEmpty(_))), "{refused:?}");
        // Into an empty one.
        expected.retain(|(key, _)| !key.starts_with("/ephemeral/"));
        let empty = subject.fresh().await?;
        backups::restore(empty.store.as_ref(), &info.path, RestoreInto::Empty).await?;
        ensure!(contents(empty.store.as_ref()).await? == expected);
        // Over what has changed since.
        store
            .commit(Transaction::new().delete(key("many", 1)).put(key("new", 1), "x"))
            .await?;
        backups::restore(store, &info.path, RestoreInto::Replace).await?;
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
            ("no backup", "hello\n".to_owned()),
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
            let refused = backups::restore(empty.store.as_ref(), &path, RestoreInto::Empty).await;
            ensure!(
                matches!(
                    refused,
                    Err(BackupError::Damaged { .. } | BackupError::NotABackup(_))
                ),
                "{what}: {refused:?}"
            );
        }
        fs::write(&path, whole.replacen("\"schema\":1", "\"schema\":2", 1))?;
        let refused = backups::restore(empty.store.as_ref(), &path, RestoreInto::Empty).await;
        ensure!(matches!(refused, Err(BackupError::TooNew { .. })), "{refused:?}");
        ensure!(
            contents(empty.store.as_ref()).await?.is_empty(),
            "something was changed"
        );
        Ok(())
    })
}

/// A store that goes away after some commits.
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
                advice: "the test took it away",
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

fn broken_off(subject: &Subject) -> Result<()> {
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
        let broken = backups::restore(&failing, &info.path, RestoreInto::Empty).await;
        ensure!(matches!(broken, Err(BackupError::Store(_))), "{broken:?}");
        let store = target.store.as_ref();
        ensure!(backups::interrupted(store).await?);
        ensure!(contents(store).await?.len() < expected.len());
        backups::restore(store, &info.path, RestoreInto::Empty).await?;
        ensure!(!backups::interrupted(store).await?);
        ensure!(contents(store).await? == expected);
        Ok(())
    })
}
