//! What the store on etcd promises besides: foreign certificates are refused, and losing members or the
//! majority neither loses, repeats nor invents a change.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_orchestrator::store::{
    Expected, Prefix, Revision, SCHEMA, Store, StoreError, Transaction,
    etcd::{EtcdConfig, EtcdStore, EtcdTls},
    membership::{NodeSession, campaign, node_key},
};
use mesh_orchestrator_testing::{
    PATIENCE, QUICK,
    etcd::{Authority, Cluster},
    run,
};
use mesh_support::watched::Newest as _;

use super::{
    members::leader,
    subject::{key, wait_until},
};
use crate::{OwnStory, child::Work};

/// A story that shares a cluster.
type SharedStory = (&'static str, fn(&Cluster) -> Result<()>);

/// Stories that do not stop a member, with keys of their own.
pub(super) fn harmless_stories() -> Vec<SharedStory> {
    vec![
        ("foreign_certificates_are_refused", foreign),
        ("renewed_certificates_are_used_without_a_restart", renewed),
        ("a_store_of_a_newer_release_stays_as_it_is", newer),
        ("two_roots_share_one_etcd", roots),
    ]
}

pub(super) fn stories() -> Vec<OwnStory> {
    vec![
        ("a_lost_member_stops_nothing", member_lost),
        ("a_frozen_member_is_avoided", member_silent),
        (
            "without_a_majority_changes_wait_and_nothing_is_lost",
            majority_lost,
        ),
        ("another_candidate_follows_a_killed_leader", leader_killed),
        ("a_node_registers_again_after_an_outage", cut_off),
    ]
}

/// A child's work: wins the election and leads until it is killed.
pub(crate) fn campaign_until_killed(folder: &Path) -> Result<()> {
    run(async {
        let endpoints = fs::read_to_string(folder.join("endpoints"))?;
        let tls = EtcdTls::from_files(
            &folder.join("ca.pem"),
            &folder.join("client.pem"),
            &folder.join("client.key"),
        )?;
        let endpoints = endpoints.split(',').map(str::to_owned).collect();
        let store: Arc<dyn Store> = Arc::new(EtcdStore::open(EtcdConfig::new(endpoints, Some(tls))).await?);
        let leadership = campaign(&store, "loops", "doomed", QUICK).await?;
        println!("leads");
        leadership.lost().await;
        bail!("leadership was lost")
    })
}

fn foreign(cluster: &Cluster) -> Result<()> {
    run(async {
        let stranger = Authority::new()?;
        for (what, tls) in [
            (
                "a client that the cluster does not know",
                Some(stranger.client(&cluster.authority)?),
            ),
            (
                "a cluster that the client does not know",
                Some(cluster.authority.client(&stranger)?),
            ),
        ] {
            let config = EtcdConfig {
                tls,
                timeout: Duration::from_secs(2),
                ..cluster.config("/mesh")
            };
            match EtcdStore::open(config).await {
                Err(StoreError::Unavailable { .. }) => {}
                other => bail!("{what}: {other:?}"),
            }
        }
        EtcdStore::open(cluster.config("/mesh")).await?;
        let nonsense = EtcdConfig {
            endpoints: vec!["not a URL".to_owned()],
            ..cluster.config("/mesh")
        };
        ensure!(EtcdStore::open(nonsense).await.is_err());
        Ok(())
    })
}

fn renewed(cluster: &Cluster) -> Result<()> {
    run(async {
        let config = EtcdConfig {
            timeout: Duration::from_secs(2),
            ..cluster.config("/renewed")
        };
        let store = EtcdStore::open(config).await?;
        let write = async |value: &str| {
            store
                .commit(Transaction::new().put(key("things", 1), value))
                .await
        };
        write("before").await?;
        // Each is really used: one of another authority is refused.
        let stranger = Authority::new()?;
        store.renew(stranger.client(&cluster.authority)?).await?;
        ensure!(write("refused").await.is_err());
        store.renew(cluster.authority.client(&cluster.authority)?).await?;
        write("after").await?;
        let found = store.get(&key("things", 1)).await?;
        ensure!(found.is_some_and(|entry| entry.value == b"after"));
        Ok(())
    })
}

fn newer(cluster: &Cluster) -> Result<()> {
    run(async {
        let outer = EtcdStore::open(cluster.config("")).await?;
        // The schema is at `<root>.schema` in etcd, which a store with a shorter root can write.
        outer
            .commit(Transaction::new().put("/outer/inner.schema".parse()?, (SCHEMA + 1).to_string()))
            .await?;
        match EtcdStore::open(cluster.config("/outer/inner")).await {
            Err(StoreError::TooNew { found, known, .. }) => {
                ensure!((found, known) == (SCHEMA + 1, SCHEMA));
            }
            other => bail!("{other:?}"),
        }
        Ok(())
    })
}

fn roots(cluster: &Cluster) -> Result<()> {
    run(async {
        let one = EtcdStore::open(cluster.config("/one")).await?;
        let other = EtcdStore::open(cluster.config("/one-other")).await?;
        one.commit(Transaction::new().put(key("a", 1), "one")).await?;
        other.commit(Transaction::new().put(key("a", 2), "other")).await?;
        let entries = one.snapshot().await?.entries().await?;
        ensure!(entries.len() == 1 && entries[0].key == key("a", 1), "{entries:?}");
        // Opens again, with the existing keys.
        let again = EtcdStore::open(cluster.config("/one")).await?;
        ensure!(again.get(&key("a", 1)).await?.is_some());
        Ok(())
    })
}

/// Commits numbered keys until `stop`; returns those that were certainly committed, and those whose outcome
/// is unknown.
async fn write(
    store: Arc<dyn Store>,
    writer: usize,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<(BTreeSet<usize>, BTreeSet<usize>)> {
    let (mut certain, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for number in 0.. {
        if stop.newest() {
            break;
        }
        let name = writer * 10_000 + number;
        let transaction = Transaction::new()
            .expect(key("a", name), Expected::Absent)
            .put(key("a", name), "x");
        match store.commit(transaction).await {
            Ok(_) => drop(certain.insert(name)),
            Err(StoreError::OutcomeUnknown { .. }) => drop(unknown.insert(name)),
            // Nothing was changed: checked at the end.
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((certain, unknown))
}

/// Runs writers and a watch while something happens to the cluster, and checks that they agree at the end.
async fn under_load(
    cluster: &Cluster,
    happens: impl AsyncFnOnce(&Arc<dyn Store>) -> Result<()>,
) -> Result<usize> {
    let store: Arc<dyn Store> = Arc::new(EtcdStore::open(cluster.config("/load")).await?);
    let begin = store.snapshot().await?.revision;
    let mut watch = store.watch(&Prefix::new(["a"])?, begin).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        // Each has connections of its own.
        let store = Arc::new(EtcdStore::open(cluster.config("/load")).await?);
        writers.spawn(write(store, writer, stopped.clone()));
    }
    happens(&store).await?;
    stop.send_replace(true);
    let (mut certain, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    while let Some(done) = writers.join_next().await {
        let (sure, unsure) = done??;
        certain.extend(sure);
        unknown.extend(unsure);
    }
    let mark = store
        .commit(Transaction::new().put(key("a", 99_999), "the end"))
        .await?;
    let mut listed: BTreeSet<usize> = BTreeSet::new();
    for entry in store.list(&Prefix::new(["a"])?, 500).await?.entries().await? {
        ensure!(entry.version == 1, "{} was written twice", entry.key);
        listed.insert(entry.key.name().parse()?);
    }
    listed.remove(&99_999);
    ensure!(
        certain.is_subset(&listed),
        "committed and lost: {:?}",
        certain.difference(&listed)
    );
    let invented: Vec<_> = listed
        .difference(&certain)
        .filter(|name| !unknown.contains(name))
        .collect();
    ensure!(
        invented.is_empty(),
        "reported as not committed, but present: {invented:?}"
    );
    let (mut watched, mut last) = (BTreeSet::new(), Revision(0));
    loop {
        let batch = tokio::time::timeout(PATIENCE, watch.next())
            .await
            .context("the watch delivered nothing in time")?
            .context("the watch has ended")??;
        ensure!(batch.revision > last, "the watch went back");
        last = batch.revision;
        if batch.revision == mark {
            break;
        }
        for event in &batch.events {
            ensure!(watched.insert(event.key().name().parse()?), "delivered twice");
        }
    }
    ensure!(watched == listed, "the watch missed something");
    println!(
        "{} committed, {} unknown, {} in the store",
        certain.len(),
        unknown.len(),
        listed.len()
    );
    Ok(certain.len())
}

/// Waits until the store accepts a change; returns how long that took.
async fn until_committed(store: &Arc<dyn Store>, name: usize) -> Result<Duration> {
    let begin = Instant::now();
    wait_until("a change is accepted", || async {
        match store
            .commit(Transaction::new().put(key("probe", name), "x"))
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_unavailable() => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    Ok(begin.elapsed())
}

fn member_lost() -> Result<()> {
    let cluster = Cluster::start()?;
    run(async {
        let committed = under_load(&cluster, async |store| {
            until_committed(store, 0).await?;
            // The leader, so that the others must elect a new one.
            let lost = cluster.leader()?;
            cluster.kill_member(lost)?;
            let took = until_committed(store, 1).await?;
            println!("accepts changes {took:?} after the leader was killed");
            cluster.start_member(lost)?;
            until_committed(store, 2).await?;
            let lost = (cluster.leader()? + 1) % 3;
            cluster.kill_member(lost)?;
            until_committed(store, 3).await?;
            cluster.start_member(lost)?;
            Ok(())
        })
        .await?;
        ensure!(committed > 20, "only {committed} were committed");
        Ok(())
    })
}

fn member_silent() -> Result<()> {
    let cluster = Cluster::start()?;
    run(async {
        under_load(&cluster, async |store| {
            until_committed(store, 0).await?;
            let silent = cluster.leader()?;
            cluster.freeze_member(silent, true)?;
            let took = until_committed(store, 1).await?;
            println!("accepts changes {took:?} after the leader was frozen");
            cluster.freeze_member(silent, false)?;
            until_committed(store, 2).await?;
            Ok(())
        })
        .await?;
        Ok(())
    })
}

fn majority_lost() -> Result<()> {
    let cluster = Cluster::start()?;
    run(async {
        under_load(&cluster, async |store| {
            until_committed(store, 0).await?;
            cluster.kill_member(0)?;
            cluster.kill_member(1)?;
            // The last member may still accept what it received before it noticed.
            wait_until("a change is refused", || async {
                let answer = store.commit(Transaction::new().put(key("probe", 1), "x")).await;
                Ok(matches!(answer, Err(StoreError::Unavailable { .. })))
            })
            .await?;
            let read = store.get(&key("probe", 0)).await;
            ensure!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
            cluster.start_member(0)?;
            let took = until_committed(store, 2).await?;
            println!("accepts changes {took:?} after the majority came back");
            cluster.start_member(1)?;
            Ok(())
        })
        .await?;
        Ok(())
    })
}

fn leader_killed() -> Result<()> {
    let cluster = Cluster::start()?;
    run(async {
        let config = EtcdConfig {
            root: "/mesh".to_owned(),
            ..cluster.config("/mesh")
        };
        fs::write(cluster.folder().join("endpoints"), config.endpoints.join(","))?;
        let mut child = Work::CampaignUntilKilled
            .command(cluster.folder())?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        ensure!(lines.next().context("the child does not lead")?? == "leads");
        let store: Arc<dyn Store> = Arc::new(EtcdStore::open(config).await?);
        let found = leader(store.as_ref(), "loops")
            .await?
            .context("there is no leader")?;
        ensure!(found.candidate == "doomed");
        child.kill()?;
        child.wait()?;
        let begin = Instant::now();
        let next = tokio::time::timeout(PATIENCE, campaign(&store, "loops", "heir", QUICK)).await??;
        println!("another leads {:?} after the leader was killed", begin.elapsed());
        store
            .commit(next.fence(Transaction::new().put(key("a", 1), "x")))
            .await?;
        Ok(())
    })
}

fn cut_off() -> Result<()> {
    let cluster = Cluster::start()?;
    run(async {
        let store: Arc<dyn Store> = Arc::new(EtcdStore::open(cluster.config("/mesh")).await?);
        let name = node_key("node1")?;
        let node = NodeSession::start(Arc::clone(&store), name.clone(), b"here".to_vec(), QUICK);
        let mut present = node.present();
        tokio::time::timeout(PATIENCE, present.wait_for(|present| *present)).await??;
        let leadership = campaign(&store, "loops", "node1", QUICK).await?;
        for number in 0..3 {
            cluster.kill_member(number)?;
        }
        // It notices before any other node could take over.
        tokio::time::timeout(PATIENCE, leadership.lost()).await?;
        tokio::time::timeout(PATIENCE, present.wait_for(|present| !*present)).await??;
        for number in 0..3 {
            cluster.start_member(number)?;
        }
        tokio::time::timeout(PATIENCE, present.wait_for(|present| *present)).await??;
        ensure!(store.get(&name).await?.is_some());
        node.withdraw().await;
        ensure!(store.get(&name).await?.is_none());
        Ok(())
    })
}
