//! What a manager asks of a node, and the answers, over real TLS on loopback.

use super::{
    announcements::{announce, announce_to, greeting},
    previous_version::connect,
    *,
};
use crate::{
    model::{DrainReport, DrainRequest, DrainedReplica},
    source::{RelayError, RelayedRequest},
};

/// So many replicas with names so long that they need several messages.
fn report() -> DrainReport {
    let replica = |number: u64| DrainedReplica {
        task: format!("{:063}.{number:025}", 0),
        task_id: format!("{number:025}"),
        open: Some(number),
    };
    DrainReport {
        node: true,
        replicas: (0..10).map(replica).collect(),
    }
}

impl Server {
    /// Asks as soon as the node is connected.
    async fn ask(&self, request: Option<DrainRequest>) -> Result<DrainReport, RelayError> {
        until_connected(async || self.relay.drain("worker-1", request.clone()).await).await
    }

    /// Reads as soon as the node is connected.
    async fn read(&self, path: &str) -> Result<String, RelayError> {
        until_connected(async || self.relay.read("worker-1", path.to_owned()).await).await
    }
}

async fn until_connected<T>(ask: impl AsyncFn() -> Result<T, RelayError>) -> Result<T, RelayError> {
    let asked = async {
        loop {
            match ask().await {
                Err(RelayError::NotConnected) => tokio::time::sleep(Duration::from_millis(10)).await,
                answer => return answer,
            }
        }
    };
    timeout(LIMIT, asked).await.expect("the node did not connect")
}

#[tokio::test]
async fn a_manager_asks_a_node_and_gets_its_whole_answer() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut node = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    let request = DrainRequest {
        target: "worker-1".to_owned(),
        undo: false,
        force: true,
    };
    for (request, answer) in [
        (Some(request), Ok(report())),
        (None, Ok(DrainReport::default())),
        (None, Err("\u{1f6ab}".repeat(2000))),
    ] {
        let agent = async {
            let RelayedRequest::Drain {
                request: asked,
                answer: sender,
            } = node.asked.recv().await.unwrap()
            else {
                panic!("a request about drains");
            };
            assert_eq!(asked, request);
            sender.send(answer.clone()).unwrap();
        };
        let (answered, ()) = tokio::join!(server.ask(request.clone()), agent);
        match answer {
            Ok(report) => assert_eq!(answered, Ok(report)),
            Err(reason) => match answered {
                Err(RelayError::Refused(shown)) => assert!(!shown.is_empty() && reason.starts_with(&shown)),
                other => panic!("{other:?}"),
            },
        }
    }
}

#[tokio::test]
async fn an_agent_that_stops_instead_of_answering_says_so() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut node = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    let agent = async {
        let asked = node.asked.recv().await.unwrap();
        drop(asked);
    };
    let (answered, ()) = tokio::join!(server.ask(None), agent);
    let stopping = RelayError::Refused("the agent is stopping".to_owned());
    assert_eq!(answered, Err(stopping));
}

/// It would end the connection at a message that it does not know.
#[tokio::test]
async fn a_node_that_does_not_take_requests_is_sent_none() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let (mut reader, mut writer) = connect(&server, &identity).await;
    writer.send(&greeting(), LIMIT).await.unwrap();
    let hello: FromManager = reader.next_within(LIMIT).await.unwrap();
    assert!(matches!(hello, FromManager::Hello { .. }), "{hello:?}");
    for _ in 0..2 {
        writer.send(&announce(NodeDatapath::Ebpf), LIMIT).await.unwrap();
        let reply: FromManager = reader.next_within(LIMIT).await.unwrap();
        assert!(matches!(reply, FromManager::Acknowledged { .. }), "{reply:?}");
        let asked = server.relay.drain("worker-1", None).await;
        assert_eq!(asked, Err(RelayError::NotConnected));
    }
}

#[tokio::test]
async fn a_manager_reads_a_text_of_any_length_from_a_node() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let mut node = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    for text in ["{}".to_owned(), "\"\u{1f6ab}\"".repeat(50_000)] {
        let agent = async {
            let RelayedRequest::Read { path, answer } = node.asked.recv().await.unwrap() else {
                panic!("a request to read");
            };
            assert_eq!(path, "flows?limit=1");
            answer.send(Ok(text.clone())).unwrap();
        };
        let (read, ()) = tokio::join!(server.read("flows?limit=1"), agent);
        assert_eq!(read, Ok(text));
    }
}
