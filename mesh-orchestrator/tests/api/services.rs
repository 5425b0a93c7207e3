//! Services are created, inspected, changed at the revision that was read, and removed.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mesh_orchestrator_testing::{PATIENCE, etcd, lab::Lab};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Server, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_created_and_runs_and_is_found_by_name_id_and_prefix() -> Result<()> {
    let server = Server::start().await?;
    let made = server.create(spec("web", 2)).await?;
    let id = made.json["id"].as_str().context("id")?.to_owned();
    let revision = made.json["revision"].as_str().context("revision")?;
    assert!(revision.starts_with("1-"), "{revision}");
    assert_eq!(made.header("etag"), Some(format!("\"{revision}\"").as_str()));
    assert!(made.json["warnings"].to_string().contains("on a registry"));

    let view = server.until("web", |view| view.running == 2).await?;
    assert_eq!((view.desired, view.completed), (2, None));
    assert_eq!(view.author.by, "root");
    assert_eq!(view.author.action, "create");
    for reference in ["web", &id, &id[..6]] {
        let found = server.get(&format!("/v1/services/{reference}")).await?;
        assert_eq!(found.json["id"], id.as_str());
    }
    let error = server.get("/v1/services/wab").await?;
    error.error(StatusCode::NOT_FOUND, "no such service: wab")?;

    let tasks = server.get("/v1/services/web/tasks").await?;
    let tasks = tasks.json.as_array().context("tasks")?.clone();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0]["name"], "web.1");
    assert_eq!(tasks[0]["node_hostname"], "one-host");
    let task = tasks[0]["id"].as_str().context("task")?;
    let one = server.get(&format!("/v1/tasks/{}", &task[..8])).await?;
    assert_eq!(one.json["id"], task);
    let on_node = server.get("/v1/tasks?node=one-host&service=web").await?;
    assert_eq!(on_node.json.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_must_name_the_revision_that_it_was_made_from() -> Result<()> {
    let server = Server::start().await?;
    let made = server.create(spec("web", 1)).await?;
    let first = made.header("etag").context("etag")?.to_owned();
    let mut next = spec("web", 1);
    next["labels"] = json!({"tier": "front"});

    let put = || server.request(Method::PUT, "/v1/services/web");
    let without = put()?.json(&next).send().await?;
    without.error(StatusCode::PRECONDITION_REQUIRED, "If-Match")?;
    let malformed = put()?.header("if-match", "yesterday").json(&next).send().await?;
    malformed.error(StatusCode::BAD_REQUEST, "If-Match")?;

    let updated = put()?.header("if-match", &first).json(&next).send().await?;
    let updated = updated.expect(StatusCode::OK)?;
    let second = updated.header("etag").context("etag")?.to_owned();
    assert!(second.starts_with("\"2-"), "{second}");

    let late = put()?.header("if-match", &first).json(&next).send().await?;
    assert_eq!(late.header("etag"), Some(second.as_str()));
    let error = late.error(StatusCode::PRECONDITION_FAILED, "has changed since it was read")?;
    assert_eq!(error["field"], "If-Match");

    let late = server
        .request(Method::PATCH, "/v1/services/web")?
        .header("if-match", &first)
        .json(&json!({"labels": null}))
        .send()
        .await?;
    late.error(StatusCode::PRECONDITION_FAILED, "read it again")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_of_several_updates_from_the_same_revision_succeeds() -> Result<()> {
    let server = Server::start().await?;
    let made = server.create(spec("web", 1)).await?;
    let first = made.header("etag").context("etag")?.to_owned();
    let updates = (0..8).map(|number| {
        let mut next = spec("web", 1);
        next["labels"] = json!({"number": number.to_string()});
        let (server, first) = (&server, &first);
        async move {
            let request = server.request(Method::PUT, "/v1/services/web")?;
            let answer = request.header("if-match", first).json(&next).send().await?;
            anyhow::Ok(answer.status)
        }
    });
    let statuses = futures_util::future::try_join_all(updates).await?;
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(count(StatusCode::OK), 1, "{statuses:?}");
    assert_eq!(count(StatusCode::PRECONDITION_FAILED), 7, "{statuses:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_patch_changes_named_fields_and_null_removes_them() -> Result<()> {
    let server = Server::start().await?;
    let mut first = spec("web", 1);
    first["labels"] = json!({"tier": "front", "team": "a"});
    first["task_template"]["container_spec"]["hostname"] = "host".into();
    server.create(first).await?;
    let patch = json!({
        "labels": {"tier": null, "new": "1"},
        "task_template": {"container_spec": {"hostname": null, "env": ["A=1"]}},
    });
    let patched = server
        .request(Method::PATCH, "/v1/services/web")?
        .json(&patch)
        .send()
        .await?;
    patched.expect(StatusCode::OK)?;
    let view = server.service("web").await?;
    assert_eq!(
        serde_json::to_value(&view.spec.labels)?,
        json!({"team": "a", "new": "1"})
    );
    let container = &view.spec.task_template.container_spec;
    assert_eq!(container.hostname, None);
    assert_eq!(
        (container.image.as_str(), container.env.as_slice()),
        ("web:1", &["A=1".to_owned()][..])
    );

    for (patch, message) in [
        (json!({"lables": {}}), "did you mean \"labels\""),
        (json!({"name": "other"}), "the name of a service cannot change"),
        (
            json!({"mode": {"replicated": {"replicas": -1}}}),
            "mode.replicated.replicas",
        ),
        (json!([1]), "must be a JSON object"),
    ] {
        let answer = server
            .request(Method::PATCH, "/v1/services/web")?
            .json(&patch)
            .send()
            .await?;
        answer.error(StatusCode::BAD_REQUEST, message)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_field_its_value_and_what_is_allowed() -> Result<()> {
    let server = Server::start().await?;
    let mut taken = spec("web", 1);
    taken["endpoint_spec"] = json!({"ports": [{"target_port": 80, "published_port": 8080}]});
    server.create(taken.clone()).await?;

    let error = server.post("/v1/services", taken.clone()).await?;
    let error = error.error(StatusCode::CONFLICT, "a service named web already exists")?;
    assert_eq!(
        (&error["field"], &error["value"]),
        (&json!("name"), &json!("web"))
    );

    taken["name"] = "shop".into();
    let error = server.post("/v1/services", taken.clone()).await?;
    let error = error.error(StatusCode::CONFLICT, "service web already publishes")?;
    assert_eq!(error["field"], "endpoint_spec.ports[0].published_port");
    assert_eq!(error["value"], "8080");

    let mut unknown = spec("shop", 1);
    unknown["task_template"]["container_spec"]["imgae"] = "x".into();
    let error = server.post("/v1/services", unknown).await?;
    let error = error.error(StatusCode::BAD_REQUEST, "did you mean \"image\"")?;
    assert_eq!(error["field"], "task_template.container_spec.imgae");
    assert_eq!(error["allowed"], "image");

    let mut absent = spec("shop", 1);
    absent["task_template"]["container_spec"]["secrets"] = json!([{"source": "key"}]);
    let error = server.post("/v1/services", absent).await?;
    let error = error.error(StatusCode::BAD_REQUEST, "name of an existing secret")?;
    assert_eq!(error["field"], "task_template.container_spec.secrets[0].source");

    let large = server
        .request(Method::POST, "/v1/services")?
        .body(vec![b' '; (1 << 20) + 1]);
    large
        .send()
        .await?
        .error(StatusCode::PAYLOAD_TOO_LARGE, "at most 700000 bytes")?;
    let cut = server
        .request(Method::POST, "/v1/services")?
        .body(b"{\"name\":".to_vec());
    cut.send().await?.error(StatusCode::BAD_REQUEST, "EOF")?;
    let empty = server.request(Method::POST, "/v1/services")?;
    empty
        .send()
        .await?
        .error(StatusCode::BAD_REQUEST, "has no body")?;

    let query = server.get("/v1/services?lable=x").await?;
    query.error(StatusCode::BAD_REQUEST, "did you mean \"label\"")?;
    let path = server.get("/v1/service").await?;
    path.error(StatusCode::NOT_FOUND, "/v1/openapi.json")?;
    let method = server
        .request(Method::PUT, "/v1/services")?
        .json(&json!({}))
        .send()
        .await?;
    method.error(StatusCode::METHOD_NOT_ALLOWED, "PUT is not allowed")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_to_zero_pauses_and_resuming_restores_the_last_number() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec("web", 1)).await?;
    let scaled = server
        .post("/v1/services/web/scale", json!({"replicas": 3}))
        .await?;
    assert!(
        scaled.expect(StatusCode::OK)?.json["revision"]
            .as_str()
            .is_some_and(|at| at.starts_with("2-"))
    );
    server.until("web", |view| view.running == 3).await?;
    let paused = server
        .request(Method::POST, "/v1/services/web/pause")?
        .send()
        .await?;
    paused.expect(StatusCode::OK)?;
    server
        .until("web", |view| view.running == 0 && view.desired == 0)
        .await?;
    let resumed = server
        .request(Method::POST, "/v1/services/web/resume")?
        .send()
        .await?;
    resumed.expect(StatusCode::OK)?;
    let view = server.until("web", |view| view.running == 3).await?;
    assert_eq!(view.author.action, "resume");

    let again = server
        .request(Method::POST, "/v1/services/web/resume")?
        .send()
        .await?;
    assert_eq!(
        again.expect(StatusCode::OK)?.json["revision"],
        view.revision.to_string()
    );
    let error = server
        .post("/v1/services/web/scale", json!({"replicas": 100_001}))
        .await?;
    error.error(StatusCode::BAD_REQUEST, "0 to 100000")?;

    let mut global = spec("agent", 1);
    global["mode"] = json!({"global": {}});
    server.create(global).await?;
    let error = server
        .post("/v1/services/agent/scale", json!({"replicas": 2}))
        .await?;
    error.error(StatusCode::BAD_REQUEST, "is not replicated")?;
    let error = server
        .request(Method::POST, "/v1/services/agent/rebalance")?
        .send()
        .await?;
    error.error(StatusCode::BAD_REQUEST, "is not replicated")?;
    let rebalanced = server
        .request(Method::POST, "/v1/services/web/rebalance")?
        .send()
        .await?;
    rebalanced.expect(StatusCode::OK)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_can_be_filtered_and_do_not_contain_removed_services() -> Result<()> {
    let server = Server::start().await?;
    for (name, stack) in [("shop_web", "shop"), ("shop_db", "shop"), ("blog_web", "blog")] {
        let mut one = spec(name, 1);
        one["labels"] = json!({"com.docker.stack.namespace": stack, "tier": name});
        server.create(one).await?;
    }
    for (query, expected) in [
        ("", vec!["blog_web", "shop_db", "shop_web"]),
        ("?stack=shop", vec!["shop_db", "shop_web"]),
        ("?name=shop_w&name=blog", vec!["blog_web", "shop_web"]),
        ("?label=tier", vec!["blog_web", "shop_db", "shop_web"]),
        ("?label=tier%3Dshop_db", vec!["shop_db"]),
        ("?label=tier&stack=none", vec![]),
    ] {
        let listed = server.get(&format!("/v1/services{query}")).await?;
        let listed = listed.json.as_array().context("a list")?.clone();
        let names: Vec<&str> = listed
            .iter()
            .filter_map(|one| one["spec"]["name"].as_str())
            .collect();
        assert_eq!(names, expected, "{query}");
    }
    let removed = server
        .request(Method::DELETE, "/v1/services/shop_db")?
        .send()
        .await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    server
        .get("/v1/services/shop_db")
        .await?
        .expect(StatusCode::NOT_FOUND)?;
    let again = server
        .request(Method::DELETE, "/v1/services/shop_db")?
        .send()
        .await?;
    again.expect(StatusCode::NOT_FOUND)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_run_yet_is_accepted_and_shows_what_it_waits_for() -> Result<()> {
    let server = Server::start().await?;
    let mut waiting = spec("web", 1);
    waiting["depends_on"] = json!(["db"]);
    let made = server.create(waiting).await?;
    let warnings = made.json["warnings"].to_string();
    assert!(warnings.contains("service db does not exist yet"), "{warnings}");
    let view = server.until("web", |view| !view.waiting.is_empty()).await?;
    assert_eq!(view.waiting, ["waiting for db"]);

    let mut nowhere = spec("far", 2);
    nowhere["task_template"]["placement"] = json!({"constraints": ["node.labels.zone==moon"]});
    server.create(nowhere).await?;
    let view = server
        .until("far", |view| {
            view.waiting
                .iter()
                .any(|reason| reason.contains("no suitable node"))
        })
        .await?;
    assert_eq!(view.waiting, ["no suitable node (constraint not met on 1 node)"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_services_can_be_read_but_not_changed() -> Result<()> {
    let members = Arc::new(tokio::task::block_in_place(etcd::Cluster::start)?);
    let lab = Lab::etcd(Arc::clone(&members));
    let server = Server::start_on(lab, tempfile::tempdir()?, false).await?;
    server.create(spec("web", 1)).await?;
    server.until("web", |view| view.running == 1).await?;
    let scale = async || {
        server
            .post("/v1/services/web/scale", json!({"replicas": 2}))
            .await
    };

    tokio::task::block_in_place(|| (0..2).try_for_each(|member| members.kill_member(member)))?;
    let refused = scale().await?;
    ensure!(refused.header("retry-after").is_some(), "{refused:?}");
    refused.expect(StatusCode::SERVICE_UNAVAILABLE)?;
    assert_eq!(server.service("web").await?.running, 1);
    let view = server.get("/v1/orchestrator").await?;
    assert_eq!(view.json["available"], false);

    tokio::task::block_in_place(|| {
        (0..2).try_for_each(|member| members.start_member(member))?;
        members.wait_for_health()
    })?;
    let back = async {
        while scale().await?.status != StatusCode::OK {}
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, back)
        .await
        .context("not in time")??;
    server.until("web", |view| view.running == 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_pinned_to_its_digest_when_a_service_gets_it() -> Result<()> {
    let server = Server::start().await?;
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let image = async || {
        let view = server.service("web").await?;
        Ok::<_, anyhow::Error>(view.spec.task_template.container_spec.image.clone())
    };
    let patch = async |image: &str, query: &str| {
        let patch = json!({"task_template": {"container_spec": {"image": image}}});
        let request = server.request(Method::PATCH, &format!("/v1/services/web{query}"))?;
        request.json(&patch).send().await?.expect(StatusCode::OK)
    };
    server.images.push("web:1", &digest("a"));
    let created = server.create(spec("web", 1)).await?;
    assert_eq!(created.json["warnings"], json!(null), "{}", created.text);
    assert_eq!(image().await?, format!("web:1@{}", digest("a")));
    // All tasks run it, whatever is pushed in the meantime, until the image itself is changed.
    server.images.push("web:1", &digest("b"));
    server
        .post("/v1/services/web/scale", json!({"replicas": 2}))
        .await?
        .expect(StatusCode::OK)?;
    let labels = server.request(Method::PATCH, "/v1/services/web")?;
    labels
        .json(&json!({"labels": {"a": "b"}}))
        .send()
        .await?
        .expect(StatusCode::OK)?;
    assert_eq!(image().await?, format!("web:1@{}", digest("a")));
    patch("web:1", "").await?;
    assert_eq!(image().await?, format!("web:1@{}", digest("b")));
    patch("web:1", "?resolve_image=false").await?;
    assert_eq!(image().await?, "web:1");
    // A registry that is away changes nothing for a tag that was pinned before.
    patch("web:1", "").await?;
    assert_eq!(image().await?, "web:1", "it has not changed");
    patch("web:1", "?resolve_image=true").await?;
    server.images.push("web:1", "no digest");
    let changed = patch("web:1", "").await?;
    assert!(
        changed.json["warnings"]
            .to_string()
            .contains("stays on the digest"),
        "{}",
        changed.text
    );
    assert_eq!(image().await?, format!("web:1@{}", digest("b")));
    let warned = patch("web:9", "").await?;
    let text = warned.json["warnings"].to_string();
    assert!(
        text.contains("could not be accessed on a registry") && text.contains("manifest unknown"),
        "{text}"
    );
    assert_eq!(image().await?, "web:9");
    Ok(())
}
