//! The admin socket of an agent that waits for what it cannot run without: it says what for, and examines the
//! machine.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Json, Router, extract::State, http::StatusCode, response::Response, routing::get};
use mesh_support::watched::Watched as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    ServerError, View,
    api::{DoctorAnswer, Status},
    server::failure,
    socket::Socket,
    status::status,
};
use crate::doctor;

/// An agent that stops waiting soon has no socket until it runs.
const SOON: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Waiting {
    view: Arc<View>,
    waits: watch::Receiver<Option<String>>,
    doctor: Arc<doctor::Options>,
}

/// Serves the socket from when `waits` says for a second what the agent waits for, until `stop` is cancelled.
/// `view` is that of an agent which knows nothing yet.
///
/// # Errors
/// When another agent listens on the socket, or a file operation fails.
pub async fn serve_waiting(
    path: &Path,
    view: View,
    mut waits: watch::Receiver<Option<String>>,
    doctor: doctor::Options,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let begins = async {
        // A closed channel means that it no longer waits.
        if waits.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SOON).await;
    };
    if stop.run_until_cancelled(begins).await.is_none() {
        return Ok(());
    }
    let socket = Socket::bind(path).await?;
    let router = Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/doctor", get(get_doctor))
        .fallback(refuse)
        .with_state(Waiting {
            view: Arc::new(view),
            waits,
            doctor: Arc::new(doctor),
        });
    socket.serve(router, stop).await;
    Ok(())
}

impl Waiting {
    fn reason(&self) -> String {
        match self.waits.current() {
            Some(reason) => format!("waiting for {reason}"),
            None => "the agent is starting".to_owned(),
        }
    }
}

async fn get_status(State(waiting): State<Waiting>) -> Json<Status> {
    let view = View {
        not_ready: Some(waiting.reason()),
        ..View::clone(&waiting.view)
    };
    Json(status(&view, SystemTime::now()))
}

async fn get_doctor(State(waiting): State<Waiting>) -> Json<DoctorAnswer> {
    let report = doctor::examine(&waiting.doctor, doctor::Examiner::Agent, None).await;
    Json(report.into())
}

async fn refuse(State(waiting): State<Waiting>) -> Response {
    failure(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the agent is not ready: {}", waiting.reason()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::Client, model::ReturnMode};

    #[tokio::test]
    async fn an_agent_that_waits_says_what_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (waits, waiting) = watch::channel(None);
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let (path, stop) = (path.clone(), stop.clone());
            let view = View::starting(ReturnMode::default());
            async move { serve_waiting(&path, view, waiting, doctor::Options::default(), stop).await }
        });
        waits.send_replace(Some("the managers: manager 192.0.2.1:9468: refused".to_owned()));
        let client = Client::new(&path).unwrap();
        let status = loop {
            match client.status().await {
                Ok(status) => break status,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let reason = status.not_ready.unwrap();
        assert!(
            reason.contains("waiting for the managers: manager 192.0.2.1:9468: refused"),
            "{reason}"
        );
        let error = client.routes().await.unwrap_err().to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
        stop.cancel();
        served.await.unwrap().unwrap();
        assert!(!path.exists());
    }
}
