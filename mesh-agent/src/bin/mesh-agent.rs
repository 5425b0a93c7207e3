//! The node agent: reads the command line, drops the privileges it does not need, and runs the library's
//! agent. Called by the name `meshctl`, it is that program.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

#[cfg(feature = "orchestrator")]
use mesh_agent::orchestrator::program::Launcher;
use mesh_agent::{
    admin::{Client, DEFAULT_SOCKET},
    agent,
    config::{ConfigError, ConfigFlag, Reloader, RunOptions, Settings},
    doctor::{self, Examiner},
    meshctl,
    process::privileges,
};

/// How long the agent may take to answer.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

/// The node agent of an in-kernel L4 load balancer and routing mesh for Docker Swarm.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    file: ConfigFlag,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent on this node until it is stopped.
    ///
    /// SIGTERM and SIGINT end the agent; the data path stays in the kernel and goes on forwarding, unless
    /// --on-stop says otherwise. A second one ends the agent at once. SIGHUP rereads settings, certificates,
    /// cluster and network.
    Run {
        #[command(flatten)]
        options: Box<RunOptions>,
        /// Only check these flags; a new program of the agent is run with this before it is deployed
        #[arg(long, hide = true)]
        check: bool,
    },
    /// Check kernel, permissions and Docker, and show which data path they allow and what to do.
    ///
    /// Exits with 1 if the mesh cannot work on this machine.
    Doctor {
        /// Docker's Unix socket
        #[arg(
            long,
            env = "MESH_DOCKER_SOCKET",
            value_name = "PATH",
            default_value = "/var/run/docker.sock"
        )]
        docker_socket: PathBuf,
        /// Mount point of the bpf file system
        #[arg(long, env = "MESH_BPFFS", value_name = "PATH", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Remove everything that a stopped agent has left on this node.
    ///
    /// Programs, maps, pins, the device mesh0, queueing disciplines, virtual services and nftables tables of
    /// the mesh go, and changed settings of the kernel are put back. Docker's own mesh is in charge again.
    /// It may be repeated.
    Clean {
        #[command(flatten)]
        options: agent::CleanOptions,
    },
    /// Exit with 0 if the agent of this node is ready: its data path was brought up with the cluster's
    /// services.
    ///
    /// It stays ready from then on; a manager or an engine that does not answer later does not change that.
    Health {
        /// The agent's admin socket
        #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
        admin_socket: PathBuf,
    },
}

fn main() -> ExitCode {
    // One program with two names: separate ones would be nearly identical.
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(std::ffi::OsStr::new("meshctl")) {
        return meshctl::cli::main();
    }
    let settings = Settings::new(Arguments::command(), std::env::args_os());
    let (arguments, reloader) = match read(settings) {
        Ok(read) => read,
        Err(ConfigError::CommandLine(error)) => {
            // If printing fails, there is nowhere to report it.
            let _ = error.print();
            return ExitCode::from(meshctl::usage::exit_code(&error));
        }
        Err(error) => return fail(&error.into()),
    };
    let result = match arguments.command {
        Command::Run { check: true, .. } => Ok(ExitCode::SUCCESS),
        Command::Run {
            options,
            check: false,
        } => run(*options, reloader),
        Command::Doctor { docker_socket, bpffs } => doctor(docker_socket, bpffs),
        Command::Clean { options } => clean(&options),
        Command::Health { admin_socket } => health(&admin_socket),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// One line: what failed, and why.
fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "mesh-agent: {error:#}");
    ExitCode::FAILURE
}

fn read(settings: Settings) -> Result<(Arguments, Reloader), ConfigError> {
    let matches = settings.matches()?;
    let arguments = Arguments::from_arg_matches(&matches)?;
    Ok((arguments, Reloader::new(settings, &matches)))
}

#[cfg(feature = "orchestrator")]
fn run(options: RunOptions, reloader: Reloader) -> anyhow::Result<ExitCode> {
    agent::start_logging(&options);
    // May execute another program instead, before there is a second thread.
    let launcher = Launcher::start(options.programs_path());
    privileges::reduce()?;
    let runtime = runtime()?;
    let ended = runtime.block_on(launcher.supervise(agent::run(options, reloader)));
    // What still runs ends with the process.
    runtime.shutdown_background();
    Ok(match launcher.finish(ended)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

#[cfg(not(feature = "orchestrator"))]
fn run(options: RunOptions, reloader: Reloader) -> anyhow::Result<ExitCode> {
    agent::start_logging(&options);
    privileges::reduce()?;
    let runtime = runtime()?;
    let ended = runtime.block_on(agent::run(options, reloader));
    // What still runs ends with the process.
    runtime.shutdown_background();
    Ok(match ended {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", mesh_support::error_chain(&error));
            ExitCode::FAILURE
        }
    })
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

fn clean(options: &agent::CleanOptions) -> anyhow::Result<ExitCode> {
    let removed = runtime()?.block_on(agent::clean(options))?;
    let line = if removed.is_empty() {
        "nothing of the mesh is on this node".to_owned()
    } else {
        format!("removed: {}", removed.join("; "))
    };
    writeln!(std::io::stdout(), "{line}").context("printing the result failed")?;
    Ok(ExitCode::SUCCESS)
}

fn health(admin_socket: &Path) -> anyhow::Result<ExitCode> {
    let answer = async {
        let client = Client::new(admin_socket)?;
        let status = tokio::time::timeout(HEALTH_LIMIT, client.status())
            .await
            .with_context(|| format!("the agent at {} does not answer", admin_socket.display()))??;
        match status.not_ready {
            None => {
                let why = status.ready_without_snapshot;
                let line = why.map_or_else(|| "ready".to_owned(), |why| format!("ready: {why}"));
                writeln!(std::io::stdout(), "{line}").context("printing the result failed")?;
                Ok(ExitCode::SUCCESS)
            }
            Some(reason) => bail!("the agent is not ready: {reason}"),
        }
    };
    runtime()?.block_on(answer)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().context("starting the runtime failed")
}
