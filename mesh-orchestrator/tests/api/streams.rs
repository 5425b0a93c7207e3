//! Events and logs: their content and order, and how a stream resumes that was interrupted.

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream::BoxStream};
use mesh_orchestrator::{
    api::types::{EventAction, EventKind, EventView, LogLine},
    store::Revision,
};
use mesh_orchestrator_testing::PATIENCE;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    providers::INTERRUPTED,
    server::{Server, spec},
};

type Lines = BoxStream<'static, Result<String>>;

/// The next event with its id and kind; keep-alive comments are skipped.
async fn next_event(lines: &mut Lines) -> Result<(String, String, EventView)> {
    let (mut id, mut kind) = (String::new(), String::new());
    loop {
        let line = timeout(PATIENCE, lines.next())
            .await
            .context("no event in time")?
            .context("the stream has ended")??;
        if let Some(text) = line.strip_prefix("id: ") {
            text.clone_into(&mut id);
        } else if let Some(text) = line.strip_prefix("event: ") {
            text.clone_into(&mut kind);
        } else if let Some(text) = line.strip_prefix("data: ") {
            return Ok((id, kind, serde_json::from_str(text).context(line)?));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_in_order_and_resume_after_an_interruption() -> Result<()> {
    let server = Server::start().await?;
    let follow = |last: Option<String>| {
        let mut request = server.request(Method::GET, "/v1/events")?;
        if let Some(last) = last {
            request = request.header("last-event-id", &last);
        }
        anyhow::Ok(request.lines())
    };
    let mut lines = follow(None)?.await?;
    server.create(spec("web", 2)).await?;
    server.until("web", |view| view.running == 2).await?;
    let mut events = Vec::new();
    let is_service = |event: &EventView| event.kind == EventKind::Service && event.name == "web";
    // Two tasks are created and reported running.
    while events
        .iter()
        .filter(|(_, _, event): &&(_, _, EventView)| event.kind == EventKind::Task)
        .count()
        < 4
    {
        events.push(next_event(&mut lines).await?);
    }
    let first = events
        .iter()
        .position(|(_, _, event)| is_service(event))
        .context("the service")?;
    assert_eq!(events[first].2.action, EventAction::Create);
    assert_eq!(events[first].1, "service");
    let revisions: Vec<Revision> = events.iter().map(|(_, _, event)| event.revision).collect();
    assert!(revisions.is_sorted(), "{revisions:?}");

    // Resumed after the creation of the service: the same events again, none missing.
    drop(lines);
    let mut again = follow(Some(events[first].0.clone()))?.await?;
    for expected in &events[first + 1..] {
        let found = next_event(&mut again).await?;
        assert_eq!((&found.0, &found.2), (&expected.0, &expected.2));
    }
    let removed = server.request(Method::DELETE, "/v1/services/web")?.send().await?;
    removed.expect(StatusCode::NO_CONTENT)?;
    loop {
        let (_, _, event) = next_event(&mut again).await?;
        if is_service(&event) && event.action == EventAction::Remove {
            break;
        }
    }
    // From before this node started: it cannot know which events were missed.
    let mut early = follow(Some("1-0".into()))?.await?;
    let line = timeout(PATIENCE, early.next()).await.context("no line in time")?;
    let line = line.context("the stream has ended")??;
    assert_eq!(line, "event: reset");
    let wrong = server
        .request(Method::GET, "/v1/events")?
        .header("last-event-id", "x");
    wrong.send().await?.expect(StatusCode::BAD_REQUEST)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_open_streams_is_limited() -> Result<()> {
    let server = Server::start().await?;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(server.request(Method::GET, "/v1/events")?.lines().await?);
    }
    let refused = server.get("/v1/events").await?;
    refused.error(StatusCode::TOO_MANY_REQUESTS, "64 streams")?;
    // Closing one makes room for another.
    drop(streams.pop());
    let next = timeout(PATIENCE, async {
        loop {
            match server.request(Method::GET, "/v1/events")?.lines().await {
                Ok(stream) => return anyhow::Ok(stream),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    drop(next.await.context("no room in time")??);
    Ok(())
}

async fn log_lines(server: &Server, path: &str) -> Result<Vec<LogLine>> {
    let lines = server.request(Method::GET, path)?.lines().await?;
    let lines: Vec<Result<String>> = lines.collect().await;
    lines
        .into_iter()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_all_tasks_on_all_nodes_are_merged_by_time() -> Result<()> {
    let server = Server::start_two().await?;
    let mut spread = spec("web", 4);
    spread["task_template"]["placement"] = json!({"max_replicas_per_node": 2});
    server.create(spread).await?;
    server.until("web", |view| view.running == 4).await?;

    // The other node learns of its tasks slightly later than this one.
    let lines = timeout(PATIENCE, async {
        loop {
            let lines = log_lines(&server, "/v1/services/web/logs").await?;
            if lines.len() >= 8 {
                return Ok::<_, anyhow::Error>(lines);
            }
        }
    });
    let lines = lines.await.context("no lines from the other node in time")??;
    assert_eq!(lines.len(), 8);
    assert!(lines.is_sorted_by_key(|line| &line.time), "{lines:#?}");
    let order: Vec<&str> = lines.iter().map(|line| line.task_name.as_str()).collect();
    assert_eq!(order[..4], ["web.1", "web.2", "web.3", "web.4"]);
    let on = |node: &str| lines.iter().filter(|line| line.node == node).count();
    assert_eq!((on("one-host"), on("two-host")), (4, 4));

    let local = log_lines(&server, "/v1/services/web/logs?local=true&tail=1").await?;
    assert_eq!(local.len(), 2);
    assert!(
        local
            .iter()
            .all(|line| line.node == "one-host" && line.line == "second line")
    );
    let task = lines[0].task.clone();
    let one = log_lines(&server, &format!("/v1/tasks/{task}/logs")).await?;
    assert_eq!(one.len(), 2);
    for wrong in ["tail=few", "since=yesterday", "follow=maybe", "until=1"] {
        let refused = server.get(&format!("/v1/services/web/logs?{wrong}")).await?;
        refused.expect(StatusCode::BAD_REQUEST)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_logs_include_tasks_that_appear_later() -> Result<()> {
    let server = Server::start_two().await?;
    server.create(spec("web", 1)).await?;
    server.until("web", |view| view.running == 1).await?;
    let request = server.request(Method::GET, "/v1/services/web/logs?follow=true")?;
    let mut lines = request.lines().await?;
    let mut seen = std::collections::BTreeSet::new();
    let mut read = async |count: usize| {
        while seen.len() < count {
            let line = timeout(PATIENCE, lines.next()).await.context("no line in time")?;
            let line: LogLine = serde_json::from_str(&line.context("the stream has ended")??)?;
            seen.insert((line.task_name, line.line));
        }
        anyhow::Ok(())
    };
    read(2).await?;
    let scaled = server
        .post("/v1/services/web/scale", json!({"replicas": 4}))
        .await?;
    scaled.expect(StatusCode::OK)?;
    read(8).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_logs_go_on_after_an_interruption() -> Result<()> {
    let server = Server::start().await?;
    server.create(spec(INTERRUPTED, 1)).await?;
    server.until(INTERRUPTED, |view| view.running == 1).await?;
    let path = format!("/v1/services/{INTERRUPTED}/logs?follow=true");
    let mut lines = server.request(Method::GET, &path)?.lines().await?;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|line| line != "second line") {
        let line = timeout(PATIENCE, lines.next()).await.context("no line in time")?;
        let line: LogLine = serde_json::from_str(&line.context("the stream has ended")??)?;
        seen.push(line.line);
    }
    assert_eq!(
        seen,
        [
            "first line",
            "[could not read the logs of interrupted.1: the engine restarts]",
            "second line"
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_reported_in_a_line() -> Result<()> {
    let server = Server::start_two().await?;
    let mut spread = spec("web", 2);
    spread["task_template"]["placement"] = json!({"max_replicas_per_node": 1});
    server.create(spread).await?;
    server.until("web", |view| view.running == 2).await?;
    std::fs::remove_file(server.folder.path().join("two.admin"))?;
    let lines = log_lines(&server, "/v1/services/web/logs").await?;
    assert_eq!(lines.iter().filter(|line| line.node == "one-host").count(), 2);
    let report = lines
        .iter()
        .find(|line| line.node == "two-host")
        .context("no line reports it")?;
    assert!(
        report.line.starts_with("[could not read the logs of two-host"),
        "{}",
        report.line
    );
    Ok(())
}
