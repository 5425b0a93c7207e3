//! What the embedded store promises besides: a crash loses no committed transaction, and a damaged or foreign
//! file is a clear error and stays as it is.

use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::store::{
    Expected, Prefix, SCHEMA, Store, StoreError, Transaction,
    redb::{History, RedbStore},
};
use mesh_orchestrator_testing::run;
use proptest::prelude::*;

use super::subject::{key, wait_until};
use crate::{OwnStory, child::Work};

pub(super) fn stories() -> Vec<OwnStory> {
    vec![
        ("a_killed_writer_loses_nothing_that_was_acknowledged", killed),
        ("a_truncated_file_is_an_error_and_stays_as_it_is", cut),
        ("a_file_with_flipped_bits_is_intact_or_an_error", changed),
        ("a_foreign_file_is_an_error_and_stays_as_it_is", no_store),
        ("a_store_of_a_newer_release_stays_as_it_is", newer),
        ("one_process_at_a_time_has_the_file_open", owner),
        ("a_missing_folder_is_an_error", no_folder),
        ("a_crash_releases_all_leases", leases),
        ("the_history_is_limited_by_bytes_too", bytes),
        ("watches_end_when_the_store_is_closed", closed),
    ]
}

pub(super) fn filled(folder: &Path, count: usize) -> Result<PathBuf> {
    let path = folder.join("store.redb");
    run(async {
        let store = RedbStore::open(&path)?;
        for name in 0..count {
            store
                .commit(Transaction::new().put(key("a", name), vec![b'x'; 500]))
                .await?;
        }
        Ok(())
    })?;
    Ok(path)
}

pub(super) fn contents(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    run(async {
        let store = RedbStore::open(path)?;
        let entries = store.snapshot().await?.entries().await?;
        Ok(entries
            .into_iter()
            .map(|entry| (entry.key.as_str().to_owned(), entry.value))
            .collect())
    })
}

/// A child's work: commits pairs of keys and prints the number of each once it is committed.
pub(crate) fn write_until_killed(path: &Path) -> Result<()> {
    run(async {
        let store = RedbStore::open(path)?;
        let mut count: usize = match store.get(&key("count", 0)).await? {
            Some(entry) => String::from_utf8(entry.value)?.parse()?,
            None => 0,
        };
        loop {
            count += 1;
            let number = count.to_string();
            let transaction = Transaction::new()
                .put(key("count", 0), number.as_str())
                .put(key("pair", count % 50), vec![b'x'; count * 37 % 9000])
                .put(key("count", 1), number.as_str());
            store.commit(transaction).await?;
            let mut out = std::io::stdout().lock();
            writeln!(out, "{count}")?;
            out.flush()?;
        }
    })
}

fn killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    let mut acknowledged = 0_usize;
    for round in 0..25_u64 {
        let mut child = Work::WriteUntilKilled
            .command(&path)?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        // The first rounds are killed while the store is created, the later ones after some commits and at
        // any moment within the next.
        if round >= 5 {
            for _ in 0..(round * 7 % 23) {
                acknowledged = lines.next().context("the writer ended")??.parse()?;
            }
        }
        std::thread::sleep(Duration::from_micros(round * 7919 % 4000));
        child.kill()?;
        child.wait()?;
        for line in lines {
            let line = line?;
            // A line that was cut was not acknowledged.
            acknowledged = line.parse().unwrap_or(acknowledged);
        }
        if !path.exists() {
            ensure!(acknowledged == 0, "the store is gone");
            continue;
        }
        let store = RedbStore::open(&path)?;
        let (one, other) = run(async {
            let one = store.get(&key("count", 0)).await?.map(|entry| entry.value);
            Ok((one, store.get(&key("count", 1)).await?.map(|entry| entry.value)))
        })?;
        ensure!(
            one == other,
            "half a transaction after round {round}: {one:?} {other:?}"
        );
        let found: usize = match one {
            Some(value) => String::from_utf8(value)?.parse()?,
            None => 0,
        };
        ensure!(
            found >= acknowledged,
            "{acknowledged} was committed, {found} is there after round {round}"
        );
        ensure!(
            found <= acknowledged + 1,
            "{found} are committed, only {acknowledged} were acknowledged"
        );
        acknowledged = found;
    }
    ensure!(
        acknowledged > 100,
        "only {acknowledged} transactions were written in all rounds"
    );
    // No half-created store is left.
    let left: Vec<_> = fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    ensure!(left.iter().any(|entry| entry.file_name() == "store.redb"));
    Ok(())
}

/// Opening must fail as damaged and leave the file as it is.
fn expect_damaged(path: &Path, what: &str) -> Result<()> {
    let before = fs::read(path)?;
    match RedbStore::open(path) {
        Err(StoreError::Corrupt { store, .. }) => ensure!(store == path.display().to_string()),
        Err(error) => bail!("{what}: {error:?}"),
        Ok(_) => bail!("{what}: it was opened"),
    }
    ensure!(fs::read(path)? == before, "{what}: the file was changed");
    Ok(())
}

fn cut() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = filled(folder.path(), 200)?;
    let whole = fs::read(&path)?;
    for length in [
        0,
        1,
        100,
        512,
        4096,
        5000,
        whole.len() / 3,
        whole.len() / 2,
        whole.len() - 4096,
    ] {
        fs::write(&path, &whole[..length])?;
        expect_damaged(&path, &format!("cut to {length} of {}", whole.len()))?;
    }
    fs::write(&path, &whole)?;
    ensure!(contents(&path)?.len() == 200);
    Ok(())
}

fn changed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = filled(folder.path(), 200)?;
    let expected = contents(&path)?;
    let whole = fs::read(&path)?;
    let mut runner = proptest::test_runner::TestRunner::new(proptest::test_runner::Config {
        cases: 60,
        failure_persistence: None,
        ..Default::default()
    });
    let damage = prop::collection::vec((0..whole.len(), 1..=255_u8), 1..4);
    runner
        .run(&damage, |damage| {
            let mut bytes = whole.clone();
            for (index, change) in damage {
                bytes[index] ^= change;
            }
            fs::write(&path, &bytes).unwrap();
            match contents(&path) {
                // Unused space, or an older copy.
                Ok(found) => prop_assert_eq!(&found, &expected),
                Err(error) => {
                    let error = error.downcast::<StoreError>();
                    prop_assert!(
                        matches!(error, Ok(StoreError::Corrupt { .. } | StoreError::TooNew { .. })),
                        "{:?}",
                        error
                    );
                }
            }
            Ok(())
        })
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn no_store() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    for contents in [
        &b"hello"[..],
        &[0; 20_000],
        &[0xff; 20_000],
        b"{\"format\": \"json\"}",
    ] {
        fs::write(&path, contents)?;
        expect_damaged(&path, "no store")?;
    }
    Ok(())
}

fn newer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = filled(folder.path(), 10)?;
    let set = |schema: u64| -> Result<()> {
        let database = ::redb::Database::open(&path)?;
        let transaction = database.begin_write()?;
        {
            let meta = ::redb::TableDefinition::<&str, u64>::new("meta");
            transaction.open_table(meta)?.insert("schema", schema)?;
        }
        transaction.commit()?;
        Ok(())
    };
    set(SCHEMA + 1)?;
    match RedbStore::open(&path) {
        Err(StoreError::TooNew { found, known, .. }) => ensure!((found, known) == (SCHEMA + 1, SCHEMA)),
        other => bail!("{other:?}"),
    }
    set(SCHEMA)?;
    ensure!(contents(&path)?.len() == 10);
    Ok(())
}

fn owner() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    let store = RedbStore::open(&path)?;
    match RedbStore::open(&path) {
        Err(error @ StoreError::Unavailable { .. }) => {
            ensure!(error.to_string().contains("another process"), "{error}");
        }
        other => bail!("{other:?}"),
    }
    drop(store);
    RedbStore::open(&path)?;
    Ok(())
}

fn no_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    match RedbStore::open(folder.path().join("missing/store.redb")) {
        Err(error @ StoreError::Unavailable { .. }) => {
            ensure!(error.to_string().contains("its folder must exist"), "{error}");
        }
        other => bail!("{other:?}"),
    }
    Ok(())
}

fn leases() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    run(async {
        let store = RedbStore::open(&path)?;
        // As a dying process leaves them.
        let transaction = (0..300).fold(vec![Transaction::new().put(key("a", 0), "x")], |mut all, name| {
            all.push(Transaction::new().put(key("ephemeral", name), "x"));
            all
        });
        for one in transaction {
            store.commit(one).await?;
        }
        Ok(())
    })?;
    ensure!(contents(&path)? == [(key("a", 0).to_string(), b"x".to_vec())]);
    Ok(())
}

fn bytes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let history = History {
        revisions: 1000,
        bytes: 10_000,
    };
    run(async {
        let store = RedbStore::open_with(folder.path().join("store.redb"), history)?;
        let begin = store.snapshot().await?.revision;
        let mut last = begin;
        for name in 0..20 {
            last = store
                .commit(Transaction::new().put(key("a", name), vec![b'x'; 1000]))
                .await?;
        }
        ensure!(matches!(
            store.watch(&Prefix::everything(), begin).await,
            Err(StoreError::Compacted { .. })
        ));
        // Larger than the limit, but the newest transaction is always kept.
        let large = store
            .commit(Transaction::new().put(key("a", 0), vec![b'x'; 20_000]))
            .await?;
        let mut watch = store.watch(&Prefix::everything(), last).await?;
        ensure!(watch.next().await.context("the watch has ended")??.revision == large);
        let next = store
            .commit(
                Transaction::new()
                    .expect(key("a", 0), Expected::At(large))
                    .delete(key("a", 0)),
            )
            .await?;
        ensure!(watch.next().await.context("the watch has ended")??.revision == next);
        Ok(())
    })
}

fn closed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    run(async {
        let store = RedbStore::open(&path)?;
        let mut watch = store
            .watch(&Prefix::everything(), store.snapshot().await?.revision)
            .await?;
        drop(store);
        ensure!(watch.next().await.is_none());
        wait_until("the file can be opened again", || async {
            Ok(RedbStore::open(&path).is_ok())
        })
        .await
    })
}
