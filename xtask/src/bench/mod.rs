//! `cargo xtask bench`: sets up, builds what is to be measured, and runs the measurement. Depends on
//! `setup` and `build`.

use anyhow::{Context, Result};

use crate::{
    build::{self, cargo},
    command::{silence_standard_output, stream},
    lab::check_root,
    paths,
    programs::Need,
    setup,
};

mod mesh;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, clap::Subcommand)]
enum Subject {
    /// Nanoseconds per packet of each path of the eBPF programs, beside the floors they cannot go below.
    Packet {
        /// How to print the rows.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Runs that the medians are over.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// The mesh beside Docker's own and other load balancers: connections, requests and bytes per second.
    Mesh(mesh::Arguments),
    /// The orchestrator: a whole cluster on an etcd of three members; without `--format json` also its
    /// control loops with 50,000 tasks alone, and its stores' transactions per second.
    Orchestrator {
        /// How to print the cluster's rows.
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Simulated nodes of the cluster.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
        nodes: u32,
        /// Simulated tasks of the cluster; in services of 100 replicas.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
        tasks: u32,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
        }
    }
}

/// Sets up, builds and measures. Standard output gets the rows and nothing else.
///
/// # Errors
/// When a step fails, or a path has not done what it was measured for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let check = || check_root().context("the measurement loads eBPF programs into network namespaces");
    match &arguments.subject {
        Subject::Orchestrator { format, nodes, tasks } => orchestrator(*format, *nodes, *tasks),
        Subject::Packet { format, runs } => {
            check()?;
            packet(*format, *runs)
        }
        Subject::Mesh(arguments) => {
            check()?;
            mesh::run(arguments)
        }
    }
}

fn packet(format: Format, runs: u32) -> Result<()> {
    let rows_to = silence_standard_output()?;
    setup::packages(&[Need::Build])?.install()?;
    build::ebpf()?;
    build::ebpf_bench()?;
    nix::unistd::dup2_stdout(rows_to).context("standard output cannot be put back")?;
    // The kernel takes the time: an optimised agent would only take longer to build.
    let mut bench = cargo([
        "bench",
        "--quiet",
        "--profile",
        "dev",
        "--package",
        "mesh-agent",
        "--bench",
        "packet",
        "--",
    ]);
    bench
        .args(["--format", format.name(), "--runs", &runs.to_string()])
        .env("MESH_BENCH_OBJECT", paths::bench_object());
    stream(&mut bench)
}

fn orchestrator(format: Format, nodes: u32, tasks: u32) -> Result<()> {
    let rows_to = silence_standard_output()?;
    setup::run()?;
    nix::unistd::dup2_stdout(rows_to).context("standard output cannot be put back")?;
    let bench = |name| {
        cargo([
            "bench",
            "--quiet",
            "--package",
            "mesh-orchestrator",
            "--bench",
            name,
        ])
    };
    if matches!(format, Format::Table) {
        stream(&mut bench("loops"))?;
        stream(&mut bench("stores"))?;
    }
    let mut cluster = bench("cluster");
    cluster.args(["--", "--format", format.name()]).args([
        "--nodes",
        &nodes.to_string(),
        "--tasks",
        &tasks.to_string(),
    ]);
    stream(&mut cluster)
}
