//! Webhooks update their service for anyone who has the URL. Calls are limited and recorded.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    client::Answer,
    server::{Server, spec},
};

async fn hook(server: &Server, service: &str, name: &str) -> Result<String> {
    let path = format!("/v1/services/{service}/webhooks");
    let made = server.post(&path, json!({"name": name})).await?;
    let made = made.expect(StatusCode::CREATED)?;
    assert_eq!(
        (&made.json["enabled"], &made.json["name"]),
        (&json!(true), &json!(name))
    );
    let url = made.json["url"].as_str().context("url")?;
    // 256 random bits.
    let path = url.strip_prefix("https://mesh.example").context(url.to_owned())?;
    assert_eq!(path.len(), "/v1/webhooks/".len() + 43, "{path}");
    Ok(path.to_owned())
}

/// Without a token: the URL is all that is needed.
async fn call(server: &Server, path: &str) -> Result<Answer> {
    server.request_as(None, Method::POST, path)?.send().await
}

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_updates_the_service_to_the_image_that_its_tag_refers_to_now() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 2)).await?;
    let before = server.until("web", |view| view.running == 2).await?;
    let path = hook(&server, "web", "ci").await?;
    for (round, letter) in [(1, 'a'), (2, 'b')] {
        server.images.push("web:1", &digest(letter));
        let request = server.request_as(None, Method::POST, &path)?;
        // Any body is accepted.
        let called = request.body(b"\xff not JSON".to_vec()).send().await?;
        assert_eq!(called.expect(StatusCode::OK)?.json, json!({"warnings": null}));
        let view = server
            .until("web", |view| {
                let is_done = view
                    .update_status
                    .as_ref()
                    .is_some_and(|update| update.completed_at.is_some());
                is_done && view.running == 2 && view.task_version > before.task_version
            })
            .await?;
        let template = &view.spec.task_template;
        assert_eq!(template.container_spec.image, format!("web:1@{}", digest(letter)));
        assert_eq!(template.force_update, round);
        assert_eq!(
            (view.author.by.as_str(), view.author.action.as_str()),
            ("webhook ci", "webhook")
        );
    }
    // The tasks are replaced even if the image is the same.
    let version = server.service("web").await?.task_version;
    call(&server, &path).await?.expect(StatusCode::OK)?;
    server
        .until("web", |view| view.task_version > version && view.running == 2)
        .await?;

    let history = server.get("/v1/services/web/history").await?;
    let calls: Vec<Value> = history
        .json
        .as_array()
        .context("a list")?
        .iter()
        .filter(|entry| entry["kind"] == "webhook")
        .cloned()
        .collect();
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[2]["webhook"], "ci");
    assert_eq!(calls[2]["image"], format!("web:1@{}", digest('a')));
    assert!(
        calls[2]["revision"]
            .as_str()
            .is_some_and(|revision| revision.starts_with("2-"))
    );
    let listed = server.get("/v1/services/web/webhooks").await?;
    assert!(listed.json[0]["called_at"].is_u64());
    assert!(
        listed.json[0]["url"]
            .as_str()
            .is_some_and(|url| url.ends_with(&path))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_cannot_be_resolved_is_a_warning_and_the_service_is_updated() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 0)).await?;
    let path = hook(&server, "web", "ci").await?;
    let called = call(&server, &path).await?.expect(StatusCode::OK)?;
    let warnings = called.json["warnings"].to_string();
    assert!(
        warnings.contains("manifest unknown") && warnings.contains("paused"),
        "{warnings}"
    );
    let view = server.service("web").await?;
    assert_eq!(view.spec.task_template.force_update, 1);
    assert_eq!(view.spec.task_template.container_spec.image, "web:1");

    let mut pinned = spec("db", 1);
    pinned["task_template"]["container_spec"]["image"] = format!("db@{}", digest('c')).into();
    server.create(pinned).await?;
    let path = hook(&server, "db", "ci").await?;
    let called = call(&server, &path).await?.expect(StatusCode::OK)?;
    assert!(
        called.json["warnings"].to_string().contains("has no tag"),
        "{}",
        called.text
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_disabled_webhooks_get_the_same_answer() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 1)).await?;
    let path = hook(&server, "web", "ci").await?;
    let unknown = call(&server, "/v1/webhooks/AAAA")
        .await?
        .expect(StatusCode::NOT_FOUND)?;
    let switch = async |enabled: bool| {
        let request = server.request(Method::PATCH, "/v1/services/web/webhooks/ci")?;
        request.json(&json!({"enabled": enabled})).send().await
    };
    assert_eq!(
        switch(false).await?.expect(StatusCode::OK)?.json["enabled"],
        false
    );
    let disabled = call(&server, &path).await?.expect(StatusCode::NOT_FOUND)?;
    assert_eq!(disabled.text, unknown.text);
    switch(true).await?.expect(StatusCode::OK)?;
    call(&server, &path).await?.expect(StatusCode::OK)?;

    let again = server
        .post("/v1/services/web/webhooks", json!({"name": "ci"}))
        .await?;
    again.error(StatusCode::CONFLICT, "a webhook named ci already exists")?;
    let removed = server
        .request(Method::DELETE, "/v1/services/web/webhooks/ci")?
        .send()
        .await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    call(&server, &path).await?.expect(StatusCode::NOT_FOUND)?;
    let removed = server
        .request(Method::DELETE, "/v1/services/web/webhooks/ci")?
        .send()
        .await?;
    removed.expect(StatusCode::NOT_FOUND)?;

    // Removing a service removes its webhooks.
    let path = hook(&server, "web", "ci").await?;
    let removed = server.request(Method::DELETE, "/v1/services/web")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    call(&server, &path).await?.expect(StatusCode::NOT_FOUND)?;
    server.create(spec("web", 1)).await?;
    assert_eq!(server.get("/v1/services/web/webhooks").await?.json, json!([]));
    call(&server, &path).await?.expect(StatusCode::NOT_FOUND)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_webhook_has_its_own_limit() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 0)).await?;
    let (one, other) = (
        hook(&server, "web", "one").await?,
        hook(&server, "web", "other").await?,
    );
    let mut limited = None;
    for _ in 0..20 {
        let called = call(&server, &one).await?;
        if called.status != StatusCode::OK {
            limited = Some(called);
            break;
        }
    }
    let limited = limited.context("twenty calls in a row were accepted")?;
    assert!(
        limited
            .header("retry-after")
            .is_some_and(|seconds| seconds.parse::<u64>().is_ok())
    );
    limited.error(StatusCode::TOO_MANY_REQUESTS, "too often")?;
    call(&server, &other).await?.expect(StatusCode::OK)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_without_a_complete_url_says_what_is_missing() -> Result<()> {
    let server = Server::start_two().await?;
    server.create(spec("web", 0)).await?;
    server.until_other_has("web").await?;
    let path = "/v1/services/web/webhooks";
    let request = server.request_at_other(Method::POST, path)?;
    let made = request.json(&json!({"name": "ci"})).send().await?;
    let made = made.expect(StatusCode::CREATED)?;
    let note = made.json["note"].as_str().context("a note")?;
    assert!(
        note.contains("--api-listen") && note.contains("--api-url"),
        "{note}"
    );
    let url = made.json["url"].as_str().context("url")?;
    assert!(url.starts_with("/v1/webhooks/"), "{url}");
    // On a node that has an API the same webhook has a complete URL.
    let listed = server.get(path).await?;
    assert_eq!(listed.json[0]["url"], format!("https://mesh.example{url}"));
    assert!(listed.json[0].get("note").is_none(), "{}", listed.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_webhook_holds_for_all_nodes_together() -> Result<()> {
    let server = Server::start_two().await?;
    server.create(spec("web", 0)).await?;
    server.until_other_has("web").await?;
    let path = hook(&server, "web", "ci").await?;
    let mut accepted = 0;
    for number in 0..10 {
        let request = match number % 2 {
            0 => server.request(Method::POST, &path)?,
            _ => server.request_at_other(Method::POST, &path)?,
        };
        accepted += u32::from(request.send().await?.status == StatusCode::OK);
    }
    // One more if ten seconds went by.
    assert!((6..=7).contains(&accepted), "{accepted} calls were accepted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_call_is_read_only_if_the_webhook_exists() -> Result<()> {
    let server = Server::start().await?;
    let secret = "A".repeat(43);
    for path in ["/v1/webhooks/AAAA", &format!("/v1/webhooks/{secret}")] {
        // The body never comes.
        let mut stream = tokio::net::UnixStream::connect(server.folder.path().join("one.tokens")).await?;
        let head = format!("POST {path} HTTP/1.1\r\nhost: mesh\r\ncontent-length: 1000\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = [0; 12];
        let read = stream.read_exact(&mut answer);
        timeout(Duration::from_secs(5), read)
            .await
            .context("no answer")??;
        assert_eq!(&answer, b"HTTP/1.1 404");
    }
    Ok(())
}
