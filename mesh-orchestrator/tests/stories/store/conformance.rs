//! What every store must do, whichever it is.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::store::{
    Entry, Event, Expected, Key, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Prefix, Revision, Store, StoreError,
    Transaction, Watch, WatchBatch,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::{
    oracle::Oracle,
    subject::{Fresh, PATIENCE, Subject, key, run},
};

/// One claim and how it is shown.
pub(crate) type Story = (&'static str, fn(&Subject) -> Result<()>);

pub(crate) fn stories() -> Vec<Story> {
    vec![
        ("a_transaction_is_committed_whole_or_not_at_all", whole),
        ("a_conflict_names_the_key_and_both_revisions", conflicts),
        ("revisions_and_versions_count_changes", versions),
        ("removing_what_is_not_there_changes_nothing", nothing),
        ("any_bytes_can_be_a_value", values),
        ("the_limits_are_the_same_everywhere", limits),
        ("a_prefix_lists_whole_segments_in_key_order", prefixes),
        ("all_pages_of_a_list_are_of_one_revision", pages),
        ("concurrent_writers_lose_no_update", counters),
        ("transfers_between_keys_keep_the_sum", transfers),
        ("a_watch_tells_each_transaction_once_whole_and_in_order", watches),
        ("a_list_and_a_watch_from_it_miss_nothing", gapless),
        ("a_watch_tells_of_its_prefix_only", watched_prefix),
        ("a_forgotten_past_asks_for_a_full_list", forgotten),
        ("a_revision_of_another_store_asks_for_a_full_list", future),
        ("random_transactions_do_as_on_a_plain_map", random),
    ]
}

async fn next(watch: &mut Watch) -> Result<WatchBatch> {
    Ok(tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("the watch says nothing")?
        .context("the watch has ended")??)
}

async fn all(store: &dyn Store) -> Result<(Revision, Vec<Entry>)> {
    let listing = store.snapshot().await?;
    Ok((listing.revision, listing.entries().await?))
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
                    key: told,
                    expected: wanted,
                    found: was,
                }) => {
                    ensure!(
                        (&told, wanted, was) == (key, expected, found),
                        "{told} {wanted} {was:?}"
                    );
                }
                other => bail!("{other:?}"),
            }
        }
        // Conditions alone are a question.
        let question = Transaction::new().expect(two.clone(), Expected::At(revision));
        ensure!(store.commit(question).await? >= revision);
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
        // Larger together than any answer: comes in smaller pages.
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
        ensure!(listing.revision == revision);
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

/// Reads, changes and writes back until nobody else was faster.
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

fn transfers(subject: &Subject) -> Result<()> {
    const ACCOUNTS: usize = 5;
    const SUM: u64 = 500;
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let open = (0..ACCOUNTS).fold(Transaction::new(), |all, name| {
            all.put(key("account", name), "100")
        });
        let begin = store.commit(open).await?;
        let mut watch = store.watch(&Prefix::new(["account"])?, begin).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                for round in 0..25 {
                    let (from, to) = (
                        key("account", (writer + round) % ACCOUNTS),
                        key("account", (writer + 2 * round + 1) % ACCOUNTS),
                    );
                    if from == to {
                        continue;
                    }
                    let (Some(one), Some(other)) = (store.get(&from).await?, store.get(&to).await?) else {
                        bail!("an account is gone");
                    };
                    let (have, had) = (amount(&one)?, amount(&other)?);
                    let transaction = Transaction::new()
                        .expect(from.clone(), Expected::At(one.modified))
                        .expect(to.clone(), Expected::At(other.modified))
                        .put(from, (have.saturating_sub(7)).to_string())
                        .put(to, (had + have.min(7)).to_string());
                    match store.commit(transaction).await {
                        Err(error) if error.is_conflict() => {}
                        other => drop(other?),
                    }
                }
                anyhow::Ok(())
            });
        }
        // Every list, too, is a moment at which the sum is right.
        while !tasks.is_empty() {
            let entries = store.list(&Prefix::new(["account"])?, 2).await?.entries().await?;
            let sum: u64 = entries.iter().map(amount).sum::<Result<u64>>()?;
            ensure!(sum == SUM, "a list has the sum {sum}");
            while let Some(done) = tasks.try_join_next() {
                done??;
            }
        }
        let end = store
            .commit(Transaction::new().put(key("account", ACCOUNTS), "0"))
            .await?;
        let entries = (0..ACCOUNTS)
            .map(|name| {
                let name = key("account", name);
                let entry = Entry {
                    key: name.clone(),
                    value: b"100".to_vec(),
                    created: begin,
                    modified: begin,
                    version: 1,
                };
                (name, entry)
            })
            .collect();
        let mut state = Oracle { entries };
        loop {
            let batch = next(&mut watch).await?;
            state.fold(&batch);
            let sum: u64 = state.entries.values().map(amount).sum::<Result<u64>>()?;
            ensure!(sum == SUM, "the watch has the sum {sum} at {}", batch.revision);
            if batch.revision == end {
                return Ok(());
            }
        }
    })
}

fn amount(entry: &Entry) -> Result<u64> {
    Ok(std::str::from_utf8(&entry.value)?.parse()?)
}

fn watches(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (begin, _) = all(store.as_ref()).await?;
        let mut early = store.watch(&Prefix::everything(), begin).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                let mut committed = Vec::new();
                for round in 0..50 {
                    let transaction = (0..3).fold(Transaction::new(), |all, place| {
                        let name = key("a", (writer * 7 + round * place) % 20);
                        if (round + place) % 5 == 4 {
                            all.delete(name)
                        } else {
                            all.put(name, format!("{writer} {round}"))
                        }
                    });
                    committed.push((store.commit(transaction.clone()).await?, transaction));
                }
                anyhow::Ok(committed)
            });
        }
        let mut committed = Vec::new();
        while let Some(done) = tasks.join_next().await {
            committed.extend(done??);
        }
        committed.sort_by_key(|(revision, _)| *revision);
        let mut state = Oracle::default();
        let expected: Vec<WatchBatch> = committed
            .iter()
            .map(|(revision, transaction)| state.apply(transaction, *revision))
            .filter(|batch| !batch.events.is_empty())
            .collect();
        let mut late = store.watch(&Prefix::everything(), begin).await?;
        let middle = expected.len() / 2;
        let mut half = store
            .watch(&Prefix::everything(), expected[middle].revision)
            .await?;
        for (number, batch) in expected.iter().enumerate() {
            ensure!(
                next(&mut early).await? == *batch,
                "the running watch differs at {number}"
            );
            ensure!(
                next(&mut late).await? == *batch,
                "the late watch differs at {number}"
            );
            if number > middle {
                ensure!(
                    next(&mut half).await? == *batch,
                    "the watch from the middle differs at {number}"
                );
            }
        }
        ensure!(Oracle::of(all(store.as_ref()).await?.1) == state);
        Ok(())
    })
}

fn gapless(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..3 {
            let store = Arc::clone(store);
            writers.spawn(async move {
                for round in 0..60 {
                    let name = key("a", (writer * 5 + round * 3) % 17);
                    let transaction = if round % 4 == 3 {
                        Transaction::new().delete(name)
                    } else {
                        Transaction::new().put(name, format!("{writer} {round}"))
                    };
                    store.commit(transaction).await?;
                }
                anyhow::Ok(())
            });
        }
        let mut readers = tokio::task::JoinSet::new();
        let last = key("a", 99);
        for page in [1, 3, 100] {
            for _ in 0..3 {
                let (store, last) = (Arc::clone(store), last.clone());
                readers.spawn(async move {
                    let listing = store.list(&Prefix::new(["a"])?, page).await?;
                    let mut watch = store.watch(&Prefix::new(["a"])?, listing.revision).await?;
                    let mut state = Oracle::of(listing.entries().await?);
                    while !state.entries.contains_key(&last) {
                        state.fold(&next(&mut watch).await?);
                    }
                    anyhow::Ok(state)
                });
            }
        }
        while let Some(done) = writers.join_next().await {
            done??;
        }
        store.commit(Transaction::new().put(last, "the end")).await?;
        let state = Oracle::of(store.list(&Prefix::new(["a"])?, 100).await?.entries().await?);
        while let Some(read) = readers.join_next().await {
            ensure!(read?? == state, "a reader has come to another state");
        }
        Ok(())
    })
}

fn watched_prefix(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (begin, _) = all(store.as_ref()).await?;
        let mut watch = store.watch(&Prefix::new(["a"])?, begin).await?;
        store
            .commit(Transaction::new().put("/a-/b".parse()?, "x"))
            .await?;
        store.commit(Transaction::new().put("/b/a".parse()?, "x")).await?;
        let both = Transaction::new()
            .put("/a/b".parse()?, "x")
            .put("/b/b".parse()?, "x");
        let revision = store.commit(both).await?;
        let batch = next(&mut watch).await?;
        let keys: Vec<&str> = batch
            .events
            .iter()
            .map(|event: &Event| event.key().as_str())
            .collect();
        ensure!(batch.revision == revision && keys == ["/a/b"], "{batch:?}");
        Ok(())
    })
}

fn forgotten(subject: &Subject) -> Result<()> {
    let subject = subject.alone()?;
    run(async {
        let fresh = subject.fresh().await?;
        let store = &fresh.store;
        let old = store.commit(Transaction::new().put(key("a", 1), "x")).await?;
        store.commit(Transaction::new().put(key("a", 1), "y")).await?;
        fresh.forget().await?;
        for prefix in [Prefix::everything(), Prefix::new(["b"])?] {
            match store.watch(&prefix, old).await {
                Err(StoreError::Compacted { requested, oldest }) => {
                    ensure!(requested == old && oldest > old, "{requested} {oldest}");
                }
                other => bail!("{other:?}"),
            }
        }
        let (revision, _) = all(store.as_ref()).await?;
        let mut watch = store.watch(&Prefix::everything(), revision).await?;
        let newest = store.commit(Transaction::new().put(key("a", 1), "z")).await?;
        ensure!(next(&mut watch).await?.revision == newest);
        Ok(())
    })
}

fn future(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let (revision, _) = all(store.as_ref()).await?;
        let future = Revision(revision.0 + 1_000_000);
        let watch = store.watch(&Prefix::everything(), future).await;
        ensure!(matches!(watch, Err(StoreError::Compacted { .. })), "{watch:?}");
        Ok(())
    })
}

/// A step of a random history: per key, what is expected (nothing, the truth, absence, a lie) and done.
type Step = Vec<(usize, u8, Option<Vec<u8>>)>;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..8));
    let operation = (
        0..6_usize,
        prop_oneof![4 => Just(0_u8), 4 => Just(1), 1 => Just(2), 1 => Just(3)],
        value,
    );
    prop::collection::vec(prop::collection::vec(operation, 0..5), 1..25)
}

fn random(subject: &Subject) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let config = Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime
                .block_on(replay(subject, &steps))
                .map_err(|error| TestCaseError::fail(format!("{error:?}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))
}

async fn replay(subject: &Subject, steps: &[Step]) -> Result<()> {
    let Fresh { store, .. } = &subject.fresh().await?;
    let (begin, _) = all(store.as_ref()).await?;
    let mut oracle = Oracle::default();
    let mut told = Vec::new();
    for step in steps {
        let transaction = step
            .iter()
            .fold(Transaction::new(), |all, (name, expect, value)| {
                let name = key("a", *name);
                let modified = oracle.entries.get(&name).map(|entry| entry.modified);
                let all = match (expect, modified) {
                    (0, _) => all,
                    (1, Some(modified)) => all.expect(name.clone(), Expected::At(modified)),
                    (1 | 2, _) => all.expect(name.clone(), Expected::Absent),
                    (_, _) => all.expect(name.clone(), Expected::At(Revision(begin.0 + 999_999))),
                };
                match value {
                    Some(value) => all.put(name, value.clone()),
                    None => all.delete(name),
                }
            });
        match (
            store.commit(transaction.clone()).await,
            oracle.conflict(&transaction),
        ) {
            (Err(StoreError::Conflict { key, expected, found }), Some(conflict)) => {
                ensure!((key, expected, found) == conflict);
            }
            (Ok(revision), None) => {
                if oracle.changes(&transaction) {
                    told.push(oracle.apply(&transaction, revision));
                }
            }
            (answer, conflict) => bail!("{answer:?}, but {conflict:?}"),
        }
        let (revision, entries) = all(store.as_ref()).await?;
        ensure!(told.last().is_none_or(|batch| batch.revision <= revision));
        ensure!(Oracle::of(entries) == oracle, "the contents differ");
    }
    let mut watch = store.watch(&Prefix::everything(), begin).await?;
    for batch in told {
        ensure!(next(&mut watch).await? == batch, "the watch differs");
    }
    Ok(())
}
