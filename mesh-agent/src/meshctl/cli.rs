//! The command line of `meshctl`: sends requests to this machine's agent and prints the answers. Only the
//! binaries import it.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

#[cfg(feature = "orchestrator")]
use super::{Failure, commands};
use super::{
    clients::{self, ClientsArguments},
    drain::{self, DrainArguments, UndrainArguments},
    explain::{self, ExplainArguments},
    flows::{self, FlowsArguments},
    monitor::{self, MonitorArguments},
    nodes::Nodes,
    print::{Format, Watch, is_broken_pipe, print, repeat},
    table,
    top::{self, TopArguments},
    usage,
};
use crate::{
    admin::{
        Client, ClientError, DEFAULT_SOCKET,
        api::{Route, Status},
    },
    datapath::DatapathChoice,
    doctor::{self, Examiner},
};

/// Shows the mesh's routes and the agent's status, and controls the orchestrator.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100)]
#[cfg_attr(
    not(feature = "orchestrator"),
    command(
        after_help = "This meshctl was built without the orchestrator: its commands (service, stack, node, …) are missing."
    )
)]
struct Arguments {
    /// The agent's admin socket
    #[arg(long, global = true, env = "MESH_ADMIN_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show each published port with its replicas, their traffic, and why a replica gets none
    ///
    /// Counters cover the traffic that entered the mesh at this node. IN and OUT are L3 bytes from and to
    /// clients (IP header included); in dsr mode replies of replicas on other nodes are not counted.
    Routes(RoutesArguments),
    /// Explain what becomes of a packet, decision by decision, without sending it
    ///
    /// The agent runs the data path's own logic over its live tables: interface and hooks, frontend, flow,
    /// source rules, algorithm, health, replica, tunnel, way back. Nothing is changed or counted. The packet
    /// is the first of its connection or, where there is that connection, its next. eBPF only.
    Explain(ExplainArguments),
    /// List connections: client, replica, state, where they entered
    ///
    /// One row per connection, or per client of a UDP service, sorted by port and client. Reads the data
    /// path's tables in small steps, so that it disturbs no traffic.
    Flows(FlowsArguments),
    /// List IPv6 clients, and the IPv4 address by which replicas see each
    ///
    /// The address of a client stays the same, on every node. `meshctl clients 248.12.34.56` says who that
    /// was, for as long as the node remembers its last 100,000 IPv6 clients.
    Clients(ClientsArguments),
    /// Watch what becomes of packets: connections opened and closed, packets refused and dropped, and why
    ///
    /// One line per event, in UTC, until interrupted. The programs report as long as someone watches, at
    /// most about 2,000 events a second and node: what is past that is counted. The source is the packet's,
    /// which may be the replica. eBPF only.
    Monitor(MonitorArguments),
    /// Show live rates: new connections, packets and bytes, by service and replica
    ///
    /// Each screen is the difference of two readings of the counters, the busiest first. Rates cover the
    /// traffic that entered the mesh at the node, as the counters of `routes` do.
    Top(TopArguments),
    /// Show role, data path of each interface, peers, age of the snapshot of the cluster, problems
    Status {
        #[command(flatten)]
        nodes: Nodes,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show the rungs of the data path: which one is in use, and why not a better one
    ///
    /// A refused rung is tried again only on request.
    Datapath(DatapathArguments),
    /// Drain a replica, or all of a node: new connections go elsewhere, open ones go on
    ///
    /// A manager drains on any node whose agent is connected to it; other nodes drain what runs on them.
    /// Prints the open connections until none is left. A drain ends with `undrain`, with its task, or when
    /// its node is rebooted. The node goes on answering on its addresses.
    Drain(DrainArguments),
    /// Give a drained replica, or all of a node, new connections again
    Undrain(UndrainArguments),
    /// Check kernel, permissions and Docker, with the resulting data path and remedies
    ///
    /// The running agent does the checks, with its own permissions. Without an agent, meshctl does them with
    /// yours. Exits with 1 if the mesh cannot work on this machine.
    Doctor(DoctorArguments),
    #[cfg(feature = "orchestrator")]
    #[command(flatten)]
    Orchestrator(commands::Command),
}

#[derive(Debug, Args)]
struct RoutesArguments {
    /// Only this service, by name or id
    #[arg(long)]
    service: Option<String>,
    /// Only this published port
    #[arg(long)]
    port: Option<u16>,
    /// Only replicas on this node, by host name or id
    #[arg(long)]
    node: Option<String>,
    /// List every address instead of `*`
    #[arg(long)]
    all_frontends: bool,
    #[command(flatten)]
    watch: Watch,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
struct DatapathArguments {
    #[command(subcommand)]
    action: Option<DatapathAction>,
    /// How to print
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum DatapathAction {
    /// Print the data path's tables as they are in the kernel
    ///
    /// For eBPF: settings, services with their rings, backends, frontends, peers, and on request flows. For
    /// IPVS: its virtual services. (The nftables rules beside them: nft list table ip mesh.)
    Dump {
        /// At most so many entries of the flow table
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        flows: usize,
    },
    /// Try the better rungs again now
    ///
    /// The new data path is complete before the old one goes. A change between eBPF and IPVS breaks open
    /// connections.
    Retry,
    /// Use another data path, until the agent stops or gets another request
    Use {
        /// eBPF, IPVS, or the best that works
        #[arg(value_enum)]
        choice: DatapathChoice,
    },
}

#[derive(Debug, Args)]
struct DoctorArguments {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Docker's Unix socket, if no agent is running
    #[arg(
        long,
        env = "MESH_DOCKER_SOCKET",
        default_value = "/var/run/docker.sock",
        value_name = "PATH"
    )]
    docker_socket: PathBuf,
    /// Docker's data root, if no agent is running [default: the one that `docker info` reports]
    #[arg(long, env = "MESH_DOCKER_ROOT", value_name = "PATH")]
    docker_root: Option<PathBuf>,
    /// Mount point of the bpf file system, if no agent is running
    #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf", value_name = "PATH")]
    bpffs: PathBuf,
    /// A cgroup2 hierarchy, if no agent is running [default: the one in the mount table]
    #[arg(long, env = "MESH_CGROUP", value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

/// Runs the command line; returns the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(parse_and_run()),
        Err(error) => {
            eprintln!("meshctl: cannot start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn parse_and_run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = usage::exit_code(&error);
            // If printing fails, there is nowhere to report it.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(arguments).await {
        Ok(code) => code,
        // The sender of the signal needs no message.
        Err(error) if is_signal(&error) => exit_code(&error),
        // `meshctl routes | head` succeeds.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            exit_code(&error)
        }
    }
}

#[cfg(feature = "orchestrator")]
fn is_signal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Failure::Signal(_)))
}

#[cfg(not(feature = "orchestrator"))]
fn is_signal(_: &anyhow::Error) -> bool {
    false
}

#[cfg(not(feature = "orchestrator"))]
fn exit_code(_: &anyhow::Error) -> ExitCode {
    ExitCode::FAILURE
}

#[cfg(feature = "orchestrator")]
fn exit_code(error: &anyhow::Error) -> ExitCode {
    error
        .downcast_ref::<Failure>()
        .map_or(ExitCode::FAILURE, |failure| ExitCode::from(failure.exit_code()))
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.socket)?;
    match arguments.command {
        Command::Routes(arguments) => routes(&client, &arguments).await,
        Command::Explain(arguments) => explain::run(&client, &arguments).await,
        Command::Flows(arguments) => flows::run(&client, &arguments).await,
        Command::Clients(arguments) => clients::run(&client, &arguments).await,
        Command::Monitor(arguments) => monitor::run(&client, &arguments).await,
        Command::Top(arguments) => top::run(&client, &arguments).await,
        Command::Status { nodes, format } => {
            let ask = async |client: &Client| client.status().await;
            let all = |answers: &[Status]| {
                let each: Vec<_> = answers.iter().map(table::status).collect();
                each.join("\n\n")
            };
            nodes.show(&client, format, ask, all).await
        }
        Command::Datapath(arguments) => {
            let answer = match arguments.action {
                None => client.datapath().await?,
                Some(DatapathAction::Dump { flows }) => {
                    let answer = client.dump(flows).await?;
                    print(arguments.format, &answer, |answer| answer.dump.to_string())?;
                    return Ok(ExitCode::SUCCESS);
                }
                Some(DatapathAction::Retry) => client.retry_datapath().await?,
                Some(DatapathAction::Use { choice }) => client.use_datapath(choice).await?,
            };
            print(arguments.format, &answer, |answer| {
                table::datapath(&answer.datapath)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Drain(arguments) => {
            drain::drain(&client, arguments).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Undrain(arguments) => {
            drain::undrain(&client, arguments).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(arguments) => examine(&client, arguments).await,
        #[cfg(feature = "orchestrator")]
        Command::Orchestrator(command) => {
            commands::run(&arguments.socket, command).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn routes(client: &Client, arguments: &RoutesArguments) -> anyhow::Result<ExitCode> {
    repeat(&arguments.watch, || print_routes(client, arguments)).await
}

async fn print_routes(client: &Client, arguments: &RoutesArguments) -> anyhow::Result<ExitCode> {
    let mut answer = client.routes().await?;
    answer.routes.retain(|route| wanted(route, arguments));
    print(arguments.format, &answer, |answer| {
        table::routes(answer, arguments.all_frontends)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(route: &Route, arguments: &RoutesArguments) -> bool {
    let names = |wanted: &Option<String>, name: &str, id: &str| {
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted == name || wanted == id)
    };
    let node = match &route.backend {
        Some(backend) => names(&arguments.node, &backend.node, &backend.node_id),
        None => arguments.node.is_none(),
    };
    node && names(&arguments.service, &route.service, &route.service_id)
        && arguments.port.is_none_or(|port| port == route.port)
}

async fn examine(client: &Client, arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let answer = match client.doctor().await {
        Ok(answer) => answer,
        Err(ClientError::NotRunning { .. }) => {
            let options = doctor::Options {
                docker_socket: arguments.docker_socket,
                docker_root: arguments.docker_root,
                bpffs: arguments.bpffs,
                cgroup: arguments.cgroup,
                ..doctor::Options::default()
            };
            doctor::examine(&options, Examiner::Meshctl, None).await.into()
        }
        Err(error) => return Err(error.into()),
    };
    print(arguments.format, &answer, |answer| table::report(&answer.report))?;
    Ok(if answer.report.works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[cfg(feature = "orchestrator")]
    #[test]
    fn invalid_command_lines_have_dockers_exit_codes() {
        for (line, code) in [
            ("service", 0),
            ("service ls --help", 0),
            ("service nothing", 1),
            ("nothing", 1),
            ("service ls extra", 1),
            ("service ps", 1),
            ("service inspect --pretty --format x web", 1),
            ("service scale web=many", 1),
            ("stack deploy shop", 1),
            ("service ls --nothing", 125),
            ("service ls --format", 125),
            ("service create --replicas many nginx", 125),
        ] {
            let arguments = std::iter::once("meshctl").chain(line.split(' '));
            let error = Arguments::try_parse_from(arguments).unwrap_err();
            assert_eq!(usage::exit_code(&error), code, "{line}: {error}");
        }
    }

    /// All commands without subcommands, each as the list of names that selects it.
    #[cfg(feature = "orchestrator")]
    fn commands() -> Vec<Vec<String>> {
        use clap::CommandFactory;
        fn walk(command: &clap::Command, parents: &[String], found: &mut Vec<Vec<String>>) {
            let names = [parents, &[command.get_name().to_owned()]].concat();
            if !command.has_subcommands() {
                found.push(names);
                return;
            }
            for subcommand in command.get_subcommands() {
                walk(subcommand, &names, found);
            }
        }
        let mut found = Vec::new();
        walk(&Arguments::command(), &[], &mut found);
        found
    }

    #[cfg(feature = "orchestrator")]
    #[test]
    fn every_command_refuses_unknown_flags_and_has_help() {
        let commands = commands();
        assert!(commands.len() > 50, "{commands:?}");
        for names in commands {
            let with = |more: &[&str]| {
                let all = names.iter().map(String::as_str).chain(more.iter().copied());
                Arguments::try_parse_from(all).unwrap_err()
            };
            let error = with(&["--nothing"]);
            let text = error.to_string();
            assert_eq!(usage::exit_code(&error), 125, "{names:?}: {text}");
            assert!(
                text.contains("'--nothing'") && text.contains("--help"),
                "{names:?}: {text}"
            );
            assert_eq!(usage::exit_code(&with(&["--help"])), 0, "{names:?}");
        }
    }

    #[cfg(feature = "orchestrator")]
    #[test]
    fn the_closest_known_name_is_suggested() {
        for (line, near) in [
            ("servce ls", "service"),
            ("service inspct web", "inspect"),
            ("service create --replcas 2 nginx", "--replicas"),
        ] {
            let arguments = std::iter::once("meshctl").chain(line.split(' '));
            let error = Arguments::try_parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(near), "{line}: {error}");
        }
    }

    #[test]
    fn watch_takes_optional_seconds() {
        let watch = |flag: &str| match Arguments::try_parse_from(["meshctl", "routes", flag])
            .unwrap()
            .command
        {
            Command::Routes(arguments) => arguments.watch.seconds(),
            _ => None,
        };
        assert_eq!(watch("--watch"), Some(1));
        assert_eq!(watch("--watch=5"), Some(5));
        assert!(Arguments::try_parse_from(["meshctl", "routes", "--watch=0"]).is_err());
    }
}
