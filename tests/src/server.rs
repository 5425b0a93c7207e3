//! The server: HTTP that names the task and the client, bulk data in both directions, and UDP echo. Depends
//! on `pattern`.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Query, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, UdpSocket};

use crate::pattern;

/// Downloads are generated in pieces of this size.
const PIECE: u64 = 64 * 1024;

/// The answer of `GET /`, and of a UDP datagram.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The task's name from `$TASK`, or the host's name.
    pub task: String,
    /// The client as this server sees it, `address:port`.
    pub peer: String,
}

/// The answer of `POST /upload`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Received {
    /// The task's name.
    pub task: String,
    /// How many bytes arrived.
    pub bytes: u64,
    /// Their SHA-256 in hexadecimal digits.
    pub sha256: String,
}

#[derive(Deserialize)]
struct DownloadQuery {
    bytes: u64,
}

/// Serves until SIGTERM. SIGUSR1 turns over what `GET /healthy` answers: 200 at first, then 500.
///
/// # Errors
/// When a port is taken.
pub async fn serve(http_port: u16, udp_port: u16) -> Result<()> {
    println!("answering HTTP on port {http_port} and UDP on port {udp_port}");
    let task: Arc<str> = task_name().into();
    let udp = UdpSocket::bind(("0.0.0.0", udp_port))
        .await
        .with_context(|| format!("could not listen on UDP port {udp_port}"))?;
    let tcp = TcpListener::bind(("0.0.0.0", http_port))
        .await
        .with_context(|| format!("could not listen on TCP port {http_port}"))?;
    tokio::spawn(echo(udp, Arc::clone(&task)));
    let sick = Arc::new(AtomicBool::new(false));
    tokio::spawn(turn_over(Arc::clone(&sick)));
    let healthy = move || async move {
        if sick.load(Ordering::Relaxed) {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::OK
        }
    };
    let router = Router::new()
        .route("/", get(hello))
        .route("/healthy", get(healthy))
        .route("/upload", post(upload))
        .route("/download", get(download));
    let service = router
        .with_state(task)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(tcp, service)
        .with_graceful_shutdown(stopped())
        .await
        .context("the HTTP server failed")
}

/// As PID 1 of a container, this process ends on SIGTERM only if it handles the signal.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// Turns it over at each SIGUSR1.
async fn turn_over(sick: Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut signal) = signal(SignalKind::user_defined1()) else {
        return;
    };
    while signal.recv().await.is_some() {
        sick.fetch_xor(true, Ordering::Relaxed);
    }
}

fn task_name() -> String {
    std::env::var("TASK")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "nameless".into())
}

async fn hello(State(task): State<Arc<str>>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Json<Hello> {
    Json(Hello {
        task: task.to_string(),
        peer: peer.to_string(),
    })
}

async fn upload(State(task): State<Arc<str>>, body: Body) -> impl IntoResponse {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut hash) = (0, Sha256::new());
    while let Some(piece) = stream.next().await {
        let Ok(piece) = piece else {
            return Err(StatusCode::BAD_REQUEST);
        };
        bytes += piece.len() as u64;
        hash.update(&piece);
    }
    Ok(Json(Received {
        task: task.to_string(),
        bytes,
        sha256: hexadecimal(&hash.finalize()),
    }))
}

async fn download(State(task): State<Arc<str>>, Query(query): Query<DownloadQuery>) -> impl IntoResponse {
    let pieces = stream::unfold(0, move |offset| async move {
        let count = PIECE.min(query.bytes.saturating_sub(offset));
        if count == 0 {
            return None;
        }
        let mut piece = vec![0; usize::try_from(count).ok()?];
        pattern::fill(&mut piece, offset);
        Some((Ok::<_, Infallible>(Bytes::from(piece)), offset + count))
    });
    ([("x-task", task.to_string())], Body::from_stream(pieces))
}

async fn echo(socket: UdpSocket, task: Arc<str>) {
    let mut buffer = vec![0; 65_536];
    while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
        let hello = Hello {
            task: task.to_string(),
            peer: peer.to_string(),
        };
        if let Ok(answer) = serde_json::to_vec(&hello) {
            // Datagrams may be lost.
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
