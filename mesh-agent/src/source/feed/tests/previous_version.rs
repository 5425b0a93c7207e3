//! Agents of this version and of the one before in one cluster. The fixtures were recorded from agents of
//! version 3.

use mesh_support::watched::Watched as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{announcements::announce_to, *};
use crate::model::{Drained, FailedChecks};

const MANAGER: &str = include_str!("../fixtures/version-3-manager.jsonl");
const NODE: &str = include_str!("../fixtures/version-3-node.jsonl");

fn line(messages: &str, number: usize) -> Value {
    serde_json::from_str(messages.lines().nth(number).unwrap()).unwrap()
}

/// Every field that `recorded` has must be in `sent`, with a value of the same kind: version 3 ignores
/// others.
#[track_caller]
fn assert_readable(recorded: &Value, sent: &Value) {
    match (recorded, sent) {
        (Value::Object(recorded), Value::Object(sent)) => {
            for (name, recorded) in recorded {
                let sent = sent
                    .get(name)
                    .unwrap_or_else(|| panic!("no '{name}' in {sent:?}"));
                assert_readable(recorded, sent);
            }
        }
        (Value::Number(_), Value::Number(_)) | (Value::Null, _) => {}
        (Value::Array(recorded), Value::Array(sent)) => {
            for (recorded, sent) in recorded.iter().zip(sent) {
                assert_readable(recorded, sent);
            }
        }
        (recorded, sent) => assert_eq!(recorded, sent),
    }
}

/// A connection of a worker of version 3.
pub(super) async fn connect(
    server: &Server,
    identity: &NodeIdentity,
) -> (
    Reader<impl tokio::io::AsyncRead + Unpin>,
    Writer<impl tokio::io::AsyncWrite + Unpin>,
) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = "swarm-manager".try_into().unwrap();
    let config = tls::client(identity).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    (
        Reader::new(reader, wire::MAX_FROM_MANAGER),
        Writer::new(writer, wire::MAX_FROM_NODE),
    )
}

#[tokio::test]
async fn worker_of_the_previous_version_follows_and_announces() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);

    let (mut reader, mut writer) = connect(&server, &identity).await;
    writer.send(&line(NODE, 0), LIMIT).await.unwrap();
    for expected in [line(MANAGER, 0), line(MANAGER, 1), line(MANAGER, 2)] {
        assert_readable(&expected, &reader.next_within(LIMIT).await.unwrap());
    }
    writer.send(&line(NODE, 3), LIMIT).await.unwrap();
    timeout(LIMIT, server.hint.hinted()).await.expect("no hint came");
    server
        .state
        .send_replace(state(8, snapshot(&["manager-1", "worker-1"], 3)));
    let delta = async {
        loop {
            let message: Value = reader.next_within(LIMIT).await.unwrap();
            if message.get("delta").is_some() {
                return message;
            }
        }
    };
    assert_readable(&line(MANAGER, 3), &timeout(LIMIT, delta).await.unwrap());

    let (mut reader, mut writer) = connect(&server, &identity).await;
    writer.send(&line(NODE, 1), LIMIT).await.unwrap();
    assert_readable(&line(MANAGER, 0), &reader.next_within(LIMIT).await.unwrap());
    writer.send(&line(NODE, 2), LIMIT).await.unwrap();
    assert_readable(&line(MANAGER, 4), &reader.next_within(LIMIT).await.unwrap());
    assert_eq!(
        server.state.current().cluster.nodes["worker-1"].datapath,
        NodeDatapath::Ebpf
    );
}

/// A manager of version 3 that plays back what was recorded to one connection, and returns the greeting.
async fn play_back(listener: TcpListener, authority: &Authority, messages: &[usize]) -> Value {
    let config = tls::server(&authority.identity("manager-1", "swarm-manager")).unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, wire::MAX_FROM_NODE);
    let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);
    let greeting = reader.next_within(LIMIT).await.unwrap();
    for &message in messages {
        writer.send(&line(MANAGER, message), LIMIT).await.unwrap();
    }
    // The connection stays until the peer closes it.
    while reader.next::<Value>().await.is_ok() {}
    greeting
}

#[tokio::test]
async fn manager_of_the_previous_version_is_followed() {
    let authority = Authority::new("cluster-1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let worker = async {
        let mut client = follow(&[address], authority.identity("worker-1", WORKER));
        let seen = client.until("the last change", |state| state.revision == 8).await;
        assert_eq!(seen.cluster.services.len(), 3);
        assert!(seen.confirmed.is_some() && seen.trouble.is_none(), "{seen:?}");
    };
    let (greeting, ()) = tokio::join!(play_back(listener, &authority, &[0, 1, 2, 3]), worker);
    // That agent serves exactly this version.
    assert_readable(&line(NODE, 0), &greeting);
    assert_eq!(greeting["hello"]["version"], 3);
}

/// What a manager of version 4 accepts.
const MAX_FROM_NODE_BEFORE_5: usize = 1 << 10;

#[tokio::test]
async fn manager_of_version_4_is_announced_no_more_than_it_can_read() {
    let authority = Authority::new("cluster-1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let identity = authority.identity("worker-1", WORKER);
    let announcing = announce_to(&[listener.local_addr().unwrap()], identity, NodeDatapath::Ebpf);
    announcing.failed.send_modify(|failed| {
        for number in 0..FailedChecks::MAX_TASKS {
            assert!(failed.insert(format!("{number:025}"), &"x".repeat(FailedChecks::MAX_REASON)));
        }
    });
    announcing.drained.send_modify(|drained| {
        drained.tasks = (0..Drained::MAX_TASKS)
            .map(|number| format!("{number:025}"))
            .collect();
    });
    announcing.keys.send_replace(vec![u32::MAX, u32::MAX - 1]);

    let config = tls::server(&authority.identity("manager-1", "swarm-manager")).unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = Reader::new(reader, MAX_FROM_NODE_BEFORE_5);
    let mut writer = Writer::new(writer, wire::MAX_FROM_MANAGER);
    let greeting: Value = reader.next_within(LIMIT).await.unwrap();
    assert!(greeting["hello"]["newest"].as_u64() > Some(4), "{greeting}");
    writer
        .send(&json!({"hello": {"version": 4}}), LIMIT)
        .await
        .unwrap();
    let announced: Value = reader.next_within(LIMIT).await.unwrap();
    assert_eq!(announced["announce"]["datapath"], "ebpf");
    assert_eq!(
        announced["announce"]["drained"]["tasks"].as_array().map(Vec::len),
        Some(24)
    );
    assert!(announced["announce"].get("failed").is_none(), "{announced}");
}
