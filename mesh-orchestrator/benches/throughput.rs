//! How many transactions each store commits in a second. Run by name, with `--ignored`, in a release build.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use mesh_orchestrator::store::{Store, Transaction};

use crate::{
    etcd::cluster::{Cluster, Shared},
    subject::{Subject, key, run},
};

const TIME: Duration = Duration::from_secs(3);

pub(crate) fn measure(cluster: &Shared) -> Result<()> {
    for (name, subject) in [
        ("redb", Subject::Redb),
        ("etcd", Subject::Etcd(Cluster::shared(cluster)?)),
    ] {
        run(async {
            let fresh = subject.fresh().await?;
            for writers in [1, 16, 64] {
                let count = write(&fresh.store, writers).await?;
                println!(
                    "{name}: {writers} writers, {:.0} transactions of 1 KB a second",
                    count / TIME.as_secs_f64()
                );
            }
            for name in 0..5000 {
                if name % 100 == 0 {
                    let batch = (name..name + 100).fold(Transaction::new(), |all, name| {
                        all.put(key("many", name), vec![b'x'; 1000])
                    });
                    fresh.store.commit(batch).await?;
                }
            }
            let begin = Instant::now();
            let count = fresh.store.snapshot().await?.entries().await?.len();
            println!("{name}: a list of {count} entries in {:?}", begin.elapsed());
            let begin = Instant::now();
            for _ in 0..1000 {
                fresh.store.get(&key("many", 1)).await?;
            }
            println!("{name}: a read in {:?}", begin.elapsed() / 1000);
            Ok(())
        })?;
    }
    Ok(())
}

async fn write(store: &Arc<dyn Store>, writers: usize) -> Result<f64> {
    let count = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let end = Instant::now() + TIME;
    for writer in 0..writers {
        let (store, count) = (Arc::clone(store), Arc::clone(&count));
        tasks.spawn(async move {
            let mut number = 0;
            while Instant::now() < end {
                number += 1;
                let transaction =
                    Transaction::new().put(key("t", writer * 50 + number % 50), vec![b'x'; 1000]);
                store.commit(transaction).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(u32::try_from(count.load(Ordering::Relaxed)).map_or(f64::MAX, f64::from))
}
