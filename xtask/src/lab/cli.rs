//! `cargo xtask lab up|down|status|exec`. Depends on the rest of the lab.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::{Lab, LabOptions, Offloads, Topology, check_root, engine, state::State, take_down};
use crate::{command::spinner, paths, programs::Need};

/// The lab by itself: a real Swarm on this machine, each node in namespaces of its own.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring a lab up: nodes joined into one Swarm, and a client without Docker.
    Up {
        /// The lab's name; labs of different names run side by side.
        #[arg(long, default_value = "mesh")]
        name: String,
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// How many of the nodes manage; the rest are workers.
        #[arg(long, default_value_t = 1)]
        managers: usize,
        /// Leave checksums and segmentation to the receiver, as veth pairs do (not fit for XDP).
        #[arg(long)]
        offloads: bool,
        /// How the nodes are connected.
        #[arg(long, value_enum, default_value_t)]
        topology: Topology,
    },
    /// Take a lab down, also one whose command was killed, and remove all it has made.
    Down {
        /// The lab's name.
        #[arg(long, default_value = "mesh")]
        name: String,
        /// All labs.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// What is up, node by node.
    Status,
    /// Run a command on a node or in the client: `lab exec node2 -- docker ps`.
    Exec {
        /// The lab's name.
        #[arg(long, default_value = "mesh")]
        name: String,
        /// `node1`, `node2`, … or `client`.
        node: String,
        /// The command and its arguments. `meshctl` and `mesh-testbed` are found where they are built.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Does it.
///
/// # Errors
/// When the lab cannot be brought up, found or taken down.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    check_root()?;
    match arguments.action {
        Action::Up {
            name,
            nodes,
            managers,
            offloads,
            topology,
        } => {
            if !paths::program("mesh-testbed").is_file() {
                crate::build::run(crate::setup::packages(&[Need::Build, Need::Lab])?)?;
            }
            let offloads = if offloads { Offloads::On } else { Offloads::Off };
            up(&LabOptions {
                name,
                nodes,
                managers,
                offloads,
                topology,
            })?
            .keep();
            Ok(ExitCode::SUCCESS)
        }
        Action::Down { name, all } => down(&name, all),
        Action::Status => status(),
        Action::Exec { name, node, command } => exec(&name, &node, &command),
    }
}

/// Brings a lab up behind one line of progress.
///
/// # Errors
/// As [`Lab::up`].
pub fn up(options: &LabOptions) -> Result<Lab> {
    let title = format!(
        "lab `{}`: {} nodes, {} of them managing",
        options.name, options.nodes, options.managers
    );
    let bar = spinner(&title);
    let begin = std::time::Instant::now();
    let lab = Lab::up_with(options, |step| bar.set_message(step.to_owned()));
    bar.finish_and_clear();
    let lab = lab?;
    println!("  {title} ({:.1} s)", begin.elapsed().as_secs_f64());
    Ok(lab)
}

fn down(name: &str, all: bool) -> Result<ExitCode> {
    let states = if all {
        State::list()?
    } else {
        State::load(name)?.into_iter().collect()
    };
    if states.is_empty() {
        println!(
            "no lab is up{}",
            if all {
                String::new()
            } else {
                format!(" by the name `{name}`")
            }
        );
    }
    for state in states {
        take_down(&state)?;
        println!("lab `{}` is down", state.name);
    }
    Ok(ExitCode::SUCCESS)
}

fn status() -> Result<ExitCode> {
    let states = State::list()?;
    if states.is_empty() {
        println!("no lab is up; start one with `cargo xtask lab up`");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "LAB",
        "NODE",
        "ADDRESS",
        "ROLE",
        "ENGINE",
        "AGENT",
        "DOCKER SOCKET",
    ]);
    for state in states {
        let lab = Lab::attach(&state.name)?;
        for space in state.spaces.iter().filter(|space| space.name != "wire") {
            let name = space.name.as_str();
            let address = lab.address(name)?;
            let mut row = vec![state.name.clone(), name.to_owned(), address];
            if !space.init.is_alive() {
                row.push("gone".into());
            } else if name == "client" {
                row.push("client".into());
            } else {
                let role = "{{if .Swarm.ControlAvailable}}manager{{else}}worker{{end}}";
                let role = lab.docker(name, ["info", "--format", role]);
                row.push(role.as_deref().unwrap_or("-").to_owned());
                row.push(if role.is_ok() { "up" } else { "down" }.to_owned());
                row.push(if lab.agent_is_running(name)? { "up" } else { "down" }.to_owned());
                row.push(engine::socket(&state, name).display().to_string());
            }
            table.add_row(row);
        }
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn exec(name: &str, node: &str, arguments: &[String]) -> Result<ExitCode> {
    let lab = Lab::attach(name)?;
    let mut command = lab.command(node, arguments.iter().map(String::as_str))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(paths::static_programs()).chain(std::env::split_paths(&path));
    command.env(
        "PATH",
        std::env::join_paths(folders).context("the PATH cannot be extended")?,
    );
    let status = command
        .status()
        .with_context(|| format!("could not enter {node}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(255)).unwrap_or(255),
    ))
}
