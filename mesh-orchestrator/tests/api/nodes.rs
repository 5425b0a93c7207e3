//! Nodes can be inspected, labelled and drained, and removed only when they are down.

use anyhow::Result;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, spec};

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_availability_of_a_node_can_be_changed() -> Result<()> {
    let server = Server::start().await?;
    let nodes = server.get("/v1/nodes").await?;
    assert_eq!(nodes.json[0]["id"], "one");
    assert_eq!(nodes.json[0]["status"], "ready");
    assert_eq!(nodes.json[0]["leader"], true);
    assert_eq!(nodes.json[0]["registration"]["engine"], true);
    assert_eq!(server.get("/v1/nodes/one-host").await?.json["id"], "one");
    server
        .get("/v1/nodes/two")
        .await?
        .error(StatusCode::NOT_FOUND, "no such node: two")?;

    let patch = async |body: Value| {
        let request = server.request(Method::PATCH, "/v1/nodes/one")?;
        request.json(&body).send().await
    };
    let patched = patch(json!({"labels": {"zone": "a", "disk": "ssd"}})).await?;
    assert_eq!(
        patched.expect(StatusCode::OK)?.json["labels"],
        json!({"zone": "a", "disk": "ssd"})
    );
    let patched = patch(json!({"labels": {"disk": null}})).await?;
    assert_eq!(patched.json["labels"], json!({"zone": "a"}));

    server.create(spec("web", 1)).await?;
    server.until("web", |view| view.running == 1).await?;
    let drained = patch(json!({"availability": "drain"})).await?;
    assert_eq!(drained.json["availability"], "drain");
    assert_eq!(
        drained.json["labels"],
        json!({"zone": "a"}),
        "labels that are not named stay"
    );
    server.until("web", |view| view.running == 0).await?;

    let error = patch(json!({"availability": "off"})).await?;
    let error = error.error(StatusCode::BAD_REQUEST, "`active`, `pause`, `drain`")?;
    assert_eq!(error["field"], "availability");
    let error = patch(json!({"labels": {"a b": "c"}})).await?;
    error.error(StatusCode::BAD_REQUEST, "labels")?;
    let error = patch(json!({"avail": "drain"})).await?;
    error.error(StatusCode::BAD_REQUEST, "unknown field")?;
    let removed = server.request(Method::DELETE, "/v1/nodes/one")?.send().await?;
    removed.error(StatusCode::CONFLICT, "is not down")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_can_be_removed() -> Result<()> {
    let mut server = Server::start_two().await?;
    drop(server.other.take());
    let handle = &server.machine.handle;
    handle
        .until("the node is down", |state| {
            let other = state.nodes().values().find(|node| node.id.as_str() == "two");
            other.is_some_and(|node| node.status == mesh_orchestrator::objects::NodeStatus::Down)
        })
        .await?;
    let removed = server.request(Method::DELETE, "/v1/nodes/two")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    server.get("/v1/nodes/two").await?.expect(StatusCode::NOT_FOUND)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_admitted_by_its_name_and_removed() -> Result<()> {
    let server = Server::start().await?;
    let admit = async |body: Value| {
        server
            .request(Method::POST, "/v1/nodes")?
            .json(&body)
            .send()
            .await
    };
    let admitted = admit(json!({"name": "edge1", "labels": {"zone": "a"}})).await?;
    let node = admitted.expect(StatusCode::CREATED)?.json;
    assert_eq!(
        (&node["hostname"], &node["role"]),
        (&json!("edge1"), &json!("worker"))
    );
    assert_eq!(node["labels"], json!({"zone": "a"}));
    let error = admit(json!({"name": "edge1"})).await?;
    error.error(StatusCode::CONFLICT, "there is a node edge1 already")?;
    let error = admit(json!({"name": "a b"})).await?;
    error.error(StatusCode::BAD_REQUEST, "is not a node's name")?;
    let cluster = &server.machine.handle.cluster;
    assert!(cluster.worker("edge1").is_ok() && cluster.worker("one-host").is_err());
    let removed = server
        .request(Method::DELETE, "/v1/nodes/edge1?force=true")?
        .send()
        .await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    assert!(cluster.worker("edge1").is_err());
    Ok(())
}
