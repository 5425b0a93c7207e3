//! Serves HTTP on TCP ports, for all of the agent's parts. What clients can cause before a request is
//! looked at is limited: open connections in total and of each address, and the time of the handshake and of
//! a request's head. A request that is being answered may take any time.

pub mod limits;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

pub use self::limits::{Limits, Open, TooMany};

/// Pause after a failed accept, which usually means that file descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two warnings that connections are refused.
const WARN_GAP: Duration = Duration::from_secs(60);

/// What happens between the TCP connection and the first request.
pub trait Handshake: Clone + Send + Sync + 'static {
    /// The connection afterwards.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is known of the client then: its requests' `ConnectInfo`.
    type Client: Clone + Send + Sync + 'static;
    /// Dropped with the connection.
    type Guard: Send + 'static;

    /// Carries it out.
    fn shake(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<(Self::Io, Self::Client, Self::Guard)>> + Send;
}

/// No handshake: the client is its address.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Handshake for Plain {
    type Io = TcpStream;
    type Client = SocketAddr;
    type Guard = ();

    async fn shake(&self, stream: TcpStream) -> io::Result<(TcpStream, SocketAddr, ())> {
        let address = stream.peer_addr()?;
        Ok((stream, address, ()))
    }
}

/// Serves a port, for ever. When the future is dropped, each connection ends after the request that it
/// answers.
pub async fn serve<H: Handshake>(listener: TcpListener, limits: Limits, handshake: H, router: Router) {
    let open = Open::new(limits.connections, limits.per_address);
    let refused = Refused::default();
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let counted = match open.admit(address.ip()) {
            Ok(counted) => counted,
            Err(why) => {
                refused.log(address, why);
                continue;
            }
        };
        let (handshake, router, stop) = (handshake.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(stream, limits, &handshake, router, &stop).await {
                debug!(client = %address, %error, "a client's connection ended");
            }
            drop(counted);
        });
    }
}

async fn connection<H: Handshake>(
    stream: TcpStream,
    limits: Limits,
    handshake: &H,
    router: Router,
    stop: &CancellationToken,
) -> io::Result<()> {
    find_out_when_gone(&stream);
    let shaken = timeout(limits.handshake, handshake.shake(stream)).await;
    let (stream, client, _guard) = shaken.map_err(|_| io::ErrorKind::TimedOut)??;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(client.clone()));
        let router = router.clone();
        // A router answers every request.
        async move {
            Ok::<_, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    ended.map_err(io::Error::other)
}

/// A client that loses its power while it follows something would otherwise be counted for ever.
fn find_out_when_gone(stream: &TcpStream) {
    // The connection works without, too.
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
}

/// Says that connections are refused, but not of each.
#[derive(Debug, Default)]
pub struct Refused(Arc<Mutex<Option<Instant>>>);

impl Refused {
    /// Logs one.
    pub fn log(&self, client: SocketAddr, why: TooMany) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() >= WARN_GAP) {
            *logged = Some(Instant::now());
            warn!(%client, %why, "connections are refused");
        } else {
            debug!(%client, %why, "a connection is refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, response::IntoResponse, routing::get};
    use futures_util::stream;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
        task::AbortHandle,
    };

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 4,
        per_address: 2,
        handshake: Duration::from_millis(50),
        head: Duration::from_millis(50),
    };
    const FOREVER: Duration = Duration::from_secs(3_600);

    struct Served {
        address: SocketAddr,
        listener: Option<TcpListener>,
        task: Option<AbortHandle>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            if let Some(task) = &self.task {
                task.abort();
            }
        }
    }

    impl Served {
        async fn bind() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Self {
                address: listener.local_addr().unwrap(),
                listener: Some(listener),
                task: None,
            }
        }

        /// Begins to serve: what clients have sent before is there at once, however busy the machine is.
        fn begin<H: Handshake>(&mut self, limits: Limits, handshake: H) {
            let router = Router::new()
                .route("/", get(|| async { "done" }))
                .route("/follow", get(follow));
            let listener = self.listener.take().unwrap();
            let served = tokio::spawn(serve(listener, limits, handshake, router));
            self.task = Some(served.abort_handle());
        }

        async fn connect(&self, from: [u8; 4], sends: &str) -> TcpStream {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            let mut stream = socket.connect(self.address).await.unwrap();
            stream.write_all(sends.as_bytes()).await.unwrap();
            stream
        }
    }

    /// Sends a line long after every limit.
    async fn follow() -> impl IntoResponse {
        Body::from_stream(stream::unfold(0, |sent| async move {
            sleep(LIMITS.head * 10 * sent).await;
            (sent < 2).then_some((Ok::<_, Infallible>(Bytes::from_static(b"line\n")), sent + 1))
        }))
    }

    /// What arrives until the server closes the connection; a reset closes it as well.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    const HOME: [u8; 4] = [127, 0, 0, 1];

    #[tokio::test]
    async fn a_request_whose_head_does_not_end_is_given_up() {
        let mut served = Served::bind().await;
        let stream = served.connect(HOME, "GET / HTTP/1.1\r\nhost: x\r\n").await;
        served.begin(LIMITS, Plain);
        assert!(!rest(stream).await.contains("done"));
    }

    #[tokio::test]
    async fn a_connection_without_another_request_is_closed() {
        let mut served = Served::bind().await;
        let stream = served.connect(HOME, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.begin(LIMITS, Plain);
        assert!(rest(stream).await.ends_with("done"));
    }

    #[tokio::test]
    async fn a_stream_goes_on_beyond_every_limit() {
        let mut served = Served::bind().await;
        let stream = served
            .connect(
                HOME,
                "GET /follow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )
            .await;
        served.begin(LIMITS, Plain);
        assert_eq!(rest(stream).await.matches("line").count(), 2);
    }

    #[derive(Clone)]
    struct Never;

    impl Handshake for Never {
        type Io = TcpStream;
        type Client = ();
        type Guard = ();

        async fn shake(&self, _stream: TcpStream) -> io::Result<(TcpStream, (), ())> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_end_is_given_up() {
        let mut served = Served::bind().await;
        let stream = served.connect(HOME, "").await;
        served.begin(LIMITS, Never);
        assert_eq!(rest(stream).await, "");
    }

    #[tokio::test]
    async fn an_address_has_a_limited_number_of_connections_and_others_are_served() {
        let mut served = Served::bind().await;
        let limits = Limits {
            head: FOREVER,
            ..LIMITS
        };
        let idle = [served.connect(HOME, "").await, served.connect(HOME, "").await];
        let third = served.connect(HOME, "").await;
        let request = "GET / HTTP/1.0\r\n\r\n";
        let other = served.connect([127, 0, 0, 2], request).await;
        served.begin(limits, Plain);
        assert_eq!(rest(third).await, "");
        assert!(rest(other).await.ends_with("done"));
        drop(idle);
        // As soon as the server has noticed.
        while !rest(served.connect(HOME, request).await).await.ends_with("done") {
            tokio::task::yield_now().await;
        }
    }
}
