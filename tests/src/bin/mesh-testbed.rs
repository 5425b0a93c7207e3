//! The server that the lab's services run, and the client that asks it.

use std::{
    ffi::OsString,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use hyper::Uri;
use mesh_tests::{
    bench,
    bench::client::Measure,
    client::{self, Manner},
    inject,
    load::{self, Load},
    server, shield, stranger,
};

/// A small server for tests of load balancers, and its client.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Pretend to be a mesh agent that looks sound and cannot run.
    #[command(hide = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Answer HTTP (who answers, who asked; uploads; downloads) and echo UDP.
    Serve {
        #[arg(long, default_value_t = 80)]
        port: u16,
        #[arg(long, default_value_t = 81)]
        udp_port: u16,
        /// The port of the lean server that `bench` measures with.
        #[arg(long, default_value_t = 82)]
        bench_port: u16,
    },
    /// Load a server, or what stands before it, with as much as it takes; one line of JSON.
    Bench {
        measure: Measure,
        target: SocketAddr,
        /// How long, in seconds.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// How many connections at once.
        #[arg(long, default_value_t = 16)]
        concurrency: usize,
        /// Addresses of this machine that connections come from, in turn.
        #[arg(long = "source", value_delimiter = ',')]
        sources: Vec<Ipv4Addr>,
    },
    /// Request an address, each time on a new connection; a line of JSON for each.
    Get {
        url: Uri,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Print the body of one answer as it is.
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        manner: MannerArguments,
    },
    /// Request addresses in turn at a steady rate, whatever becomes of the requests, and tell in one line
    /// of JSON what failed, how and when.
    Load {
        #[arg(required = true)]
        urls: Vec<Uri>,
        /// New connections each second, in all.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// For how long, in seconds.
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        /// Go on for as long as there is this file.
        #[arg(long = "while", value_name = "FILE")]
        while_there_is: Option<PathBuf>,
        /// How long one request may take, in milliseconds; more than the second after which TCP repeats
        /// itself, so that what is lost and healed is slow rather than failed.
        #[arg(long, default_value_t = 5000)]
        timeout: u64,
        /// Connections to keep meanwhile, over the addresses in turn.
        #[arg(long, default_value_t = 0)]
        keep_alive: usize,
        /// The rest between two requests on each of them, in milliseconds.
        #[arg(long, default_value_t = 100)]
        pause: u64,
    },
    /// Upload bytes and compare what arrived.
    Upload {
        url: Uri,
        #[arg(long)]
        bytes: u64,
        #[command(flatten)]
        manner: MannerArguments,
    },
    /// Download bytes and compare every one.
    Download {
        url: Uri,
        #[arg(long)]
        bytes: u64,
        #[command(flatten)]
        manner: MannerArguments,
    },
    /// Send datagrams, each from a new socket; a line of JSON for each.
    Udp {
        address: SocketAddr,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Bytes of each datagram.
        #[arg(long, default_value_t = 5)]
        size: usize,
        #[command(flatten)]
        manner: MannerArguments,
    },
    /// Connect once and tell how that went.
    Connect {
        address: SocketAddr,
        #[command(flatten)]
        manner: MannerArguments,
    },
    /// Send raw frames, read from standard input as hexadecimal digits, one a line.
    Inject {
        #[arg(long, default_value = "eth0")]
        interface: String,
    },
    /// Run a command that is refused the bpf system call.
    #[command(hide = true)]
    WithoutBpf {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Dial a TLS port and tell whether the server keeps or refuses this client.
    Tls {
        address: SocketAddr,
        /// PEM certificate to show; none is shown without it.
        #[arg(long, requires = "key")]
        certificate: Option<PathBuf>,
        /// Its PEM key.
        #[arg(long)]
        key: Option<PathBuf>,
    },
}

#[derive(Args)]
struct MannerArguments {
    /// How long one request may take, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    timeout: u64,
    /// The first source port; 0 for any.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The rest between two requests, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause: u64,
}

/// How much slower than others this machine is said to be: `$MESH_LAB_PATIENCE`, as the lab has it.
fn patience() -> u32 {
    let text = std::env::var("MESH_LAB_PATIENCE").unwrap_or_default();
    text.parse::<u32>().unwrap_or(1).clamp(1, 1000)
}

impl MannerArguments {
    fn manner(&self) -> Manner {
        Manner {
            timeout: Duration::from_millis(self.timeout) * patience(),
            source_port: self.source_port,
            pause: Duration::from_millis(self.pause),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::args_os().nth(1).is_some_and(|word| word == "--version") {
        // As an agent, see `Action::Run`.
        println!("mesh-agent 0.0.0");
        return Ok(());
    }
    match Arguments::parse().action {
        Action::Run { arguments } if arguments.last().is_some_and(|word| word == "--check") => Ok(()),
        Action::Run { .. } => bail!("this is no agent"),
        Action::Serve {
            port,
            udp_port,
            bench_port,
        } => {
            tokio::spawn(bench::server::serve(bench::server::listen(bench_port)?));
            server::serve(port, udp_port).await
        }
        Action::Bench {
            measure,
            target,
            seconds,
            concurrency,
            sources,
        } => {
            let load = bench::client::Load {
                measure,
                target,
                sources,
                concurrency,
                seconds,
            };
            let outcome = bench::client::run(&load).await?;
            println!("{}", serde_json::to_string(&outcome).context("no JSON")?);
            Ok(())
        }
        Action::Get {
            url,
            raw: true,
            manner,
            ..
        } => {
            let body = client::get_raw(&url, manner.manner()).await?;
            std::io::stdout()
                .write_all(&body)
                .context("could not write the answer")
        }
        Action::Get {
            url, count, manner, ..
        } => client::get(&url, count, manner.manner()).await,
        Action::Load {
            urls,
            rate,
            duration,
            while_there_is,
            timeout,
            keep_alive,
            pause,
        } => {
            let load = Load {
                urls,
                rate,
                duration: Duration::try_from_secs_f64(duration).context("that is no duration")?,
                while_there_is,
                timeout: Duration::from_millis(timeout) * patience(),
                keep_alive,
                pause: Duration::from_millis(pause),
            };
            let report = load::run(&load).await?;
            println!("{}", serde_json::to_string(&report).context("no JSON")?);
            Ok(())
        }
        Action::Upload { url, bytes, manner } => {
            let received = client::upload(&url, bytes, manner.manner()).await?;
            println!("{}", serde_json::to_string(&received).context("no JSON")?);
            Ok(())
        }
        Action::Download { url, bytes, manner } => {
            println!("{}", client::download(&url, bytes, manner.manner()).await?);
            Ok(())
        }
        Action::Udp {
            address,
            count,
            size,
            manner,
        } => client::udp(address, count, size, manner.manner()).await,
        Action::Inject { interface } => {
            let count = inject::from_lines(&interface, std::io::stdin().lock())?;
            println!("{count}");
            Ok(())
        }
        Action::Tls {
            address,
            certificate,
            key,
        } => {
            let pair = certificate.as_deref().zip(key.as_deref());
            println!("{}", stranger::dial(address, pair)?);
            Ok(())
        }
        Action::WithoutBpf { command } => match shield::without_bpf(&command)? {},
        Action::Connect { address, manner } => client::connect(address, manner.manner()).await,
    }
}
