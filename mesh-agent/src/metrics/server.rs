//! Serves `/metrics` over HTTP. The load that clients can cause is bounded: a number of connections, an idle
//! time, and one walk over the maps at a time.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_support::error_chain;
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Metrics;
use crate::{
    admin::Introspect,
    serve::{self, Limits, Plain},
};

/// Enough for a handful of Prometheus servers and a person with curl.
const LIMITS: Limits = Limits {
    connections: 32,
    per_address: 16,
    handshake: Duration::from_secs(5),
    // Longer than almost every scrape interval, so that a scraper keeps its connection.
    head: Duration::from_secs(150),
};

/// How long to wait before a port that is taken is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// The port for the metrics could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the metrics: choose another address with --metrics-listen, or `off`")]
pub struct MetricsServerError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// An open port, which [`MetricsServer::run`] serves.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

#[derive(Clone)]
struct Scrape {
    agent: Arc<dyn Introspect>,
    metrics: Metrics,
    one_at_a_time: Arc<Mutex<()>>,
}

/// Serves at an address until `stop` is cancelled. While the address cannot be used, says so in `trouble` and
/// tries again.
pub async fn serve(
    address: SocketAddr,
    agent: Arc<dyn Introspect>,
    metrics: Metrics,
    trouble: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    loop {
        match MetricsServer::bind(address).await {
            Ok(server) => {
                if trouble.send_replace(None).is_some() {
                    info!(%address, "the metrics are served now");
                }
                return server.run(agent, metrics, stop).await;
            }
            Err(error) => {
                let text = error_chain(&error);
                if trouble.send_replace(Some(text.clone())).as_ref() != Some(&text) {
                    warn!("{text}; retrying");
                }
            }
        }
        tokio::select! {
            () = sleep(BIND_AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl MetricsServer {
    /// Opens the port.
    ///
    /// # Errors
    /// When the address is in use or is not this machine's.
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsServerError> {
        let fail = |source| MetricsServerError { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the port is the kernel's choice if 0 was given.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is cancelled.
    pub async fn run(self, agent: Arc<dyn Introspect>, metrics: Metrics, stop: CancellationToken) {
        let router = Router::new()
            .route("/metrics", get(scrape))
            .route(
                "/",
                get(|| async { "The metrics of the mesh agent are at /metrics.\n" }),
            )
            .with_state(Scrape {
                agent,
                metrics,
                one_at_a_time: Arc::default(),
            });
        tokio::select! {
            // A scrape can be repeated: connections are dropped at once when the agent stops.
            () = serve::serve(self.listener, LIMITS, Plain, router) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn scrape(State(scrape): State<Scrape>) -> Response {
    let _guard = scrape.one_at_a_time.lock().await;
    // Walking the maps takes a while when there are many flows; the runtime's threads must not wait.
    let (agent, metrics) = (scrape.agent, scrape.metrics);
    let text = tokio::task::spawn_blocking(move || metrics.render(agent.as_ref(), SystemTime::now()));
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error_chain(&error)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    #[tokio::test]
    async fn a_scrape_over_http_gets_the_text_format() {
        let server = MetricsServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let url = format!("http://{}/metrics", server.address());
        let stop = CancellationToken::new();
        let metrics = Metrics::new(true).unwrap();
        let running = tokio::spawn(server.run(fixture::still(), metrics, stop.clone()));

        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(&url).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], prometheus::TEXT_FORMAT);
        assert!(answer.text().await.unwrap().contains("mesh_peers 2"));

        stop.cancel();
        running.await.unwrap();
        assert!(http.get(&url).send().await.is_err());
    }

    #[tokio::test]
    async fn a_taken_port_is_reported_and_served_when_it_is_free() {
        let first = MetricsServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = first.address();
        let trouble = watch::Sender::new(None);
        let mut reported = trouble.subscribe();
        let stop = CancellationToken::new();
        let metrics = Metrics::new(true).unwrap();
        let running = tokio::spawn(serve(address, fixture::still(), metrics, trouble, stop.clone()));
        let text = reported.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(
            text.contains(&address.to_string()) && text.contains("in use"),
            "{text}"
        );
        drop(first);
        reported.wait_for(Option::is_none).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(format!("http://{address}/metrics"))
            .send()
            .await
            .unwrap();
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_that_names_it() {
        let first = MetricsServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let error = MetricsServer::bind(first.address()).await.unwrap_err();
        assert!(error.to_string().contains(&first.address().to_string()));
    }
}
