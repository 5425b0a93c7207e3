//! Checks of listeners of this process.

use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::admin::view::fixture;

const SOON: Duration = Duration::from_secs(20);

fn tcp(port: u16) -> HealthCheck {
    HealthCheck {
        probe: HealthProbe::Tcp,
        port,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        fall: 2,
        rise: 2,
    }
}

fn target(port: u16) -> Target {
    Target {
        name: "web.1".to_owned(),
        address: Ipv4Addr::LOCALHOST,
        check: tcp(port),
    }
}

async fn until(failed: &mut watch::Receiver<FailedChecks>, reason: Option<&str>) {
    let changed = failed.wait_for(|failed| failed.reason("t1") == reason);
    timeout(SOON, changed).await.expect("in time").expect("it runs");
}

#[tokio::test]
async fn a_replica_is_reported_while_it_does_not_listen_and_forgotten_with_its_task() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (targets, receiver) = watch::channel(Targets::from([("t1".to_owned(), target(address.port()))]));
    let (sender, mut failed) = watch::channel(FailedChecks::default());
    let stop = CancellationToken::new();
    let checking = tokio::spawn(check(receiver, sender, stop.clone()));

    listener.accept().await.unwrap();
    drop(listener);
    until(&mut failed, Some("connection refused")).await;
    let listener = TcpListener::bind(address).await.unwrap();
    until(&mut failed, None).await;

    drop(listener);
    until(&mut failed, Some("connection refused")).await;
    targets.send_replace(Targets::new());
    until(&mut failed, None).await;

    stop.cancel();
    timeout(SOON, checking).await.unwrap().unwrap();
}

#[tokio::test]
async fn no_more_checks_than_the_limit_are_made_at_once() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut slow = target(port);
    slow.check.probe = HealthProbe::Http { path: "/".to_owned() };
    let all = (0..3 * AT_ONCE).map(|number| (format!("t{number}"), slow.clone()));
    let (_targets, receiver) = watch::channel(all.collect());
    let (sender, _failed) = watch::channel(FailedChecks::default());
    let stop = CancellationToken::new();
    let checking = tokio::spawn(check(receiver, sender, stop.clone()));
    let mut open = Vec::new();
    // Nothing is answered, so each holds its slot.
    while let Ok(accepted) = timeout(Duration::from_millis(700), listener.accept()).await {
        open.push(accepted.unwrap());
    }
    assert_eq!(open.len(), AT_ONCE);
    stop.cancel();
    timeout(SOON, checking).await.unwrap().unwrap();
}

#[test]
fn only_this_nodes_active_replicas_of_services_that_ask_for_it_are_checked() {
    let (view, _) = fixture::two_nodes();
    let mut cluster = Cluster::clone(&view.source.cluster);
    let Some(crate::model::Location::Local(container)) = view
        .desired
        .backends
        .values()
        .find(|backend| backend.task == "t1")
        .map(|backend| backend.location)
    else {
        panic!("t1 runs here");
    };
    let containers: BTreeMap<_, _> = ["t1", "t2", "t3"].map(|id| (id.to_owned(), container)).into();
    assert_eq!(targets(&cluster, "id1", &containers), Targets::new());
    cluster.services.get_mut("web-id").unwrap().health = Some(tcp(80));
    let found = targets(&cluster, "id1", &containers);
    let expected = Target {
        address: container.address,
        ..target(80)
    };
    assert_eq!(found, Targets::from([("t1".to_owned(), expected)]));
    let ids: Vec<_> = targets(&cluster, "id2", &containers).into_keys().collect();
    assert_eq!(ids, ["t2"], "t3 is about to end");
    assert_eq!(
        targets(&cluster, "id1", &BTreeMap::new()),
        Targets::new(),
        "it is not found yet"
    );
}
