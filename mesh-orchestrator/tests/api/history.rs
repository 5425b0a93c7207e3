//! Old revisions: list, inspect, compare, roll back.

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Server, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_be_rolled_back_to_any_kept_revision() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 1)).await?;
    for image in ["web:2", "web:3"] {
        let patch = json!({"task_template": {"container_spec": {"image": image}}});
        let patched = server
            .request(Method::PATCH, "/v1/services/web")?
            .json(&patch)
            .send()
            .await?;
        patched.expect(StatusCode::OK)?;
    }
    let history = server.get("/v1/services/web/history").await?;
    let history = history.json.as_array().context("a list")?.clone();
    let revisions: Vec<(&str, &str)> = history
        .iter()
        .map(|one| {
            let text = |value: &serde_json::Value| value.as_str().map_or(0, str::len);
            assert_eq!(one["kind"], "revision");
            assert!(text(&one["author"]["by"]) > 0 && one["author"]["at"].is_u64());
            (
                one["revision"]
                    .as_str()
                    .and_then(|at| at.split('-').next())
                    .unwrap_or_default(),
                one["author"]["action"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(revisions, [("3", "update"), ("2", "update"), ("1", "create")]);

    let old = server.get("/v1/services/web/revisions/1").await?;
    assert_eq!(
        old.json["spec"]["task_template"]["container_spec"]["image"],
        "web:1"
    );
    let path = "task_template.container_spec.image";
    let diff = server.get("/v1/services/web/diff?from=1&to=3").await?;
    assert_eq!(diff.json, json!([{"path": path, "from": "web:1", "to": "web:3"}]));
    let diff = server.get("/v1/services/web/diff").await?;
    assert_eq!(diff.json, json!([{"path": path, "from": "web:2", "to": "web:3"}]));

    let back = server
        .post("/v1/services/web/rollback", json!({"revision": 1}))
        .await?;
    let back = back.expect(StatusCode::OK)?;
    assert!(
        back.json["revision"]
            .as_str()
            .is_some_and(|at| at.starts_with("4-"))
    );
    let view = server.until("web", |view| view.running == 1).await?;
    assert_eq!(view.spec.task_template.container_spec.image, "web:1");
    assert_eq!(view.author.action, "rollback to 1");

    // Without a body: the previous specification.
    let back = server
        .request(Method::POST, "/v1/services/web/rollback")?
        .send()
        .await?;
    back.expect(StatusCode::OK)?;
    let view = server.service("web").await?;
    assert_eq!(view.spec.task_template.container_spec.image, "web:3");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_a_revision_that_is_not_kept_lists_the_kept_ones() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 1)).await?;
    let error = server.get("/v1/services/web/revisions/7").await?;
    let error = error.error(StatusCode::NOT_FOUND, "kept are 1")?;
    assert_eq!((&error["value"], &error["allowed"]), (&json!(7), &json!("1")));
    let error = server.get("/v1/services/web/revisions/seven").await?;
    error.error(StatusCode::BAD_REQUEST, "the number of a revision")?;
    let error = server
        .post("/v1/services/web/rollback", json!({"revision": 9}))
        .await?;
    error.error(StatusCode::NOT_FOUND, "no revision 9")?;
    let error = server.post("/v1/services/web/rollback", json!({})).await?;
    error.error(StatusCode::CONFLICT, "no previous specification")?;
    let error = server.get("/v1/services/web/diff").await?;
    error.error(StatusCode::CONFLICT, "no revision before 1")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_to_a_secret_that_was_removed_is_refused() -> Result<()> {
    let server = Server::start().await?;
    let secret = json!({"name": "key", "data": "aGVsbG8="});
    server
        .post("/v1/secrets", secret)
        .await?
        .expect(StatusCode::CREATED)?;
    let mut with_secret = spec("web", 0);
    with_secret["task_template"]["container_spec"]["secrets"] = json!([{"source": "key"}]);
    server.create(with_secret).await?;
    let patch = json!({"task_template": {"container_spec": {"secrets": []}}});
    let patched = server.request(Method::PATCH, "/v1/services/web")?;
    patched.json(&patch).send().await?.expect(StatusCode::OK)?;
    server
        .until("web", |view| {
            let update = view.update_status.as_ref();
            update.is_none_or(|update| update.completed_at.is_some())
        })
        .await?;
    let removed = server.request(Method::DELETE, "/v1/secrets/key")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    for request in [json!({}), json!({"revision": 1})] {
        let refused = server.post("/v1/services/web/rollback", request).await?;
        refused.error(StatusCode::BAD_REQUEST, "existing secret")?;
    }
    assert_eq!(server.service("web").await?.author.action, "update");
    Ok(())
}
