//! What a worker gets of changes, on a store that is a file.

use std::{collections::BTreeSet, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    super::super::{ChangeError, Cluster, SystemClock},
    *,
};
use crate::{
    commands,
    objects::ObjectChange,
    store::{WatchBatch, redb::RedbStore},
};

async fn make(cluster: &Cluster, changes: Vec<ObjectChange>) -> Result<(), ChangeError> {
    let changed = cluster.change(cluster.author("test", "test"), |_, _| Ok(changes.clone()));
    changed.await.map(drop)
}

fn keys(batch: &WatchBatch) -> impl Iterator<Item = Key> {
    batch.events.iter().map(|event| event.key().clone())
}

#[tokio::test]
async fn a_worker_that_resumes_after_the_first_of_several_changes_gets_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("store.redb")).unwrap();
    let (cluster, upkeep) = Cluster::open(Arc::new(store), Arc::new(SystemClock))
        .await
        .unwrap();
    let shutdown = CancellationToken::new();
    let upkeep = tokio::spawn(upkeep.run(shutdown.clone()));
    let admitted = cluster.read(|state| admit_worker(state, "edge1", &BTreeMap::new(), NOW).unwrap());
    make(&cluster, admitted).await.unwrap();
    let worker = worker_id("edge1");
    let mut feed = cluster.worker_feed(&worker).await.unwrap();
    feed.next().await.unwrap();

    // The manager has all of them before it shows the first one.
    let nodes: Vec<Node> = (1..4).map(node).collect();
    for node in &nodes {
        let put = cluster.read(|state| commands::put_node(state, node.clone(), NOW));
        make(&cluster, put).await.unwrap();
    }
    let shown = feed.next().await.unwrap();
    drop(feed);

    let resumed = cluster.worker_feed_after(&worker, shown.revision).await.unwrap();
    let missed = match resumed {
        Some((_, missed)) => missed,
        // On a machine that is too slow it gets all objects.
        None => cluster.worker_feed(&worker).await.unwrap().next().await.unwrap(),
    };
    let known: BTreeSet<Key> = keys(&shown).chain(keys(&missed)).collect();
    for node in nodes {
        assert!(
            known.contains(&stored::node(&node.id).unwrap()),
            "{}: {shown:?}, then {missed:?}",
            node.id
        );
    }
    shutdown.cancel();
    upkeep.await.unwrap();
}
