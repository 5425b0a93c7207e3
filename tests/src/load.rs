//! The constant load: new connections at a steady rate whatever becomes of them, and connections that are
//! kept meanwhile. One line of JSON says what failed, how and when. Depends on `client`.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use hyper::{Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    client::{RequestBody, body, dial, empty, outcome_of, request, send, target},
    server::Hello,
};

/// So many failures are told in full; the rest are counted.
const MOST_TOLD: usize = 200;
/// More requests a second than this are not what this load is for.
const HIGHEST_RATE: u32 = 10_000;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Asked in turn.
    pub urls: Vec<Uri>,
    /// New connections each second, in all.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
    /// And then for as long as there is this file.
    pub while_there_is: Option<PathBuf>,
    /// What one request may take, connecting included.
    pub timeout: Duration,
    /// Connections that are kept, to the addresses in turn.
    pub keep_alive: usize,
    /// The rest between two requests on a kept connection.
    pub pause: Duration,
}

impl Load {
    fn is_over(&self, begin: Instant) -> bool {
        begin.elapsed() >= self.duration && !self.while_there_is.as_ref().is_some_and(|file| file.exists())
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// Requests on new connections.
    pub attempts: u64,
    /// Those that were answered.
    pub answered: u64,
    /// The others, by kind: `refused`, `reset`, `timeout` or `error`.
    pub failures: BTreeMap<String, u64>,
    /// The first of them in detail, in the order in which they were sent.
    pub failed: Vec<Failure>,
    /// How long the answered ones took.
    pub latency: Latency,
    /// Who answered how often.
    pub tasks: BTreeMap<String, u64>,
    /// TCP segments that were sent again in this network namespace meanwhile: what was lost and healed.
    pub retransmitted: u64,
    /// Those of them that open a connection: lost ones after a second, and at once those whose port meets
    /// the end of an earlier connection at the replica.
    pub syn_retransmitted: u64,
    /// The kept connections.
    pub kept: Kept,
}

/// One request that failed, or kept connection that broke.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When it was sent, in milliseconds since the beginning.
    pub at_millis: u64,
    /// To what.
    pub url: String,
    /// `refused`, `reset`, `timeout` or `error`.
    pub kind: String,
    /// What the system said.
    pub error: String,
}

/// Milliseconds that requests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half took less.
    pub p50: f64,
    /// Nine of ten took less.
    pub p90: f64,
    /// 99 of 100 took less.
    pub p99: f64,
    /// The slowest one.
    pub max: f64,
}

/// What became of the kept connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How many there were.
    pub connections: usize,
    /// Requests that were answered on them.
    pub requests: u64,
    /// Each time that one broke, or could not be opened anew.
    pub broken: Vec<Failure>,
    /// How long the answered requests took.
    pub latency: Latency,
}

impl Report {
    /// All requests on new connections that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// A request's end: when it was sent, to what, how long it took and who answered.
struct Ended {
    sent: Duration,
    url: Uri,
    took: Duration,
    outcome: Result<String>,
}

/// Sends the load and tells what came of it.
///
/// # Errors
/// When there is nothing to send, or the machine's counters cannot be read.
pub async fn run(load: &Load) -> Result<Report> {
    ensure!(!load.urls.is_empty(), "no address to ask");
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
    // A late start is made up for: the rate is what is promised.
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
    let request = async {
        let stream = dial(target(&url)?, 0).await?;
        let response = send(stream, request("GET", &url, empty())?).await?;
        task(&body(response).await?)
    };
    let outcome = within(limit, request).await;
    Ended {
        sent: start - begin,
        url,
        took: start.elapsed(),
        outcome,
    }
}

/// Asks on one connection again and again until the load's end, or until the connection breaks.
async fn keep(url: Uri, load: Load, begin: Instant) -> Vec<Ended> {
    let mut ended = Vec::new();
    let mut sender: Option<http1::SendRequest<RequestBody>> = None;
    while !load.is_over(begin) {
        let start = Instant::now();
        let request = async {
            if sender.is_none() {
                let stream = dial(target(&url)?, 0).await?;
                let (opened, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender = Some(opened);
            }
            let Some(sender) = &mut sender else {
                bail!("there is no connection");
            };
            let mut request = request("GET", &url, empty())?;
            request.headers_mut().remove("connection");
            sender.ready().await.context("the connection was closed")?;
            let response = sender.send_request(request).await;
            task(&body(response.context("the request was not answered")?).await?)
        };
        let outcome = within(load.timeout, request).await;
        let broken = outcome.is_err();
        ended.push(Ended {
            sent: start - begin,
            url: url.clone(),
            took: start.elapsed(),
            outcome,
        });
        if broken {
            // It is opened anew, to tell whether that is the end of it.
            sender = None;
        }
        sleep_until(start + load.pause).await;
        // Never twice in the same instant.
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

fn task(body: &[u8]) -> Result<String> {
    let hello: Hello = serde_json::from_slice(body).context("the answer is not the test server's")?;
    Ok(hello.task)
}

fn report(mut ended: Vec<Ended>) -> Report {
    ended.sort_by_key(|one| one.sent);
    let mut report = Report {
        attempts: ended.len() as u64,
        latency: latency(&ended),
        ..Report::default()
    };
    for one in ended {
        match &one.outcome {
            Ok(task) => {
                report.answered += 1;
                *report.tasks.entry(task.clone()).or_default() += 1;
            }
            Err(error) => {
                *report.failures.entry(outcome_of(error).to_owned()).or_default() += 1;
                if report.failed.len() < MOST_TOLD {
                    report.failed.push(failure(&one, error));
                }
            }
        }
    }
    report
}

fn kept_report(connections: Vec<Vec<Ended>>) -> Kept {
    let count = connections.len();
    let ended: Vec<Ended> = connections.into_iter().flatten().collect();
    let broken = ended
        .iter()
        .filter_map(|one| Some(failure(one, one.outcome.as_ref().err()?)))
        .collect();
    Kept {
        connections: count,
        requests: ended.iter().filter(|one| one.outcome.is_ok()).count() as u64,
        broken,
        latency: latency(&ended),
    }
}

fn failure(one: &Ended, error: &anyhow::Error) -> Failure {
    Failure {
        at_millis: u64::try_from(one.sent.as_millis()).unwrap_or(u64::MAX),
        url: one.url.to_string(),
        kind: outcome_of(error).to_owned(),
        error: format!("{error:#}"),
    }
}

fn latency(ended: &[Ended]) -> Latency {
    let answered = ended.iter().filter(|one| one.outcome.is_ok());
    let mut millis: Vec<f64> = answered.map(|one| one.took.as_secs_f64() * 1000.0).collect();
    millis.sort_by(f64::total_cmp);
    let Some(last) = millis.len().checked_sub(1) else {
        return Latency::default();
    };
    let of = |percent: usize| millis[last * percent / 100];
    Latency {
        p50: of(50),
        p90: of(90),
        p99: of(99),
        max: millis[last],
    }
}

/// TCP segments, and SYNs among them, that were sent again in this network namespace since it was made.
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

/// A counter of the kernel's two-line tables: names first, then numbers.
fn counter(text: &str, table: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|word| word == name)?;
    numbers.split_whitespace().nth(place)?.parse().ok()
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
            while_there_is: None,
            timeout: Duration::from_secs(2),
            keep_alive: 2,
            pause: Duration::from_millis(20),
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_told_with_its_time_and_the_rest_is_answered() {
        let http = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        // Nobody listens there: the port was free a moment ago.
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        tokio::spawn(crate::server::serve(http.port(), udp.port()));
        while tokio::net::TcpStream::connect(http).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        let report = run(&load(&[format!("http://{http}/"), format!("http://{closed}/")]))
            .await
            .unwrap();
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
        // Of the two that are kept, one is tried again and again.
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
    fn percentiles_are_of_what_was_answered() {
        let ended: Vec<Ended> = (0..=100)
            .map(|millis| Ended {
                sent: Duration::ZERO,
                url: Uri::default(),
                took: Duration::from_millis(millis),
                outcome: if millis == 100 {
                    Err(anyhow::anyhow!("lost"))
                } else {
                    Ok("web.1".into())
                },
            })
            .collect();
        let latency = latency(&ended);
        assert_eq!((latency.p50, latency.p99, latency.max), (49.0, 98.0, 99.0));
    }

    #[test]
    fn the_kernels_tables_are_read_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 17 0\n";
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), Some(17));
        assert_eq!(counter(text, "Tcp:", "OutRsts"), None);
    }
}
