//! What every store promises of watches, whichever it is.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use mesh_orchestrator::store::{
    Entry, Event, Expected, Prefix, Revision, StoreError, Transaction, WatchBatch,
};
use mesh_orchestrator_testing::run;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};

use super::{
    Story,
    oracle::Oracle,
    subject::{Fresh, Subject, all, key, next},
};

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("transfers_between_keys_keep_the_sum", transfers),
        (
            "a_watch_delivers_each_transaction_once_whole_and_in_order",
            watches,
        ),
        ("a_list_and_a_watch_from_it_miss_nothing", gapless),
        ("a_watch_delivers_only_its_prefix", watched_prefix),
        ("a_compacted_revision_asks_for_a_full_list", forgotten),
        ("a_revision_of_another_store_asks_for_a_full_list", future),
        ("random_transactions_do_as_on_a_plain_map", random),
    ]
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
        // The sum is right in every list, too.
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
                    let transaction = (0..3).fold(Transaction::new(), |all, number| {
                        let name = key("a", (writer * 7 + round * number) % 20);
                        if (round + number) % 5 == 4 {
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
            ensure!(read?? == state, "a reader reached a different state");
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

/// A step of a random history: per key, what is expected (nothing, the current revision, absence, a wrong
/// revision) and written.
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
    let mut delivered = Vec::new();
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
                    delivered.push(oracle.apply(&transaction, revision));
                }
            }
            (answer, conflict) => bail!("{answer:?}, but {conflict:?}"),
        }
        let (revision, entries) = all(store.as_ref()).await?;
        ensure!(delivered.last().is_none_or(|batch| batch.revision <= revision));
        ensure!(Oracle::of(entries) == oracle, "the contents differ");
    }
    let mut watch = store.watch(&Prefix::everything(), begin).await?;
    for batch in delivered {
        ensure!(next(&mut watch).await? == batch, "the watch differs");
    }
    Ok(())
}
