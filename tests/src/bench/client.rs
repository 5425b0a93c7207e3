//! The closed-loop client: each worker sends its next request as soon as the last one is answered. Depends
//! only on the message in its folder.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{Ask, MESSAGE};

/// A connection or an answer that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bulk data is counted in pieces of this size.
const PIECE: usize = 128 * 1024;

/// Bytes in one bulk request: more than any run transfers.
const ENDLESS: u64 = 1 << 50;

/// The quantity to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// A new connection for each request; its time includes the answer.
    Connections,
    /// Requests on connections that stay open.
    Requests,
    /// Bytes to the server.
    Upload,
    /// Bytes from the server.
    Download,
}

/// A measurement.
#[derive(Clone, Debug)]
pub struct Load {
    /// The quantity to measure.
    pub measure: Measure,
    /// The server, or a load balancer before it.
    pub target: SocketAddr,
    /// Source addresses of connections, in turn; if empty, the kernel's choice.
    pub sources: Vec<Ipv4Addr>,
    /// How many workers.
    pub concurrency: usize,
    /// How long.
    pub seconds: f64,
}

/// Its outcome.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Connections, requests or bytes.
    pub count: u64,
    /// Failed connections or requests.
    pub errors: u64,
    /// The first error; empty if there was none.
    pub error: String,
    /// The duration.
    pub seconds: f64,
    /// The median time of connections or requests, in microseconds.
    pub median_us: f64,
    /// Their 99th percentile, in microseconds.
    pub p99_us: f64,
}

#[derive(Default)]
struct Tally {
    count: u64,
    errors: u64,
    error: String,
    /// In microseconds.
    times: Vec<u32>,
}

impl Tally {
    fn fail(&mut self, error: &io::Error) {
        self.errors += 1;
        if self.error.is_empty() {
            self.error = error.to_string();
        }
    }
}

/// Runs the measurement.
///
/// # Errors
/// When a worker panicked.
pub async fn run(load: &Load) -> Result<Outcome> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(load.seconds);
    let mut workers = JoinSet::new();
    for index in 0..load.concurrency {
        workers.spawn(work(load.clone(), index, end));
    }
    let mut outcome = Outcome::default();
    let mut times = Vec::new();
    while let Some(tally) = workers.join_next().await {
        let tally = tally.context("a worker panicked")?;
        outcome.count += tally.count;
        outcome.errors += tally.errors;
        if outcome.error.is_empty() {
            outcome.error = tally.error;
        }
        times.extend(tally.times);
    }
    outcome.seconds = begin.elapsed().as_secs_f64();
    times.sort_unstable();
    outcome.median_us = at_rank(&times, 0.5);
    outcome.p99_us = at_rank(&times, 0.99);
    Ok(outcome)
}

/// The value at this rank of the sorted values, by the nearest-rank method; 0 if there are none.
fn at_rank(sorted: &[u32], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().map_or(0.0, f64::from)
}

async fn work(load: Load, index: usize, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut turn = index;
    while Instant::now() < end {
        let source = match load.sources.len() {
            0 => None,
            count => Some(load.sources[turn % count]),
        };
        turn += load.concurrency;
        let outcome = match load.measure {
            Measure::Connections => connection(&load, source, &mut tally).await,
            Measure::Requests => requests(&load, source, end, &mut tally).await,
            Measure::Upload => upload(&load, source, end, &mut tally).await,
            Measure::Download => download(&load, source, end, &mut tally).await,
        };
        if let Err(error) = outcome {
            tally.fail(&error);
        }
    }
    tally
}

async fn connection(load: &Load, source: Option<Ipv4Addr>, tally: &mut Tally) -> io::Result<()> {
    let begin = Instant::now();
    let mut stream = dial(load.target, source).await?;
    within(exchange(&mut stream, Ask::Answer)).await?;
    tally.times.push(microseconds(begin));
    tally.count += 1;
    Ok(())
}

async fn requests(load: &Load, source: Option<Ipv4Addr>, end: Instant, tally: &mut Tally) -> io::Result<()> {
    let mut stream = dial(load.target, source).await?;
    while Instant::now() < end {
        let begin = Instant::now();
        within(exchange(&mut stream, Ask::Answer)).await?;
        tally.times.push(microseconds(begin));
        tally.count += 1;
    }
    Ok(())
}

async fn upload(load: &Load, source: Option<Ipv4Addr>, end: Instant, tally: &mut Tally) -> io::Result<()> {
    let mut stream = dial(load.target, source).await?;
    stream.write_all(&Ask::Receive(ENDLESS).to_bytes()).await?;
    let piece = vec![0; PIECE];
    while Instant::now() < end {
        tally.count += within(stream.write(&piece)).await? as u64;
    }
    Ok(())
}

async fn download(load: &Load, source: Option<Ipv4Addr>, end: Instant, tally: &mut Tally) -> io::Result<()> {
    let mut stream = dial(load.target, source).await?;
    stream.write_all(&Ask::Send(ENDLESS).to_bytes()).await?;
    let mut piece = vec![0; PIECE];
    while Instant::now() < end {
        match within(stream.read(&mut piece)).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => tally.count += count as u64,
        }
    }
    Ok(())
}

async fn exchange(stream: &mut TcpStream, ask: Ask) -> io::Result<()> {
    let mut answer = [0; MESSAGE];
    stream.write_all(&ask.to_bytes()).await?;
    stream.read_exact(&mut answer).await.map(drop)
}

async fn dial(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        // The port is chosen at `connect`, so that each target has all of them.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind((source, 0).into())?;
    }
    let stream = within(socket.connect(target)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn microseconds(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_the_nearest_value() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(at_rank(&values, 0.5), 50.0);
        assert_eq!(at_rank(&values, 0.99), 99.0);
        assert_eq!(at_rank(&[7], 0.99), 7.0);
        assert_eq!(at_rank(&[], 0.5), 0.0);
    }
}
