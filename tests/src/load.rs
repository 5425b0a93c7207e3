//! The constant load: new connections at a steady rate, whatever happens to them, and connections that stay
//! open meanwhile. For UDP a connection is a socket. Depends on `exchange` and `report`.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use hyper::Uri;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

pub use self::report::{Failure, Kept, Latency, Report};
use self::{
    exchange::{Connection, ask_once},
    report::{Ended, kept_report, report},
};

mod exchange;
mod report;

/// The highest rate that this load is meant for.
const HIGHEST_RATE: u32 = 10_000;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// The addresses to request, in turn: `http://HOST:PORT/…` or `udp://HOST:PORT`.
    pub urls: Vec<Uri>,
    /// New connections each second, in all.
    pub rate: u32,
    /// How long to send.
    pub duration: Duration,
    /// After that, for as long as this file exists.
    pub while_exists: Option<PathBuf>,
    /// How long one request may take, including the connection.
    pub timeout: Duration,
    /// How many connections stay open, to the addresses in turn.
    pub keep_alive: usize,
    /// The pause between two requests on an open connection.
    pub pause: Duration,
}

impl Load {
    fn is_over(&self, begin: Instant) -> bool {
        begin.elapsed() >= self.duration && !self.while_exists.as_ref().is_some_and(|file| file.exists())
    }
}

/// Sends the load and reports the outcome.
///
/// # Errors
/// When there is no address, or the kernel's counters cannot be read.
pub async fn run(load: &Load) -> Result<Report> {
    ensure!(!load.urls.is_empty(), "no address to request");
    ensure!(
        (1..=HIGHEST_RATE).contains(&load.rate),
        "the rate is 1 to {HIGHEST_RATE} a second, not {}",
        load.rate
    );
    let (retransmitted, syn_retransmitted) = retransmitted()?;
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = Instant::now();
    let mut kept = JoinSet::new();
    for (url, _) in load.urls.iter().cycle().zip(0..load.keep_alive) {
        kept.spawn(keep(url.clone(), load.clone(), begin));
    }
    let mut requests = JoinSet::new();
    let mut tick = interval(Duration::from_secs(1) / load.rate);
    // Catch up after a delay, to keep the rate.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut ended = Vec::new();
    let mut urls = load.urls.iter().cycle();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(one) = requests.join_next() => {
                ended.push(one.context("a request panicked")?);
                continue;
            }
        }
        if load.is_over(begin) {
            break;
        }
        if let Some(url) = urls.next() {
            requests.spawn(ask(url.clone(), load.timeout, begin));
        }
    }
    while let Some(one) = requests.join_next().await {
        ended.push(one.context("a request panicked")?);
    }
    let mut report = report(ended);
    report.began = u64::try_from(began.as_millis()).unwrap_or(u64::MAX);
    report.kept = kept_report(kept.join_all().await);
    let now = self::retransmitted()?;
    report.retransmitted = now.0.saturating_sub(retransmitted);
    report.syn_retransmitted = now.1.saturating_sub(syn_retransmitted);
    Ok(report)
}

async fn ask(url: Uri, limit: Duration, begin: Instant) -> Ended {
    let start = Instant::now();
    let own = OnceLock::new();
    let outcome = within(limit, ask_once(&url, &own)).await;
    Ended {
        sent: start - begin,
        url,
        own: own.get().copied(),
        took: start.elapsed(),
        outcome,
    }
}

/// Sends requests on one connection until the load ends; opens it again when it breaks.
async fn keep(url: Uri, load: Load, begin: Instant) -> Vec<Ended> {
    let mut ended = Vec::new();
    // With its own address.
    let mut connection: Option<(Connection, Option<SocketAddr>)> = None;
    while !load.is_over(begin) {
        let start = Instant::now();
        let own = OnceLock::new();
        let request = async {
            let mut open = match connection.take() {
                Some((open, address)) => {
                    address.map(|address| own.get_or_init(|| address));
                    open
                }
                None => Connection::open(&url, &own).await?,
            };
            let task = open.ask(&url).await?;
            // One that breaks is opened again, to see whether that works.
            connection = Some((open, own.get().copied()));
            Ok(task)
        };
        let outcome = within(load.timeout, request).await;
        ended.push(Ended {
            sent: start - begin,
            url: url.clone(),
            own: own.get().copied(),
            took: start.elapsed(),
            outcome,
        });
        sleep_until(start + load.pause).await;
        // At least a millisecond, should the deadline have passed.
        sleep(Duration::from_millis(1)).await;
    }
    ended
}

async fn within(limit: Duration, request: impl Future<Output = Result<String>>) -> Result<String> {
    match timeout(limit, request).await {
        Ok(outcome) => outcome,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).context("no answer in time"),
    }
}

/// TCP segments, and the SYNs among them, that were retransmitted in this network namespace so far.
fn retransmitted() -> Result<(u64, u64)> {
    let read = |file: &str, table, name| {
        let text = fs::read_to_string(file).with_context(|| format!("could not read {file}"))?;
        counter(&text, table, name).with_context(|| format!("{file} does not count {name}"))
    };
    Ok((
        read("/proc/self/net/snmp", "Tcp:", "RetransSegs")?,
        read("/proc/self/net/netstat", "TcpExt:", "TCPSynRetrans")?,
    ))
}

/// A counter in one of the kernel's two-line tables: names, then numbers.
fn counter(text: &str, table: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let column = names.split_whitespace().position(|found| found == name)?;
    numbers.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn load(urls: &[String]) -> Load {
        Load {
            urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
            rate: 200,
            duration: Duration::from_millis(500),
            while_exists: None,
            timeout: Duration::from_secs(2),
            keep_alive: 2,
            pause: Duration::from_millis(20),
        }
    }

    #[tokio::test]
    async fn a_refused_request_is_reported_and_the_others_are_answered() {
        let http = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        // Nothing listens there: the port was free a moment ago.
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        tokio::spawn(crate::server::serve(http.port(), udp.port()));
        while tokio::net::TcpStream::connect(http).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        let [report, datagrams] = {
            let (http, closed_http) = (format!("http://{http}/"), format!("http://{closed}/"));
            let (udp, closed_udp) = (format!("udp://{udp}"), format!("udp://{closed}"));
            let (streams, datagrams) = (load(&[http, closed_http]), load(&[udp, closed_udp]));
            [run(&streams).await.unwrap(), run(&datagrams).await.unwrap()]
        };
        // A refused datagram is known by the ICMP message.
        assert_eq!(
            datagrams.failures.keys().collect::<Vec<_>>(),
            ["refused"],
            "{datagrams:?}"
        );
        assert!(
            datagrams.answered.abs_diff(datagrams.failures()) <= 1,
            "{datagrams:?}"
        );
        assert!(datagrams.kept.requests > 0, "{datagrams:?}");
        assert_eq!(report.answered + report.failures(), report.attempts);
        assert_eq!(
            report.failures.keys().collect::<Vec<_>>(),
            ["refused"],
            "{report:?}"
        );
        assert!(report.answered.abs_diff(report.failures()) <= 1, "{report:?}");
        // A busy machine may not reach the rate.
        assert!((1..=102).contains(&report.attempts), "{report:?}");
        assert!(
            report
                .failed
                .iter()
                .all(|one| one.url.contains(&closed.to_string()))
        );
        // Of the two that stay open, one cannot be opened.
        assert_eq!(report.kept.connections, 2);
        assert!(!report.kept.broken.is_empty(), "{report:?}");
        assert!(
            report
                .kept
                .broken
                .iter()
                .all(|one| one.url.contains(&closed.to_string()))
        );
        assert!(report.kept.requests > 0, "{report:?}");
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            serde_json::from_str::<Report>(&text).unwrap().attempts,
            report.attempts
        );
    }

    #[test]
    fn the_kernels_counters_are_read_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 17 0\n";
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), Some(17));
        assert_eq!(counter(text, "Tcp:", "OutRsts"), None);
    }
}
