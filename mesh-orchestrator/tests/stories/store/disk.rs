//! What the embedded store promises of its disk: one that is full or read-only stops changes and harms
//! nothing.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::store::{Prefix, Store, StoreError, Transaction, redb::RedbStore};
use mesh_orchestrator_testing::{disk::Disk, run};
use nix::sys::{
    resource::{Resource, setrlimit},
    signal::{SigHandler, Signal, signal},
};

use super::{
    redb::{contents, filled},
    subject::key,
};
use crate::{OwnStory, child::Work};

pub(super) fn stories() -> Vec<OwnStory> {
    vec![
        ("a_read_only_disk_is_an_error", read_only),
        ("a_full_disk_stops_changes_until_there_is_room", full),
        ("a_file_at_its_size_limit_stops_changes", limited),
    ]
}

fn read_only() -> Result<()> {
    let disk = Disk::new("4m")?;
    let path = filled(disk.path(), 10)?;
    disk.set_read_only(true)?;
    for path in [&path, &disk.path().join("new.redb")] {
        match RedbStore::open(path) {
            Err(error @ StoreError::Unavailable { .. }) => {
                ensure!(error.to_string().contains("must be writable"), "{error}");
            }
            other => bail!("{other:?}"),
        }
    }
    disk.set_read_only(false)?;
    ensure!(contents(&path)?.len() == 10);
    Ok(())
}

fn full() -> Result<()> {
    let disk = Disk::new("6m")?;
    let path = disk.path().join("store.redb");
    let ballast = disk.path().join("ballast");
    run(async {
        let store = RedbStore::open(&path)?;
        store.commit(Transaction::new().put(key("small", 0), "x")).await?;
        fs::write(&ballast, vec![0; 1 << 20])?;
        let mut committed = 0;
        let error = loop {
            match store
                .commit(Transaction::new().put(key("a", committed), vec![b'x'; 100_000]))
                .await
            {
                Ok(_) => committed += 1,
                Err(error) => break error,
            }
            ensure!(committed < 100, "the disk did not fill");
        };
        ensure!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        ensure!(error.to_string().contains("make room on its disk"), "{error}");
        // It still reads, and has every committed transaction and no other.
        let entries = store.list(&Prefix::new(["a"])?, 10).await?.entries().await?;
        ensure!(entries.len() == committed, "{} of {committed}", entries.len());
        ensure!(
            store
                .commit(Transaction::new().put(key("a", committed), vec![b'x'; 100_000]))
                .await
                .is_err()
        );
        // A watch outlives it, too.
        let listing = store.snapshot().await?;
        let mut watch = store.watch(&Prefix::everything(), listing.revision).await?;
        drop(listing);
        fs::remove_file(&ballast)?;
        let revision = store
            .commit(Transaction::new().put(key("a", committed), vec![b'x'; 100_000]))
            .await
            .context("there is room again")?;
        let batch = watch.next().await.context("the watch has ended")??;
        ensure!(batch.revision == revision);
        Ok(())
    })?;
    ensure!(contents(&path)?.len() > 1);
    Ok(())
}

fn limited() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.redb");
    let output = Work::WriteToAFullDisk.command(&path)?.output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let committed: usize = String::from_utf8(output.stdout)?.trim().parse()?;
    ensure!(contents(&path)?.len() == committed);
    Ok(())
}

/// A child's work: commits until its file reaches the limit of 3 MB.
pub(crate) fn write_to_a_full_disk(path: &Path) -> Result<()> {
    // SAFETY: ignoring a signal installs no handler.
    unsafe {
        signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
    }
    setrlimit(Resource::RLIMIT_FSIZE, 3_000_000, 3_000_000)?;
    run(async {
        let store = RedbStore::open(path)?;
        let mut committed = 0;
        let error = loop {
            match store
                .commit(Transaction::new().put(key("a", committed), vec![b'x'; 50_000]))
                .await
            {
                Ok(_) => committed += 1,
                Err(error) => break error,
            }
            ensure!(committed < 1000, "the limit has no effect");
        };
        ensure!(error.to_string().contains("make room on its disk"), "{error:?}");
        let entries = store.snapshot().await?.entries().await?;
        ensure!(entries.len() == committed, "{} of {committed}", entries.len());
        println!("{committed}");
        Ok(())
    })
}
