//! One check of a container, made from its node: a TCP connection, or an HTTP request on a new one.

use std::{error::Error, fmt, io, net::Ipv4Addr, time::Duration};

use reqwest::redirect::Policy;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// What a container did instead of passing a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It did not answer in time.
    NoAnswer(Duration),
    /// This process was not run for so long that an answer in time would not have been seen.
    Late,
    /// It answered with a status outside 200 to 399.
    Status(u16),
    /// Connecting, or the conversation, failed.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(time) => write!(formatter, "no answer within {time:?}"),
            Self::Late => formatter.write_str("this node was too busy to see an answer"),
            Self::Status(status) => write!(formatter, "HTTP status {status}"),
            Self::Broken(text) => formatter.write_str(text),
        }
    }
}

/// Makes checks.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    http: reqwest::Client,
}

impl Prober {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            // The container is on this node.
            .no_proxy()
            // They may lead anywhere.
            .redirect(Policy::none())
            // An open connection would be answered after the container has stopped listening.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("mesh-agent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http })
    }

    /// Whether a container accepts a TCP connection.
    pub(crate) async fn tcp(&self, address: Ipv4Addr, port: u16, limit: Duration) -> Result<(), Failure> {
        within(limit, async {
            let connected = TcpStream::connect((address, port)).await;
            connected
                .map(drop)
                .map_err(|error| Failure::Broken(io_text(&error)))
        })
        .await
    }

    /// Whether a container answers a request for a path (with its query).
    pub(crate) async fn http(
        &self,
        address: Ipv4Addr,
        port: u16,
        path: &str,
        limit: Duration,
    ) -> Result<(), Failure> {
        within(limit, async {
            let request = self.http.get(format!("http://{address}:{port}{path}"));
            let answer = request
                .send()
                .await
                .map_err(|error| Failure::Broken(text(&error)))?;
            match answer.status().as_u16() {
                200..400 => Ok(()),
                status => Err(Failure::Status(status)),
            }
        })
        .await
    }
}

async fn within(limit: Duration, check: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let began = Instant::now();
    timeout(limit, check).await.unwrap_or_else(|_| {
        Err(if began.elapsed() > limit * 2 {
            Failure::Late
        } else {
            Failure::NoAnswer(limit)
        })
    })
}

/// The system's error where there is one: what is around it says nothing more.
fn text(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    loop {
        let io = cause.downcast_ref::<io::Error>();
        if let Some(error) = io.filter(|error| error.raw_os_error().is_some()) {
            return io_text(error);
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return cause.to_string(),
        }
    }
}

/// `Connection refused (os error 111)` as `connection refused`.
fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// Answers one request with a status line, after it has arrived.
    async fn answer(listener: &TcpListener, status: &str) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        assert!(request[..length].starts_with(b"GET /ready?deep=1 HTTP/1.1"));
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn a_status_from_200_to_399_passes() {
        let prober = Prober::new().unwrap();
        let (listener, port) = listen().await;
        for (status, expected) in [
            ("200 OK", Ok(())),
            ("302 Found", Ok(())),
            ("404 Not Found", Err(Failure::Status(404))),
            ("500 Oh", Err(Failure::Status(500))),
        ] {
            let check = prober.http(Ipv4Addr::LOCALHOST, port, "/ready?deep=1", LIMIT);
            let (found, ()) = tokio::join!(check, answer(&listener, status));
            assert_eq!(found, expected, "{status}");
        }
    }

    #[tokio::test]
    async fn a_container_that_stops_listening_is_seen_at_the_next_check() {
        let prober = Prober::new().unwrap();
        let (listener, port) = listen().await;
        assert_eq!(prober.tcp(Ipv4Addr::LOCALHOST, port, LIMIT).await, Ok(()));
        drop(listener);
        let refused = Err(Failure::Broken("connection refused".to_owned()));
        assert_eq!(prober.tcp(Ipv4Addr::LOCALHOST, port, LIMIT).await, refused);
        assert_eq!(prober.http(Ipv4Addr::LOCALHOST, port, "/", LIMIT).await, refused);
    }

    #[tokio::test]
    async fn one_that_accepts_and_does_not_answer_passes_tcp_only() {
        let prober = Prober::new().unwrap();
        let (_listener, port) = listen().await;
        let limit = Duration::from_millis(200);
        assert_eq!(prober.tcp(Ipv4Addr::LOCALHOST, port, limit).await, Ok(()));
        let found = prober.http(Ipv4Addr::LOCALHOST, port, "/", limit).await;
        assert_eq!(found, Err(Failure::NoAnswer(limit)));
    }
}
