//! Tokens: what they allow, and that nothing else is allowed.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use mesh_orchestrator_testing::PATIENCE;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use crate::server::{Server, spec};

async fn token(server: &Server, name: &str, scopes: &[&str]) -> Result<String> {
    let made = server
        .post("/v1/tokens", json!({"name": name, "scopes": scopes}))
        .await?;
    let made = made.expect(StatusCode::CREATED)?;
    Ok(made.json["token"].as_str().context("token")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_do_what_its_scopes_say() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 1)).await?;
    let reader = token(&server, "reader", &["services:read"]).await?;
    let writer = token(&server, "writer", &["services:write", "nodes:read"]).await?;
    let all = token(&server, "all", &["all"]).await?;
    let (ok, no, forbidden) = (StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN);
    for (method, path, body, statuses) in [
        (Method::GET, "/v1/services", None, [no, ok, ok, ok]),
        (Method::GET, "/v1/services/web/tasks", None, [no, ok, ok, ok]),
        (Method::GET, "/v1/nodes", None, [no, forbidden, ok, ok]),
        (Method::GET, "/v1/secrets", None, [no, forbidden, forbidden, ok]),
        (
            Method::GET,
            "/v1/services/web/webhooks",
            None,
            [no, forbidden, forbidden, ok],
        ),
        (Method::GET, "/v1/tokens", None, [no, forbidden, forbidden, ok]),
        (
            Method::POST,
            "/v1/services/web/scale",
            Some(json!({"replicas": 1})),
            [no, forbidden, ok, ok],
        ),
        (
            Method::PATCH,
            "/v1/nodes/one",
            Some(json!({"labels": {"a": "b"}})),
            [no, forbidden, forbidden, ok],
        ),
        (Method::GET, "/v1/openapi.json", None, [ok, ok, ok, ok]),
    ] {
        let callers = [None, Some(&reader), Some(&writer), Some(&all)];
        for (caller, status) in callers.into_iter().zip(statuses) {
            let mut request = server.request_as(caller.map(String::as_str), method.clone(), path)?;
            if let Some(body) = &body {
                request = request.json(body);
            }
            request.send().await?.expect(status)?;
        }
    }
    let view = server.service("web").await?;
    assert_eq!(
        view.author.by, "root",
        "scaling to the current number changes nothing"
    );
    let scaled = server.request_as(Some(&writer), Method::POST, "/v1/services/web/scale")?;
    scaled.json(&json!({"replicas": 2})).send().await?.expect(ok)?;
    assert_eq!(server.service("web").await?.author.by, "token writer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_is_refused_without_a_reason() -> Result<()> {
    let server = Server::start().await?;
    let good = token(&server, "ci", &["services:read"]).await?;
    assert!(good.starts_with("mesh_ci."), "the name is not secret");
    let mut forged = good.clone();
    forged.pop();
    forged.push(if good.ends_with('A') { 'B' } else { 'A' });
    let other = good.replace("mesh_ci.", "mesh_other.");
    for wrong in [
        forged.as_str(),
        &other,
        "",
        "mesh_",
        "x",
        "mesh_../x.y",
        &"A".repeat(4000),
    ] {
        let refused = server
            .request_as(Some(wrong), Method::GET, "/v1/services")?
            .send()
            .await?;
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        refused.expect(StatusCode::UNAUTHORIZED)?;
    }
    let request = || server.request_as(Some(&good), Method::GET, "/v1/services");
    request()?.send().await?.expect(StatusCode::OK)?;
    let removed = server.request(Method::DELETE, "/v1/tokens/ci")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    request()?.send().await?.expect(StatusCode::UNAUTHORIZED)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token() -> Result<()> {
    let server = Server::start().await?;
    let good = token(&server, "ci", &["services:read"]).await?;
    let other = token(&server, "other", &["services:read"]).await?;
    let follow = |token| server.request_as(Some(token), Method::GET, "/v1/events");
    let mut lines = follow(&good)?.lines().await?;
    let mut others = follow(&other)?.lines().await?;
    let removed = server.request(Method::DELETE, "/v1/tokens/ci")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    let end = timeout(PATIENCE, lines.next())
        .await
        .context("the stream does not end")?;
    assert!(end.is_none(), "{end:?}");
    server.create(spec("web", 1)).await?;
    let event = timeout(PATIENCE, others.next())
        .await
        .context("no event in time")?;
    event.context("the stream of another token has ended")??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_once_and_stored_as_a_hash() -> Result<()> {
    let server = Server::start().await?;
    let token = token(
        &server,
        "ci",
        &["services:write", "services:read", "services:read"],
    )
    .await?;
    let secret = token.rsplit('.').next().context("secret")?.to_owned();
    assert_eq!(secret.len(), 43, "256 random bits");
    let listed = server.get("/v1/tokens").await?;
    assert!(!listed.text.contains(&secret), "{}", listed.text);
    assert_eq!(
        listed.json[0]["scopes"],
        json!(["services:read", "services:write"])
    );
    let stored = std::fs::read(server.store_path())?;
    assert!(
        !stored
            .windows(secret.len())
            .any(|bytes| bytes == secret.as_bytes())
    );

    let again = server
        .post("/v1/tokens", json!({"name": "ci", "scopes": ["all"]}))
        .await?;
    again.error(StatusCode::CONFLICT, "a token named ci already exists")?;
    for (body, message) in [
        (json!({"name": "x", "scopes": []}), "at least one"),
        (json!({"name": "x", "scopes": ["service:read"]}), "invalid scope"),
        (json!({"name": "a b", "scopes": ["all"]}), "name"),
        (
            json!({"name": "x", "scopes": ["all"], "expires_at": 1}),
            "in the future",
        ),
    ] {
        server
            .post("/v1/tokens", body)
            .await?
            .error(StatusCode::BAD_REQUEST, message)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_cannot_allow_more_than_its_creator_may() -> Result<()> {
    let server = Server::start().await?;
    let maker = token(&server, "maker", &["tokens:write", "services:read"]).await?;
    let make = |scopes: &[&str]| {
        let body = json!({"name": "made", "scopes": scopes});
        anyhow::Ok(
            server
                .request_as(Some(&maker), Method::POST, "/v1/tokens")?
                .json(&body),
        )
    };
    let error = make(&["all"])?.send().await?;
    error.error(StatusCode::FORBIDDEN, "cannot allow all")?;
    let error = make(&["services:write"])?.send().await?;
    error.error(StatusCode::FORBIDDEN, "cannot allow services:write")?;
    make(&["services:read"])?
        .send()
        .await?
        .expect(StatusCode::CREATED)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_of_a_token_have_no_power_over_nodes_unless_it_says_so() -> Result<()> {
    let server = Server::start().await?;
    let plain = token(&server, "plain", &["services:write", "tokens:write"]).await?;
    let rules = json!({"name": "granted", "scopes": ["services:write", "tokens:write"],
                       "allow": ["bind:/srv"], "ports": ["443"]});
    let made = server
        .post("/v1/tokens", rules)
        .await?
        .expect(StatusCode::CREATED)?;
    assert_eq!(
        (&made.json["allow"], &made.json["ports"]),
        (&json!(["bind:/srv"]), &json!([443]))
    );
    let granted = made.json["token"].as_str().context("token")?.to_owned();
    let all = token(&server, "all", &["all"]).await?;
    let send = async |token: &str, method: Method, path: &str, body: &serde_json::Value| {
        let request = server.request_as(Some(token), method, path)?;
        request.json(body).send().await
    };
    let with_mount = |name: &str, source: &str| {
        let mut spec = spec(name, 0);
        let mount = json!([{"type": "bind", "source": source, "target": "/data"}]);
        spec["task_template"]["container_spec"]["mounts"] = mount;
        spec
    };
    let (created, forbidden) = (StatusCode::CREATED, StatusCode::FORBIDDEN);
    let socket = with_mount("socket", "/run/mesh/admin.sock");
    for refused in [&plain, &granted] {
        let answer = send(refused, Method::POST, "/v1/services", &socket).await?;
        answer.error(forbidden, "bind:/run/mesh/admin.sock")?;
    }
    send(&all, Method::POST, "/v1/services", &socket)
        .await?
        .expect(created)?;
    let data = with_mount("data", "/srv/data");
    send(&plain, Method::POST, "/v1/services", &data)
        .await?
        .expect(forbidden)?;
    send(&granted, Method::POST, "/v1/services", &data)
        .await?
        .expect(created)?;

    // Nor does a change of a service that has it already, or one back to it.
    let patch = json!({"task_template": {"container_spec": {"image": "evil:1"}}});
    let path = "/v1/services/socket";
    send(&plain, Method::PATCH, path, &patch)
        .await?
        .expect(forbidden)?;
    let clean = json!({"task_template": {"container_spec": {"mounts": []}}});
    send(&plain, Method::PATCH, path, &clean)
        .await?
        .expect(StatusCode::OK)?;
    let back = send(&plain, Method::POST, "/v1/services/socket/rollback", &json!({})).await?;
    back.expect(forbidden)?;

    let mut web = spec("web", 0);
    web["endpoint_spec"] = json!({"ports": [{"target_port": "80", "published_port": "8080"}]});
    let refused = send(&granted, Method::POST, "/v1/services", &web).await?;
    refused.error(forbidden, "one of 443")?;
    web["endpoint_spec"]["ports"][0]["published_port"] = json!("443");
    send(&granted, Method::POST, "/v1/services", &web)
        .await?
        .expect(created)?;

    // Secrets and configs by their names.
    let named = json!({"name": "named", "scopes": ["services:write", "tokens:write"],
                       "secrets": ["named-"], "configs": []});
    let made = server
        .post("/v1/tokens", named)
        .await?
        .expect(StatusCode::CREATED)?;
    assert_eq!(
        (&made.json["secrets"], &made.json["configs"]),
        (&json!(["named-"]), &json!([]))
    );
    let named = made.json["token"].as_str().context("token")?.to_owned();
    let all_names = json!({"name": "all-names", "scopes": ["services:write"], "secrets": [""]});
    server
        .post("/v1/tokens", all_names)
        .await?
        .error(StatusCode::BAD_REQUEST, "secrets")?;
    for name in ["named-key", "db-key"] {
        let secret = json!({"name": name, "data": "eA=="});
        server.post("/v1/secrets", secret).await?.expect(created)?;
    }
    let mut with_secret = spec("with-secret", 0);
    with_secret["task_template"]["container_spec"]["secrets"] = json!([{"source": "db-key"}]);
    let refused = send(&named, Method::POST, "/v1/services", &with_secret).await?;
    refused.error(forbidden, "begin with named-")?;
    with_secret["task_template"]["container_spec"]["secrets"] = json!([{"source": "named-key"}]);
    send(&named, Method::POST, "/v1/services", &with_secret)
        .await?
        .expect(created)?;
    let more =
        json!({"name": "more", "scopes": ["services:write"], "secrets": ["named-", "db-"], "configs": []});
    send(&named, Method::POST, "/v1/tokens", &more)
        .await?
        .expect(forbidden)?;

    // A token that makes tokens gives no more than it has.
    for (maker, allow, status) in [
        (&plain, json!(["host-network"]), forbidden),
        (&granted, json!(["bind:/"]), forbidden),
        (&granted, json!(["bind:/srv/data"]), created),
    ] {
        let child = json!({"name": "child", "scopes": ["services:write"], "allow": allow, "ports": ["443"]});
        send(maker, Method::POST, "/v1/tokens", &child)
            .await?
            .expect(status)?;
    }
    Ok(())
}
