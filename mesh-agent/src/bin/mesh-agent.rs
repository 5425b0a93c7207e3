//! The node agent: reads the command line, gives up what it does not need, and runs the library's agent. By the name
//! `meshctl`, it is that.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use mesh_support::error_chain;

use mesh_agent::{
    admin::{Client, DEFAULT_SOCKET},
    agent::{self, Ended},
    config::RunOptions,
    doctor::{self, Examiner},
    meshctl,
    orchestrator::program::{
        TRIAL,
        launch::{self, Start},
    },
};

/// How long the agent may take to answer that it is well.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

/// The node agent of an in-kernel L4 load balancer and routing mesh for Docker Swarm.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent on this node until it is told to stop.
    ///
    /// SIGTERM and SIGINT take the mesh out of the kernel (see --on-stop) and end it, a second one ends
    /// it at once. SIGHUP reads certificates, cluster and network anew.
    Run {
        #[command(flatten)]
        options: Box<RunOptions>,
        /// Only looks whether these flags are understood: what a new program of the agent is asked first
        #[arg(long, hide = true)]
        check: bool,
    },
    /// Examines kernel, permissions and Docker; says which data path results and what to do.
    ///
    /// Exits with 1 when the mesh cannot work on this machine.
    Doctor {
        /// Docker's Unix socket
        #[arg(
            long,
            env = "MESH_DOCKER_SOCKET",
            value_name = "PATH",
            default_value = "/var/run/docker.sock"
        )]
        docker_socket: PathBuf,
        /// Where the bpf file system is mounted
        #[arg(long, env = "MESH_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Exits with 0 if the agent of this node answers on its admin socket.
    Health {
        /// The agent's admin socket
        #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
        admin_socket: PathBuf,
    },
}

fn main() -> ExitCode {
    // The image has one program under both names: each by itself would hold nearly all of the other.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(std::ffi::OsStr::new("meshctl")) {
        return meshctl::cli::main();
    }
    let result = match Arguments::parse().command {
        Command::Run { check: true, .. } => Ok(ExitCode::SUCCESS),
        Command::Run {
            options,
            check: false,
        } => run(*options),
        Command::Doctor { docker_socket, bpffs } => doctor(docker_socket, bpffs),
        Command::Health { admin_socket } => health(&admin_socket),
    };
    result.unwrap_or_else(|error| {
        // One line: what failed, and what it came from.
        let _ = writeln!(std::io::stderr(), "mesh-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    agent::start_logging(&options);
    let programs = options
        .orchestrator
        .orchestrator
        .then(|| options.orchestrator.programs_path());
    // This program may give way to another one before there is a second thread.
    let start = programs.as_deref().map_or(Start::Proven, launch::start);
    agent::reduce_privileges()?;
    let runtime = runtime()?;
    let ended = runtime.block_on(run_or_expire(options, start, programs.as_deref()));
    // Whatever still runs there ends with the process, or when another program takes it over.
    runtime.shutdown_background();
    let failure = match ended {
        Ok(Ended::Stopped) => return Ok(ExitCode::SUCCESS),
        Ok(Ended::Replaced) => None,
        Err(error) => {
            tracing::error!("{error:#}");
            Some(format!("{error:#}"))
        }
    };
    match (programs, failure) {
        (Some(programs), None) => give_way(&programs),
        (Some(programs), Some(reason)) if launch::is_on_trial(&programs) => {
            launch::fail(&programs, reason);
            give_way(&programs)
        }
        (Some(_) | None, _) => Ok(ExitCode::FAILURE),
    }
}

/// Runs the agent. A program on trial that does not prove itself in time fails.
async fn run_or_expire(options: RunOptions, start: Start, programs: Option<&Path>) -> anyhow::Result<Ended> {
    let expired = async {
        if let (Start::OnTrial, Some(programs)) = (start, programs) {
            tokio::time::sleep(TRIAL).await;
            if launch::is_on_trial(programs) {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = agent::run(options) => Ok(ended?),
        () = expired => bail!(
            "the data path did not stand, or the store was not reached, within {} s", TRIAL.as_secs()
        ),
    }
}

/// Executes the program that is next; returns only when there is none.
fn give_way(programs: &Path) -> anyhow::Result<ExitCode> {
    if let Err(error) = agent::pass_privileges_on() {
        tracing::warn!(
            error = error_chain(&error),
            "the next program may lack permissions"
        );
    }
    match launch::again(programs)? {}
}

fn doctor(docker_socket: PathBuf, bpffs: PathBuf) -> anyhow::Result<ExitCode> {
    let options = doctor::Options {
        docker_socket,
        bpffs,
        ..doctor::Options::default()
    };
    let report = runtime()?.block_on(doctor::examine(&options, Examiner::Agent, None));
    writeln!(std::io::stdout(), "{}", meshctl::table::report(&report))
        .context("printing the report failed")?;
    Ok(if report.works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn health(admin_socket: &Path) -> anyhow::Result<ExitCode> {
    let answer = async {
        let client = Client::new(admin_socket)?;
        tokio::time::timeout(HEALTH_LIMIT, client.status())
            .await
            .with_context(|| format!("the agent at {} does not answer", admin_socket.display()))??;
        Ok(ExitCode::SUCCESS)
    };
    runtime()?.block_on(answer)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().context("starting the runtime failed")
}
