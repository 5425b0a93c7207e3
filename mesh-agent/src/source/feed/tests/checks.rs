//! The doctor's check of a manager.

use std::io;

use mesh_support::watched::Watched as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::source::{CheckError, check};

#[tokio::test]
async fn a_check_tells_the_managers_time_and_is_not_a_follower() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    client.until("first snapshot", |state| state.revision == 7).await;
    let before = server.status.current();
    let served = check(server.address, &authority.identity("worker-1", WORKER))
        .await
        .unwrap();
    let ahead = served.clock_ahead.expect("this agent tells its time");
    assert!(ahead.unsigned_abs() < 5_000, "the same clock, {ahead} ms apart");
    assert_eq!(server.status.current(), before, "the follower stays listed");
}

#[tokio::test]
async fn a_failed_check_says_how_far_it_got() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let worker = authority.identity("worker-1", WORKER);

    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let error = check(address, &worker).await.unwrap_err();
    let refused =
        matches!(&error, CheckError::Connect(source) if source.kind() == io::ErrorKind::ConnectionRefused);
    assert!(refused, "{error:?}");

    let stranger = Authority::new("cluster-1").identity("worker-1", WORKER);
    let error = check(server.address, &stranger).await.unwrap_err();
    assert!(matches!(error, CheckError::Handshake(_)), "{error:?}");

    let removed = authority.identity("worker-9", WORKER);
    let error = check(server.address, &removed).await.unwrap_err();
    assert!(matches!(error, CheckError::Greeting(_)), "{error:?}");
    let text = mesh_support::error_chain(&error);
    assert!(text.contains("'worker-9' is not"), "{text}");
}

/// It refuses the purpose, and tells no time.
#[tokio::test]
async fn a_manager_of_the_release_before_is_asked_to_be_followed() {
    let authority = Authority::new("cluster-1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::server(&authority.identity("manager-1", "swarm-manager")).unwrap();
    let old = async {
        let replies = [
            FromManager::Refused {
                reason: "it violates the feed's protocol".to_owned(),
            },
            FromManager::Hello {
                version: VERSION,
                clock: None,
            },
        ];
        let mut purposes = Vec::new();
        for reply in replies {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = TlsAcceptor::from(Arc::clone(&config))
                .accept(stream)
                .await
                .unwrap();
            let (reader, writer) = tokio::io::split(stream);
            let greeting = Reader::new(reader, wire::MAX_FROM_NODE).next().await.unwrap();
            if let FromNode::Hello { purpose, .. } = greeting {
                purposes.push(purpose);
            }
            let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);
            writer.send(&reply, LIMIT).await.unwrap();
        }
        purposes
    };
    let identity = authority.identity("worker-1", WORKER);
    let (purposes, served) = tokio::join!(old, check(address, &identity));
    assert_eq!(purposes, [Purpose::Check, Purpose::Follow]);
    assert_eq!(served.unwrap().clock_ahead, None);
}
