//! `cargo xtask bench orchestrator`, the stores: transactions per second, a long list and a read, on the
//! embedded store and on an etcd cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use mesh_orchestrator::store::{InvalidKey, Key, Store, Transaction};
use mesh_orchestrator_testing::{etcd::Cluster, lab::Lab, run};

const TIME: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    measure("redb", &Lab::redb()?)?;
    measure("etcd", &Lab::etcd(Arc::new(Cluster::start()?)))
}

fn measure(name: &str, lab: &Lab) -> Result<()> {
    run(async {
        let store = lab.store().await?;
        for writers in [1, 16, 64] {
            let count = write(&store, writers).await?;
            println!(
                "{name}: {writers} writers, {:.0} transactions of 1 KB a second",
                count / TIME.as_secs_f64()
            );
        }
        for first in (0..5000).step_by(100) {
            let mut batch = Transaction::new();
            for number in first..first + 100 {
                batch = batch.put(key("many", number)?, vec![b'x'; 1000]);
            }
            store.commit(batch).await?;
        }
        let begin = Instant::now();
        let count = store.snapshot().await?.entries().await?.len();
        println!("{name}: a list of {count} entries in {:?}", begin.elapsed());
        let begin = Instant::now();
        for _ in 0..1000 {
            store.get(&key("many", 1)?).await?;
        }
        println!("{name}: a read in {:?}", begin.elapsed() / 1000);
        Ok(())
    })
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
                    Transaction::new().put(key("t", writer * 50 + number % 50)?, vec![b'x'; 1000]);
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

fn key(kind: &str, number: usize) -> Result<Key, InvalidKey> {
    Key::new([kind, &format!("{number:05}")])
}
