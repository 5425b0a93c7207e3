//! Many workers at one manager over real TLS, as after another manager was lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use mesh_orchestrator::{
    commands,
    store::{
        Key, Revision,
        remote::{Frames, Managers as _, wire::Frame},
    },
};
use tokio::time::timeout;

use super::{
    super::managers::TlsManagers,
    ALIVE, LISTS,
    tests::{Manager, WORKER, ground},
};

const WORKERS: usize = 50;
/// Longer than a worker waits for a manager that shows nothing.
const QUEUED: usize = 6;

#[tokio::test]
async fn workers_that_wait_for_their_turn_do_not_take_the_manager_for_lost() {
    let (folder, store, certificates) = ground();
    let manager = Manager::start(store, &certificates, "manager1", &folder.path().join("key"), true).await;
    let names: Vec<String> = (0..WORKERS).map(|number| format!("edge{number}")).collect();
    for name in &names {
        manager
            .change(|state, now| commands::admit_worker(state, name, &Default::default(), now))
            .await;
    }
    // Others get their lists, for longer than any worker waits in silence.
    let lists = Arc::clone(&manager.workers.inner.lists);
    let before = lists.acquire_many(u32::try_from(LISTS).unwrap()).await.unwrap();
    let clients = names.iter().map(|name| {
        let client = certificates.client(name, true);
        TlsManagers::new(vec![manager.address.clone()], client)
    });
    let queued = clients.map(|managers| async move {
        let mut frames = managers.follow(None).await.unwrap();
        for _ in 1..QUEUED {
            assert_eq!(frames.next().await.unwrap().unwrap(), Frame::Alive);
        }
        frames
    });
    let queued = join_all(queued).await;
    assert!(ALIVE * u32::try_from(QUEUED).unwrap() > Duration::from_secs(4));
    drop(before);
    let listed = queued.into_iter().map(|mut frames| async move {
        let mut parts = 0;
        loop {
            match frames.next().await.unwrap().unwrap() {
                Frame::Alive => {}
                Frame::Part(part) => parts += part.len(),
                Frame::Whole(_) => return parts,
                other => panic!("{other:?}"),
            }
        }
    });
    for parts in join_all(listed).await {
        assert!(parts >= WORKERS, "each sees all nodes, not {parts} objects");
    }
}

/// Reads what a worker is shown up to the end of the list, or until it is what the store has.
async fn shown(frames: &mut Frames, known: &mut BTreeMap<Key, String>, until: Option<Revision>) -> Revision {
    loop {
        match frames.next().await.unwrap().unwrap() {
            Frame::Part(part) => known.extend(part.into_iter().map(|sent| (sent.key, sent.value))),
            Frame::Whole(revision) => return revision,
            Frame::Change {
                revision,
                put,
                delete,
            } => {
                for key in delete {
                    known.remove(&key);
                }
                known.extend(put.into_iter().map(|sent| (sent.key, sent.value)));
                if until.is_some_and(|until| revision >= until) {
                    return revision;
                }
            }
            Frame::Alive | Frame::Resumed => {}
            Frame::Failed(text) => panic!("{text}"),
        }
    }
}

async fn first(frames: &mut Frames) -> Frame {
    loop {
        match frames.next().await.unwrap().unwrap() {
            Frame::Alive => {}
            frame => return frame,
        }
    }
}

#[tokio::test]
async fn a_worker_that_lost_a_manager_goes_on_at_another_one_without_all_objects() {
    let (folder, store, certificates) = ground();
    let key = folder.path().join("key");
    let one = Manager::start(Arc::clone(&store), &certificates, "manager1", &key, true).await;
    let other = Manager::start(store, &certificates, "manager2", &key, false).await;
    one.admit().await;
    one.create("gone", WORKER, "open").await;
    let follow = |manager: &Manager| {
        let client = certificates.client(WORKER, true);
        TlsManagers::new(vec![manager.address.clone()], client)
    };
    let mut known = BTreeMap::new();
    let mut frames = follow(&one).follow(None).await.unwrap();
    let after = shown(&mut frames, &mut known, None).await;
    drop(frames);

    // Meanwhile a service and a node come, and a service goes.
    let gone = one.cluster.read(|state| {
        let mut services = state.services().values();
        services
            .find(|service| service.spec.name == "gone")
            .unwrap()
            .id
            .clone()
    });
    one.change(|state, _| commands::remove_service(state, &gone))
        .await;
    one.create("web", WORKER, "open").await;
    one.change(|state, now| commands::admit_worker(state, "edge2", &BTreeMap::new(), now))
        .await;

    // The leader goes on to place tasks between the two.
    let same = async {
        loop {
            let mut all = BTreeMap::new();
            let mut list = follow(&other).follow(None).await.unwrap();
            shown(&mut list, &mut all, None).await;
            let mut resumed = known.clone();
            let mut frames = follow(&other).follow(Some(after)).await.unwrap();
            assert_eq!(first(&mut frames).await, Frame::Resumed);
            shown(&mut frames, &mut resumed, Some(after)).await;
            if resumed == all {
                return;
            }
            // A worker's requests are counted.
            tokio::time::sleep(ALIVE * 2).await;
        }
    };
    timeout(Duration::from_secs(30), same).await.unwrap();

    // A store that does not have the changes any more, or never had them.
    let mut frames = follow(&other).follow(Some(Revision(u64::MAX))).await.unwrap();
    assert!(matches!(first(&mut frames).await, Frame::Part(_)));
}
