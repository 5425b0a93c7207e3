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
    /// The orchestrator: its control loops with 50,000 tasks, and its stores' transactions per second.
    Orchestrator,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Sets up, builds and measures. Standard output gets the rows and nothing else.
///
/// # Errors
/// When a step fails, or a path has not done what it was measured for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let check = || check_root().context("the measurement loads eBPF programs into network namespaces");
    match &arguments.subject {
        Subject::Orchestrator => orchestrator(),
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
    let format = match format {
        Format::Table => "table",
        Format::Json => "json",
    };
    bench
        .args(["--format", format, "--runs", &runs.to_string()])
        .env("MESH_BENCH_OBJECT", paths::bench_object());
    stream(&mut bench)
}

fn orchestrator() -> Result<()> {
    setup::run()?;
    let mut bench = cargo([
        "bench",
        "--package",
        "mesh-orchestrator",
        "--bench",
        "loops",
        "--bench",
        "stores",
    ]);
    stream(&mut bench)
}
