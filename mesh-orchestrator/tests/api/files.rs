//! Secrets, configs and registries: no answer contains secret data.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    providers::WRONG,
    server::{Server, spec},
};

const VALUE: &str = "correct horse battery staple";

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_contains_a_secret() -> Result<()> {
    let server = Server::start().await?;
    let data = STANDARD.encode(VALUE);
    let secret = json!({"name": "key", "labels": {"a": "b"}, "data": data});
    let made = server.post("/v1/secrets", secret.clone()).await?;
    let made = made.expect(StatusCode::CREATED)?;
    let id = made.json["id"].as_str().context("id")?.to_owned();
    let listed = server.get("/v1/secrets").await?;
    let found = server.get("/v1/secrets/key").await?;
    let by_id = server.get(&format!("/v1/secrets/{}", &id[..10])).await?;
    let again = server.post("/v1/secrets", secret).await?;
    for answer in [&made, &listed, &found, &by_id, &again] {
        assert!(
            !answer.text.contains(&data) && !answer.text.contains(VALUE),
            "{}",
            answer.text
        );
        assert!(!answer.text.contains("sealed"), "{}", answer.text);
    }
    assert_eq!(
        (&found.json["size"], &found.json["labels"]),
        (&json!(28), &json!({"a": "b"}))
    );
    assert_eq!(by_id.json, found.json);
    again.error(StatusCode::CONFLICT, "the secret key already exists")?;

    // Errors do not contain the data either.
    for (data, message) in [
        (json!("hunter2!"), "base64"),
        (json!(""), "at least one byte"),
        (json!(31337), "expected a string"),
    ] {
        let body = json!({"name": "other", "data": data});
        let error = server.post("/v1/secrets", body).await?;
        assert!(
            !error.text.contains("hunter2") && !error.text.contains("31337"),
            "{}",
            error.text
        );
        error.error(StatusCode::BAD_REQUEST, message)?;
    }
    // Nor does the store's file.
    let stored = std::fs::read(server.store_path())?;
    assert!(!stored.windows(VALUE.len()).any(|bytes| bytes == VALUE.as_bytes()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn data_has_dockers_size_limits() -> Result<()> {
    let server = Server::start().await?;
    let most = |bytes: usize| STANDARD.encode(vec![7; bytes]);
    for (path, limit) in [("/v1/secrets", 500 << 10), ("/v1/configs", 1000 << 10)] {
        let body = json!({"name": "large", "data": most(limit)});
        server.post(path, body).await?.expect(StatusCode::CREATED)?;
        let body = json!({"name": "larger", "data": most(limit + 1)});
        let error = server.post(path, body).await?;
        error.error(StatusCode::PAYLOAD_TOO_LARGE, &limit.to_string())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_or_config_in_use_cannot_be_removed() -> Result<()> {
    let server = Server::start().await?;
    let data = STANDARD.encode(VALUE);
    for path in ["/v1/secrets", "/v1/configs"] {
        let body = json!({"name": "file", "data": data});
        server.post(path, body).await?.expect(StatusCode::CREATED)?;
    }
    let config = server.get("/v1/configs/file").await?;
    assert_eq!(config.json["data"], data.as_str());
    assert_eq!(server.get("/v1/configs").await?.json[0]["data"], Value::Null);
    let mut user = spec("web", 1);
    user["task_template"]["container_spec"]["secrets"] = json!([{"source": "file"}]);
    user["task_template"]["container_spec"]["configs"] = json!([{"source": "file"}]);
    server.create(user).await?;
    for path in ["/v1/secrets/file", "/v1/configs/file"] {
        assert_eq!(server.get(path).await?.json["services"], json!(["web"]));
        let removed = server.request(Method::DELETE, path)?.send().await?;
        removed.error(StatusCode::CONFLICT, "is in use by web")?;
    }
    let removed = server.request(Method::DELETE, "/v1/services/web")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    for path in ["/v1/secrets/file", "/v1/configs/file"] {
        let removed = server.request(Method::DELETE, path)?.send().await?;
        removed.expect(StatusCode::NO_CONTENT)?;
        server.get(path).await?.expect(StatusCode::NOT_FOUND)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_contains_the_password_of_a_registry() -> Result<()> {
    let server = Server::start().await?;
    let path = "/v1/registries/registry.example:5000";
    for (username, password) in [("ann", "first-password"), ("bob", "second-password")] {
        let body = json!({"username": username, "password": password});
        let put = server.request(Method::PUT, path)?.json(&body).send().await?;
        assert!(!put.text.contains("password"), "{}", put.text);
        assert_eq!(put.expect(StatusCode::OK)?.json["username"], username);
    }
    // Nothing is stored that the registry refuses, unless the caller says that it could not be asked.
    let log_in = async |unchecked: bool| {
        let login = json!({"username": "me", "password": WRONG, "unchecked": unchecked});
        let request = server.request(Method::PUT, "/v1/registries/other.example")?;
        request.json(&login).send().await
    };
    let refused = log_in(false).await?;
    refused.error(StatusCode::UNPROCESSABLE_ENTITY, "incorrect username or password")?;
    let path_of_other = "/v1/registries/other.example";
    let missing = server.request(Method::DELETE, path_of_other)?.send().await?;
    missing.expect(StatusCode::NOT_FOUND)?;
    log_in(true).await?.expect(StatusCode::OK)?;
    let removed = server.request(Method::DELETE, path_of_other)?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    let listed = server.get("/v1/registries").await?;
    assert!(!listed.text.contains("password"), "{}", listed.text);
    assert_eq!(listed.json[0]["host"], "registry.example:5000");
    assert_eq!(listed.json[0]["username"], "bob");
    let body = json!({"username": "ann", "password": "x"});
    let wrong = server
        .request(Method::PUT, "/v1/registries/a%2Fb")?
        .json(&body)
        .send()
        .await?;
    wrong.error(StatusCode::BAD_REQUEST, "host[:port]")?;
    let removed = server.request(Method::DELETE, path)?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    assert_eq!(server.get("/v1/registries").await?.json, json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_secrets_is_replaced() -> Result<()> {
    let path = "/v1/secrets-key/rotate";
    let server = Server::start().await?;
    let secret = json!({"name": "key", "data": STANDARD.encode(VALUE)});
    server
        .post("/v1/secrets", secret.clone())
        .await?
        .expect(StatusCode::CREATED)?;
    let rotated = server.post(path, json!({})).await?.expect(StatusCode::OK)?;
    assert_eq!(
        (&rotated.json["finished"], &rotated.json["encrypted"]),
        (&json!(true), &json!(1))
    );
    // With a second node, which has to be given the file first.
    let server = Server::start_two().await?;
    server
        .post("/v1/secrets", secret)
        .await?
        .expect(StatusCode::CREATED)?;
    server
        .post(path, json!({"finish": true}))
        .await?
        .expect(StatusCode::CONFLICT)?;
    let prepared = server.post(path, json!({})).await?.expect(StatusCode::OK)?;
    assert_eq!(prepared.json["finished"], false);
    let finished = server
        .post(path, json!({"finish": true}))
        .await?
        .expect(StatusCode::OK)?;
    assert_eq!(
        (&finished.json["key"], &finished.json["encrypted"]),
        (&prepared.json["key"], &json!(1))
    );
    Ok(())
}
