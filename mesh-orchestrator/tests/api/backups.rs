//! A backup is created, verified and restored.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Server, spec};

#[tokio::test(flavor = "multi_thread")]
async fn restoring_a_backup_brings_back_what_was_removed() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 2)).await?;
    let secret = json!({"name": "key", "data": STANDARD.encode("hunter2")});
    server
        .post("/v1/secrets", secret)
        .await?
        .expect(StatusCode::CREATED)?;
    server.until("web", |view| view.running == 2).await?;
    let made = server.request(Method::POST, "/v1/backups")?.send().await?;
    let made = made.expect(StatusCode::CREATED)?;
    let name = made.json["name"].as_str().context("name")?.to_owned();
    assert_eq!(made.json["kind"], "manual");
    let listed = server.get("/v1/backups").await?;
    assert_eq!(listed.json[0], made.json);
    let path = format!("/v1/backups/{name}");
    let inspected = server.get(&path).await?.expect(StatusCode::OK)?;
    assert_eq!(inspected.json["content"]["services"], json!(["web"]));
    assert_eq!(inspected.json["content"]["entries"]["secrets"], 1);
    assert_eq!(inspected.json["sha256"].as_str().map(str::len), Some(64));

    for removed in ["/v1/services/web", "/v1/secrets/key"] {
        let removed = server.request(Method::DELETE, removed)?.send().await?;
        removed.expect(StatusCode::NO_CONTENT)?;
    }
    server.create(spec("other", 1)).await?;
    let restore = async |body: Value| {
        let path = format!("{path}/restore");
        server.post(&path, body).await
    };
    restore(json!({}))
        .await?
        .error(StatusCode::CONFLICT, "\"replace\": true")?;
    restore(json!({"replace": true})).await?.expect(StatusCode::OK)?;
    server
        .get("/v1/services/other")
        .await?
        .expect(StatusCode::NOT_FOUND)?;
    server.get("/v1/secrets/key").await?.expect(StatusCode::OK)?;
    server.until("web", |view| view.running == 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_a_file_that_is_not_a_backup_changes_nothing() -> Result<()> {
    let server = Server::start().await?;
    for name in [
        "..%2F..%2Fetc%2Fpasswd",
        "x",
        "manual-20261121T190000.000Z.mesh-backup",
    ] {
        server
            .get(&format!("/v1/backups/{name}"))
            .await?
            .expect(StatusCode::NOT_FOUND)?;
    }
    let name = "manual-20261121T190000.000Z.mesh-backup";
    let file = server.folder.path().join("backups").join(name);
    std::fs::write(&file, "{}\n")?;
    server.create(spec("web", 1)).await?;
    let path = format!("/v1/backups/{name}/restore");
    let refused = server.post(&path, json!({"replace": true})).await?;
    refused.error(StatusCode::UNPROCESSABLE_ENTITY, "is not a backup")?;
    server.service("web").await?;
    Ok(())
}
