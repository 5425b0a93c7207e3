//! The OpenAPI document matches the router.

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};

use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn each_documented_path_is_served_and_with_no_other_method() -> Result<()> {
    let server = Server::start().await?;
    let document = server.get("/v1/openapi.json").await?.expect(StatusCode::OK)?;
    assert_eq!(document.json["openapi"], "3.1.0");
    let paths = document.json["paths"].as_object().context("paths")?;
    assert!(paths.len() > 30, "{}", paths.len());
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    for (path, operations) in paths {
        // Names of objects that do not exist.
        let concrete: Vec<&str> = path
            .split('/')
            .map(|segment| {
                if segment.starts_with('{') {
                    "nothing"
                } else {
                    segment
                }
            })
            .collect();
        let concrete = concrete.join("/");
        for method in &methods {
            let is_documented = operations.get(method.as_str().to_lowercase()).is_some();
            // Without a token: only whether the operation exists matters here.
            let answer = server.request_as(None, method.clone(), &concrete)?.send().await?;
            let is_served = answer.status != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_served, is_documented, "{method} {path}: {}", answer.text);
            if is_served && !["/v1/openapi.json", "/v1/webhooks/{secret}"].contains(&path.as_str()) {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_orchestrator_reports_its_state() -> Result<()> {
    let server = Server::start().await?;
    let view = server.get("/v1/orchestrator").await?.expect(StatusCode::OK)?.json;
    assert_eq!((&view["node"], &view["leader"]), (&"one".into(), &"one".into()));
    assert_eq!(
        (&view["nodes"], &view["services"], &view["available"]),
        (&1.into(), &0.into(), &true.into())
    );
    Ok(())
}
