//! The server that the lab's services run, and its client.

use std::{
    ffi::OsString,
    io::Write,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use hyper::Uri;
use mesh_tests::{
    bench,
    bench::client::Measure,
    client::{self, RequestOptions},
    flood, inject,
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
    /// Act as a mesh agent that passes its check but fails to run.
    #[command(hide = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Answer HTTP (the task's name and the client's address; uploads; downloads) and echo UDP.
    Serve {
        #[arg(long, default_value_t = 80)]
        port: u16,
        #[arg(long, default_value_t = 81)]
        udp_port: u16,
        /// The port of the minimal server for `bench`.
        #[arg(long, default_value_t = 82)]
        bench_port: u16,
    },
    /// Measure a server, or a load balancer before it, at full load; print one line of JSON.
    Bench {
        measure: Measure,
        target: SocketAddr,
        /// How long, in seconds.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// How many connections at once.
        #[arg(long, default_value_t = 16)]
        concurrency: usize,
        /// Addresses of this machine to connect from, in turn.
        #[arg(long = "source", value_delimiter = ',')]
        sources: Vec<Ipv4Addr>,
    },
    /// Send requests, each on a new connection; print a line of JSON for each.
    Get {
        url: Uri,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Send one request and print the body of its answer.
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        request: RequestArguments,
    },
    /// Send requests to addresses in turn at a steady rate, whatever happens to them; print one line of JSON
    /// that says what failed, how and when.
    Load {
        /// `http://HOST:PORT/`, or `udp://HOST:PORT` for datagrams, each from a port of its own.
        #[arg(required = true)]
        urls: Vec<Uri>,
        /// New connections each second, in all.
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// How long, in seconds.
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        /// Then go on for as long as this file exists.
        #[arg(long = "while", value_name = "FILE")]
        while_exists: Option<PathBuf>,
        /// How long one request may take, in milliseconds; longer than the second after which TCP retransmits
        /// a SYN, so that a lost SYN makes a request slow rather than fail.
        #[arg(long, default_value_t = 5000)]
        timeout: u64,
        /// Connections to keep open meanwhile, to the addresses in turn.
        #[arg(long, default_value_t = 0)]
        keep_alive: usize,
        /// The pause between two requests on each of them, in milliseconds.
        #[arg(long, default_value_t = 100)]
        pause: u64,
    },
    /// Upload bytes and check that they arrived.
    Upload {
        url: Uri,
        #[arg(long)]
        bytes: u64,
        #[command(flatten)]
        request: RequestArguments,
    },
    /// Download bytes and check every one.
    Download {
        url: Uri,
        #[arg(long)]
        bytes: u64,
        #[command(flatten)]
        request: RequestArguments,
    },
    /// Send datagrams, each from a new socket; print a line of JSON for each.
    Udp {
        address: SocketAddr,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Bytes of each datagram.
        #[arg(long, default_value_t = 5)]
        size: usize,
        #[command(flatten)]
        request: RequestArguments,
    },
    /// Connect once and print the outcome.
    Connect {
        address: SocketAddr,
        #[command(flatten)]
        request: RequestArguments,
    },
    /// Send raw frames, read from standard input as one line of hexadecimal digits each.
    Inject {
        #[arg(long, default_value = "eth0")]
        interface: String,
    },
    /// Send SYNs from random addresses, and print how many.
    Flood {
        target: SocketAddrV4,
        /// The receiver's MAC address.
        #[arg(long)]
        to_mac: String,
        /// How many a second at most; without it, as many as it can.
        #[arg(long, default_value_t = u32::MAX)]
        rate: u32,
        #[arg(long, default_value_t = 1)]
        seconds: u64,
        #[arg(long, default_value = "eth0")]
        interface: String,
    },
    /// Run a command for which the bpf system call fails.
    #[command(hide = true)]
    WithoutBpf {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Connect by TLS and print whether the server keeps or refuses this client.
    Tls {
        address: SocketAddr,
        /// The client's PEM certificate; none is sent without it.
        #[arg(long, requires = "key")]
        certificate: Option<PathBuf>,
        /// The PEM key of the certificate.
        #[arg(long)]
        key: Option<PathBuf>,
    },
}

#[derive(Args)]
struct RequestArguments {
    /// How long one request may take, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    timeout: u64,
    /// The first source port; 0 for any.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The pause between two requests, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause: u64,
}

/// How many times slower this machine is: `$MESH_LAB_PATIENCE`, as in the lab.
fn patience() -> u32 {
    let text = std::env::var("MESH_LAB_PATIENCE").unwrap_or_default();
    text.parse::<u32>().unwrap_or(1).clamp(1, 1000)
}

impl RequestArguments {
    fn options(&self) -> RequestOptions {
        RequestOptions {
            timeout: Duration::from_millis(self.timeout) * patience(),
            source_port: self.source_port,
            pause: Duration::from_millis(self.pause),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "--version")
    {
        // As an agent does, see `Action::Run`.
        println!("mesh-agent 0.0.0");
        return Ok(());
    }
    match Arguments::parse().action {
        Action::Run { arguments } if arguments.last().is_some_and(|argument| argument == "--check") => Ok(()),
        Action::Run { .. } => bail!("this is not an agent"),
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
            request,
            ..
        } => {
            let body = client::get_raw(&url, request.options()).await?;
            std::io::stdout()
                .write_all(&body)
                .context("could not write the answer")
        }
        Action::Get {
            url, count, request, ..
        } => client::get(&url, count, request.options()).await,
        Action::Load {
            urls,
            rate,
            duration,
            while_exists,
            timeout,
            keep_alive,
            pause,
        } => {
            let load = Load {
                urls,
                rate,
                duration: Duration::try_from_secs_f64(duration).context("the duration is out of range")?,
                while_exists,
                timeout: Duration::from_millis(timeout) * patience(),
                keep_alive,
                pause: Duration::from_millis(pause),
            };
            let report = load::run(&load).await?;
            println!("{}", serde_json::to_string(&report).context("no JSON")?);
            Ok(())
        }
        Action::Upload { url, bytes, request } => {
            let received = client::upload(&url, bytes, request.options()).await?;
            println!("{}", serde_json::to_string(&received).context("no JSON")?);
            Ok(())
        }
        Action::Download { url, bytes, request } => {
            println!("{}", client::download(&url, bytes, request.options()).await?);
            Ok(())
        }
        Action::Udp {
            address,
            count,
            size,
            request,
        } => client::udp(address, count, size, request.options()).await,
        Action::Inject { interface } => {
            let count = inject::from_lines(&interface, std::io::stdin().lock())?;
            println!("{count}");
            Ok(())
        }
        Action::Flood {
            target,
            to_mac,
            rate,
            seconds,
            interface,
        } => {
            let duration = Duration::from_secs(seconds);
            println!("{}", flood::run(&interface, &to_mac, target, rate, duration)?);
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
        Action::Connect { address, request } => client::connect(address, request.options()).await,
    }
}
