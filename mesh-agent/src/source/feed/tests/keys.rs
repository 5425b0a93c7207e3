//! The key of packets between nodes, on its way to the nodes and back as what they take, over real TLS on
//! loopback.

use mesh_support::watched::Watched as _;

use super::{announcements::announce_to, *};
use crate::model::{KeyId, TunnelKey};

impl Server {
    /// The keys that the snapshot says a node takes.
    async fn until_takes(&self, keys: Option<&[KeyId]>) {
        let mut state = self.state.subscribe();
        let published = state.wait_for(|state| {
            let node = &state.cluster.nodes["worker-1"];
            node.datapath == NodeDatapath::Ebpf && node.keys.as_deref() == keys
        });
        if timeout(LIMIT, published).await.is_err() {
            panic!(
                "{keys:?} was not published: {:?}",
                self.state.current().cluster.nodes
            );
        }
    }
}

#[tokio::test]
async fn a_node_receives_the_key_with_its_snapshot_and_a_new_one_without_another() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let [first, second] = ["first", "second"].map(|secret| TunnelKey::derive(secret.as_bytes(), "cluster-1"));
    server.state.send_modify(|state| state.key = Some(first));
    let mut client = follow(&[server.address], authority.identity("worker-1", WORKER));
    let seen = client.until("first snapshot", |state| state.revision == 7).await;
    assert_eq!(seen.key, Some(first));
    server.state.send_modify(|state| state.key = Some(second));
    let seen = client.until("new key", |state| state.key == Some(second)).await;
    assert_eq!(seen.revision, 7);
}

#[tokio::test]
async fn a_node_announces_the_keys_that_it_takes_once_it_holds_one() {
    let authority = Authority::new("cluster-1");
    let server = serve(&authority).await;
    let identity = authority.identity("worker-1", WORKER);
    let node = announce_to(&[server.address], identity, NodeDatapath::Ebpf);
    server.until_takes(None).await;
    node.keys.send_replace(vec![7]);
    server.until_takes(Some(&[7])).await;
    node.keys.send_replace(vec![7, 8]);
    server.until_takes(Some(&[7, 8])).await;
}

#[test]
fn an_announcement_without_keys_is_of_a_release_without_keys() {
    let announcement: FromNode = serde_json::from_str(r#"{"announce": {"datapath": "ebpf"}}"#).unwrap();
    let FromNode::Announce { keys, .. } = announcement else {
        panic!("no announcement");
    };
    assert_eq!(crate::source::announcements::known_keys(keys), Some(Vec::new()));
    assert_eq!(
        crate::source::announcements::known_keys(Some(Vec::new())),
        None,
        "it may be about to hold one"
    );
}
