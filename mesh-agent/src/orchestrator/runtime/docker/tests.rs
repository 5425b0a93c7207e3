//! The runtime with an engine that answers as a test wants.

use std::time::Duration;

use axum::{
    Json, Router,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;

/// A runtime on an engine whose answers depend on the path and the body; it never answers where there is
/// none.
fn runtime(
    answer: impl Fn(&str, &Value) -> Option<Response> + Clone + Send + Sync + 'static,
) -> (DockerRuntime, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let serve = Router::new().fallback(move |uri: Uri, body: String| {
        let body = serde_json::from_str(&body).unwrap_or_default();
        let answered = match uri.path() {
            path if path.ends_with("/version") => Some(Json(json!({"ApiVersion": "1.41"})).into_response()),
            path => answer(path, &body),
        };
        async move {
            match answered {
                Some(answered) => answered,
                None => std::future::pending().await,
            }
        }
    });
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, serve).await });
    (DockerRuntime::new(Docker::new(&socket)), folder)
}

#[tokio::test]
async fn a_login_is_what_the_registry_says_to_the_engine() {
    let (runtime, _folder) = runtime(|path, body| {
        assert!(path.ends_with("/auth"), "{path}");
        Some(match body["password"].as_str() {
            Some("right") => Json(json!({"Status": "Login Succeeded"})).into_response(),
            _ => (
                StatusCode::UNAUTHORIZED,
                Json(json!({"message": format!("Get {}: unauthorized", body["serveraddress"])})),
            )
                .into_response(),
        })
    });
    let credential = |password: &str| RegistryCredential {
        username: "carol".to_owned(),
        password: password.to_owned(),
    };
    runtime.log_in("reg.example", &credential("right")).await.unwrap();
    let error = runtime
        .log_in("reg.example", &credential("wrong"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("log in to reg.example") && text.contains("unauthorized"),
        "{text}"
    );
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_soon_given_up_where_the_image_is_on_the_node() {
    let (runtime, _folder) = runtime(|path, _| match path.contains("/images/create") {
        true => None,
        false => Some(Json(json!({"Id": "sha256:00"})).into_response()),
    });
    let runtime = DockerRuntime {
        patience: Duration::from_millis(50),
        ..runtime
    };
    let pulled = runtime.pull("web:1", None).await.unwrap();
    assert!(
        matches!(&pulled, Pulled::Local(why) if why.contains("did not answer")),
        "{pulled:?}"
    );
}
