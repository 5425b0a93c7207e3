//! Managers whose agents cannot be reached, and those that only do not answer.

use tokio::net::TcpListener;

use super::*;

/// A port of loopback on which nothing listens.
async fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn no_manager_can_be_reached_until_one_can() {
    let authority = Authority::new("cluster-1");
    let (first, second) = (free().await, free().await);
    let mut client = follow(&[first, second], authority.identity("worker-1", WORKER));
    let seen = client.until("attempts of both", |state| state.no_manager).await;
    assert!(seen.trouble.unwrap().contains("cannot connect"));
    let server = serve_at(second, &authority).await;
    let seen = client.until("snapshot", |state| state.revision == 7).await;
    assert!(!seen.no_manager, "{seen:?}");
    // The first one still does not answer; that the second does is remembered.
    server.shutdown.cancel();
    server.running.await.unwrap();
    let seen = client.until("the loss", |state| state.trouble.is_some()).await;
    assert!(!seen.no_manager, "{seen:?}");
    client.until("attempts of both", |state| state.no_manager).await;
}

#[tokio::test]
async fn a_manager_that_accepts_and_says_nothing_is_not_out_of_reach() {
    let authority = Authority::new("cluster-1");
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let managers = [mute.local_addr().unwrap(), free().await];
    let mut client = follow(&managers, authority.identity("worker-1", WORKER));
    for failure in ["handshake", "cannot connect", "handshake", "cannot connect"] {
        client
            .until(failure, |state| {
                assert!(!state.no_manager, "{state:?}");
                state
                    .trouble
                    .as_deref()
                    .is_some_and(|trouble| trouble.contains(failure))
            })
            .await;
    }
}
