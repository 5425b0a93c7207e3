//! Why the engine could not answer.

use std::path::PathBuf;

use serde::Deserialize;

/// The largest answer that is read; ten thousand tasks take about 30 MiB.
pub(super) const MAX_BODY_BYTES: usize = 128 << 20;
/// How much of the engine's message an error repeats. Its own are shorter; a runtime's hook may print more.
const MAX_MESSAGE_CHARS: usize = 4096;

/// A request to the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Nothing answers at the socket, or the engine has no API version in common with the agent.
    #[error(
        "cannot reach Docker at {}; is dockerd running, and may this process read and write its socket \
         (--docker-socket)?", socket.display()
    )]
    Connect {
        /// The engine's Unix socket.
        socket: PathBuf,
        /// The client library's error.
        source: bollard::errors::Error,
    },
    /// The engine refused a request, or the connection broke while it answered.
    #[error("Docker did not answer '{request}'; see its log (journalctl -u docker) if this persists")]
    Request {
        /// The request.
        request: &'static str,
        /// The client library's error.
        source: bollard::errors::Error,
    },
    /// The connection broke during a raw request.
    #[error("Docker did not answer 'GET {path}'; see its log (journalctl -u docker) if this persists")]
    Get {
        /// The path that was requested.
        path: String,
        /// The HTTP client's error.
        source: reqwest::Error,
    },
    /// The engine answered with an error.
    #[error("Docker refused 'GET {path}' with status {status}: {message}")]
    Refused {
        /// The path that was requested.
        path: String,
        /// The HTTP status.
        status: u16,
        /// The engine's message, shortened.
        message: String,
    },
    /// The engine's answer is not the JSON that was expected.
    #[error("cannot parse Docker's answer to 'GET {path}'; this engine may need a newer agent")]
    Decode {
        /// The path that was requested.
        path: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// An answer exceeds what the agent is willing to keep in memory.
    #[error("Docker's answer to 'GET {path}' is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge {
        /// The path that was requested.
        path: String,
    },
}

/// The engine's message in the body of a refusal, or in a line of a pull's progress.
pub(crate) fn refusal_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<String>,
        message: Option<String>,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    refusal.error.or(refusal.message)
}

/// A message of bounded length, for an error.
pub(crate) fn shortened(message: &str) -> String {
    message.trim().chars().take(MAX_MESSAGE_CHARS).collect()
}
