//! What every store promises of transactions and lists, whichever it is.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::store::{
    Expected, Key, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Prefix, Revision, Store, StoreError, Transaction,
};
use mesh_orchestrator_testing::run;

use super::{
    Story,
    subject::{Fresh, Subject, all, key, next},
};

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("a_transaction_is_committed_whole_or_not_at_all", whole),
        ("a_conflict_names_the_key_and_both_revisions", conflicts),
        ("revisions_and_versions_count_changes", versions),
        ("removing_an_absent_key_changes_nothing", nothing),
        ("any_bytes_can_be_a_value", values),
        ("the_limits_are_the_same_everywhere", limits),
        ("a_prefix_lists_whole_segments_in_key_order", prefixes),
        ("all_pages_of_a_list_are_of_one_revision", pages),
        ("concurrent_writers_lose_no_update", counters),
    ]
}

fn whole(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (one, two, three) = (key("a", 1), key("a", 2), key("a", 3));
        let both = Transaction::new()
            .expect(one.clone(), Expected::Absent)
            .put(one.clone(), "1")
            .put(two.clone(), "2");
        let revision = store.commit(both.clone()).await?;
        let refused = store.commit(both.put(three.clone(), "3")).await;
        ensure!(
            refused.is_err_and(|error| error.is_conflict()),
            "it was committed twice"
        );
        ensure!(
            store.get(&three).await?.is_none(),
            "half a transaction is in the store"
        );
        let found = store.get(&two).await?.context("half a transaction is missing")?;
        ensure!(found.value == b"2" && found.modified == revision, "{found:?}");
        let swap = Transaction::new()
            .expect(one.clone(), Expected::At(revision))
            .expect(two.clone(), Expected::At(revision))
            .delete(one.clone())
            .put(three.clone(), "1");
        store.commit(swap).await?;
        let (_, entries) = all(store.as_ref()).await?;
        let keys: Vec<&Key> = entries.iter().map(|entry| &entry.key).collect();
        ensure!(keys == [&two, &three], "{keys:?}");
        Ok(())
    })
}

fn conflicts(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (one, two) = (key("a", 1), key("a", 2));
        let revision = store.commit(Transaction::new().put(two.clone(), "2")).await?;
        let wrong = Revision(revision.0 + 1000);
        for (key, expected, found) in [
            (&one, Expected::At(wrong), None),
            (&two, Expected::At(wrong), Some(revision)),
            (&two, Expected::Absent, Some(revision)),
        ] {
            let holds = if *key == one {
                (&two, Expected::At(revision))
            } else {
                (&one, Expected::Absent)
            };
            let transaction = Transaction::new()
                .expect(key.clone(), expected)
                .expect(holds.0.clone(), holds.1)
                .put(key.clone(), "x");
            match store.commit(transaction).await {
                Err(StoreError::Conflict {
                    key: reported,
                    expected: wanted,
                    found: was,
                }) => {
                    ensure!(
                        (&reported, wanted, was) == (key, expected, found),
                        "{reported} {wanted} {was:?}"
                    );
                }
                other => bail!("{other:?}"),
            }
        }
        // Conditions without writes only check.
        let check = Transaction::new().expect(two.clone(), Expected::At(revision));
        ensure!(store.commit(check).await? >= revision);
        Ok(())
    })
}

fn versions(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let name = key("a", 1);
        let mut last = Revision(0);
        let mut created = None;
        for version in 1..=3 {
            let revision = store.commit(Transaction::new().put(name.clone(), "x")).await?;
            ensure!(revision > last, "{revision} follows {last}");
            last = revision;
            let entry = store.get(&name).await?.context("it is not there")?;
            let first = *created.get_or_insert(revision);
            ensure!(
                (entry.created, entry.modified, entry.version) == (first, revision, version),
                "{entry:?}"
            );
        }
        store.commit(Transaction::new().delete(name.clone())).await?;
        let revision = store.commit(Transaction::new().put(name.clone(), "x")).await?;
        let entry = store.get(&name).await?.context("it is not there")?;
        ensure!(
            (entry.created, entry.modified, entry.version) == (revision, revision, 1),
            "{entry:?}"
        );
        Ok(())
    })
}

fn nothing(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        store.commit(Transaction::new().put(key("a", 1), "x")).await?;
        let (before, entries) = all(store.as_ref()).await?;
        let mut watch = store.watch(&Prefix::everything(), before).await?;
        store.commit(Transaction::new().delete(key("a", 2))).await?;
        store.commit(Transaction::new()).await?;
        ensure!(all(store.as_ref()).await?.1 == entries);
        let revision = store.commit(Transaction::new().put(key("a", 3), "x")).await?;
        let batch = next(&mut watch).await?;
        ensure!(batch.revision == revision && batch.events.len() == 1, "{batch:?}");
        Ok(())
    })
}

fn values(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let values: [Vec<u8>; 4] = [vec![], vec![0], (0..=255).collect(), vec![0xff; 1 << 20]];
        for (number, value) in values.iter().enumerate() {
            store
                .commit(Transaction::new().put(key("a", number), value.clone()))
                .await?;
        }
        let (_, entries) = all(store.as_ref()).await?;
        ensure!(
            entries.iter().map(|entry| &entry.value).eq(&values),
            "a value was changed"
        );
        Ok(())
    })
}

fn limits(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let most = (0..MAX_OPERATIONS).fold(Transaction::new(), |all, name| {
            all.expect(key("a", name), Expected::Absent)
                .put(key("a", name), "x")
        });
        store.commit(most.clone()).await?;
        let too_many = store.commit(most.put(key("a", MAX_OPERATIONS), "x")).await;
        ensure!(
            matches!(too_many, Err(StoreError::TooLarge { what: "writes", .. })),
            "{too_many:?}"
        );
        let size = key("b", 1).as_str().len();
        let large = vec![b'x'; MAX_TRANSACTION_BYTES - size];
        store
            .commit(Transaction::new().put(key("b", 1), large.clone()))
            .await?;
        let larger = [large.as_slice(), b"x"].concat();
        let too_large = store.commit(Transaction::new().put(key("b", 1), larger)).await;
        ensure!(
            matches!(too_large, Err(StoreError::TooLarge { what: "bytes", .. })),
            "{too_large:?}"
        );
        let found = store
            .get(&key("b", 1))
            .await?
            .context("the largest value is missing")?;
        ensure!(found.value == large);
        // Together larger than the largest answer: the pages get smaller.
        for name in 0..50 {
            store
                .commit(Transaction::new().put(key("b", name), large.clone()))
                .await?;
        }
        let listing = store.list(&Prefix::new(["b"])?, 1000).await?;
        ensure!(listing.entries().await?.len() == 50);
        Ok(())
    })
}

fn prefixes(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let names = [
            "/a/b", "/a/b/c", "/a-/b", "/a/b-", "/a.b/c", "/b/a", "/a/0", "/aa/b",
        ];
        let all = names.iter().try_fold(Transaction::new(), |all, name| {
            anyhow::Ok(all.put(name.parse()?, *name))
        })?;
        store.commit(all).await?;
        for prefix in [
            Prefix::everything(),
            Prefix::new(["a"])?,
            Prefix::new(["a", "b"])?,
            Prefix::new(["c"])?,
        ] {
            let mut expected: Vec<&str> = names
                .into_iter()
                .filter(|name| name.starts_with(prefix.as_str()))
                .collect();
            expected.sort_unstable();
            for page in [1, 2, 100] {
                let entries = store.list(&prefix, page).await?.entries().await?;
                let found: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
                ensure!(found == expected, "{prefix}: {found:?}");
            }
        }
        Ok(())
    })
}

fn pages(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let names = 50;
        let round = |round: usize| {
            (0..names).fold(Transaction::new(), |all, name| {
                all.put(key("a", name), round.to_string())
            })
        };
        let revision = store.commit(round(0)).await?;
        let mut listing = store.list(&Prefix::new(["a"])?, 7).await?;
        // Other tests write to the same etcd.
        ensure!(listing.revision >= revision);
        let (mut seen, mut rounds) = (Vec::new(), 0);
        while let Some(page) = listing.next_page().await? {
            ensure!(!page.is_empty() && page.len() <= 7, "a page of {}", page.len());
            seen.extend(page);
            rounds += 1;
            store.commit(round(rounds)).await?;
            store
                .commit(Transaction::new().put(key("a", names + rounds), "new"))
                .await?;
            store
                .commit(Transaction::new().delete(key("a", names - rounds)))
                .await?;
        }
        ensure!(seen.len() == names, "{} of {names}", seen.len());
        ensure!(
            seen.iter()
                .all(|entry| entry.value == b"0" && entry.modified == revision)
        );
        Ok(())
    })
}

/// Reads, changes and writes back until no other writer was faster.
async fn increment(store: &dyn Store, name: &Key) -> Result<Revision> {
    loop {
        let (expected, count) = match store.get(name).await? {
            None => (Expected::Absent, 0),
            Some(entry) => (
                Expected::At(entry.modified),
                String::from_utf8(entry.value)?.parse::<u64>()?,
            ),
        };
        let transaction = Transaction::new()
            .expect(name.clone(), expected)
            .put(name.clone(), (count + 1).to_string());
        match store.commit(transaction).await {
            Err(error) if error.is_conflict() => {}
            other => return Ok(other?),
        }
    }
}

fn counters(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (writers, each) = (8, 20);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..writers {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                let mut revisions = Vec::new();
                for _ in 0..each {
                    revisions.push(increment(store.as_ref(), &key("counter", 0)).await?);
                }
                anyhow::Ok(revisions)
            });
        }
        let mut revisions = BTreeSet::new();
        while let Some(done) = tasks.join_next().await {
            revisions.extend(done??);
        }
        ensure!(revisions.len() == writers * each, "two commits have one revision");
        let entry = store.get(&key("counter", 0)).await?.context("no counter")?;
        ensure!(
            entry.value == (writers * each).to_string().into_bytes(),
            "{entry:?}"
        );
        ensure!(entry.version == (writers * each) as u64);
        Ok(())
    })
}
