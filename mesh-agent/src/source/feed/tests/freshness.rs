//! A worker between managers whose snapshots are not equally fresh, over real TLS on loopback.

use mesh_support::watched::Watched as _;

use super::*;

/// What a manager has at `epoch`, confirmed so many seconds ago. The number of services tells snapshots
/// apart.
fn confirmed(epoch: u64, age: u64, services: u16) -> SourceState {
    SourceState {
        epoch,
        confirmed: SystemTime::now().checked_sub(Duration::from_secs(age)),
        ..state(epoch, snapshot(&["manager-1", "worker-1"], services))
    }
}

/// Two managers, and a worker that has followed the first one at epoch 100.
async fn two_managers() -> (Server, Server, Client) {
    let authority = Authority::new("cluster-1");
    let (first, second) = (serve(&authority).await, serve(&authority).await);
    first.state.send_replace(confirmed(100, 0, 5));
    let mut client = follow(&[first.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.epoch == 100).await;
    (first, second, client)
}

impl Client {
    /// Waits until the worker refuses an older snapshot, which must not have been in use for a moment.
    async fn until_older(&mut self, manager: &Server) {
        let name = manager.address.to_string();
        self.until("refusal", |state| {
            assert_eq!(state.cluster.services.len(), 5, "an older snapshot was used");
            let trouble = state.trouble.as_deref().unwrap_or_default();
            trouble.contains(&name) && trouble.contains("older than the one in use")
        })
        .await;
    }
}

#[tokio::test]
async fn a_worker_that_changes_managers_keeps_the_fresher_snapshot() {
    let (first, second, mut client) = two_managers().await;
    second.state.send_replace(confirmed(90, 300, 1));
    client.managers.send_replace(vec![second.address]);
    first.shutdown.cancel();
    first.running.await.unwrap();
    client.until_older(&second).await;
    second.state.send_replace(confirmed(101, 0, 2));
    let seen = client.until("newer snapshot", |state| state.epoch == 101).await;
    assert_eq!((seen.cluster.services.len(), seen.trouble), (2, None));
}

#[tokio::test]
async fn a_leader_without_a_quorum_that_has_not_noticed_does_not_win() {
    let (first, second, mut client) = two_managers().await;
    client.managers.send_replace(vec![second.address]);
    second.state.send_replace(confirmed(90, 0, 1));
    first.shutdown.cancel();
    first.running.await.unwrap();
    for services in [2, 3] {
        client.until_older(&second).await;
        second.state.send_replace(confirmed(90, 0, services));
    }
    client.until_older(&second).await;
}

#[tokio::test]
async fn while_every_manager_is_stale_the_snapshot_stays_with_the_time_of_its_confirmation() {
    let authority = Authority::new("cluster-1");
    let (first, second) = (serve(&authority).await, serve(&authority).await);
    let last = confirmed(100, 0, 5);
    first.state.send_replace(confirmed(99, 60, 1));
    second.state.send_replace(confirmed(98, 70, 2));
    let managers = [first.address, second.address];
    let worker = authority.identity("worker-1", WORKER);
    let mut client = follow_after(last.clone(), &managers, worker);
    let seen = client
        .until("trouble", |state| {
            assert_eq!(state.cluster.services.len(), 5, "a stale snapshot was used");
            state
                .trouble
                .as_ref()
                .is_some_and(|trouble| trouble.contains("quorum"))
        })
        .await;
    assert_eq!(seen.confirmed, last.confirmed);
    second.state.send_replace(confirmed(101, 0, 3));
    let seen = client
        .until("a current snapshot", |state| state.epoch == 101)
        .await;
    assert_eq!((seen.cluster.services.len(), seen.trouble), (3, None));
}

#[tokio::test]
async fn a_worker_that_has_nothing_uses_a_stale_snapshot_and_says_so() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let stale = confirmed(100, 60, 5);
    server.state.send_replace(stale.clone());
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    let seen = client.until("a snapshot", |state| state.epoch == 100).await;
    assert!(seen.trouble.unwrap().contains("old"));
    let age = seen.confirmed.unwrap().elapsed().unwrap();
    assert!(age >= Duration::from_secs(60), "{age:?}");
}

#[tokio::test]
async fn another_clusters_snapshot_is_not_kept() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut last = confirmed(100, 0, 5);
    Arc::make_mut(&mut last.cluster).cluster_id = "cluster-2".to_owned();
    let worker = authority.identity("worker-1", WORKER);
    let mut client = follow_after(last, &[server.address], worker);
    assert_eq!(client.state.current().revision, 0);
    client.until("first snapshot", |state| state.revision == 7).await;
}
