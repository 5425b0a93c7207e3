//! `cargo xtask demo`: the whole product, seen working. Depends on `setup`, `build` and `lab`.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use comfy_table::{Table, presets};

mod claims;
mod orchestrator;

use self::claims::Claims;
use crate::{
    build,
    lab::{
        self, Lab, LabOptions, agent, check_root,
        traffic::{host, spread},
        wait_until,
    },
    programs::Need,
    setup,
};

/// The demo's service, its replicas, the port it publishes, and how many requests go to each address.
const SERVICE: &str = "web";
const REPLICAS: usize = 5;
const PORT: u16 = 9200;
const REQUESTS: usize = 10;

/// How the demo runs.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Check every claim, exit 0 only if all held, and take the lab down.
    #[arg(long)]
    check: bool,
    /// Show the orchestrator on one node without Swarm instead.
    #[arg(long)]
    orchestrator: bool,
    /// The lab's name.
    #[arg(long, default_value = "mesh")]
    name: String,
}

/// Sets up, builds, brings the lab up, deploys a service and shows who answers.
///
/// # Errors
/// When something cannot be set up or started.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_root()?;
    println!("set-up");
    let linker = setup::packages(&[Need::Build, Need::Lab])?;
    println!("build");
    build::run(linker)?;
    println!("lab");
    if arguments.orchestrator {
        return orchestrator::run(&arguments.name, arguments.check);
    }
    let lab = lab::cli::up(&LabOptions {
        name: arguments.name.clone(),
        ..LabOptions::default()
    })?;
    lab.start_agents(agent::DEFAULT_ARGUMENTS)?;
    println!("  the agent runs on {}", lab.nodes().join(", "));
    lab.create_service(SERVICE, REPLICAS, &[&format!("{PORT}:80")], &[])?;
    println!("  service `{SERVICE}` runs: {REPLICAS} replicas, published with -p {PORT}:80");
    let mut claims = Claims::default();
    wait_for_routes(&lab, &mut claims);
    show_spread(&lab, &mut claims)?;
    show_routes(&lab, &mut claims)?;
    let code = claims.end(lab, arguments.check)?;
    if !arguments.check {
        print_hints(&arguments.name);
    }
    Ok(code)
}

/// The agents learn of the service from Swarm; nothing is sent before each knows all replicas.
fn wait_for_routes(lab: &Lab, claims: &mut Claims) {
    for node in lab.nodes() {
        let learned = wait_until(&format!("the routes of {node}"), Duration::from_secs(10), || {
            let routes = lab.meshctl(node, &["routes", "--service", SERVICE])?;
            let known = (1..=REPLICAS)
                .filter(|slot| routes.contains(&format!("{SERVICE}.{slot}")))
                .count();
            if known != REPLICAS {
                bail!("{routes}");
            }
            Ok(())
        });
        claims.claim(
            format!("{node} knows all {REPLICAS} replicas"),
            learned.map_err(|error| format!("{error:#}")),
        );
    }
}

fn show_spread(lab: &Lab, claims: &mut Claims) -> Result<()> {
    let mut sources = BTreeMap::new();
    let client = lab.address("client")?;
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["FROM", "TO", "ANSWERED BY", "THE REPLICAS SAW"]);
    for node in lab.nodes() {
        let addresses = [("client", lab.address(node)?), (node, "localhost".to_owned())];
        for (from, address) in addresses {
            let replies = lab.fetch(from, &format!("http://{address}:{PORT}/"), REQUESTS)?;
            let spread = spread(&replies);
            let seen: BTreeSet<&str> = replies.iter().map(|reply| host(&reply.peer)).collect();
            let answers: Vec<String> = spread
                .iter()
                .map(|(task, count)| format!("{task} x{count}"))
                .collect();
            let seen: Vec<&str> = seen.into_iter().collect();
            let target = format!("{address}:{PORT}");
            let origin = if from == "client" {
                format!("client {client}")
            } else {
                from.to_owned()
            };
            table.add_row([origin.as_str(), &target, &answers.join("  "), &seen.join(" ")]);
            let even = spread.len() == REPLICAS && spread.values().all(|count| *count == REQUESTS / REPLICAS);
            claims.claim(
                format!(
                    "{REQUESTS} requests from {from} to {target} of {node} give each replica {}",
                    REQUESTS / REPLICAS
                ),
                if even { Ok(()) } else { Err(answers.join(", ")) },
            );
            if from == "client" {
                sources.insert(node.to_owned(), seen.join(" "));
            }
        }
    }
    println!("\n{table}");
    for (node, seen) in sources {
        let kept = if seen == client {
            Ok(())
        } else {
            Err(format!("they saw `{seen}`"))
        };
        claims.claim(
            format!("behind {node}, the replicas see the client's own address {client}"),
            kept,
        );
    }
    Ok(())
}

fn show_routes(lab: &Lab, claims: &mut Claims) -> Result<()> {
    for node in lab.nodes() {
        println!("\n{node}$ meshctl routes");
        let routes = lab.meshctl(node, &["routes"]);
        if let Ok(table) = &routes {
            println!("{table}");
        }
        claims.claim(
            format!("meshctl answers on {node}"),
            routes.map(drop).map_err(|error| format!("{error:#}")),
        );
    }
    Ok(())
}

fn print_hints(name: &str) {
    let flag = if name == "mesh" {
        String::new()
    } else {
        format!(" --name {name}")
    };
    println!(
        "\nThe lab is still up. Look around:\n\
         \x20 cargo xtask lab status\n\
         \x20 cargo xtask lab exec{flag} client -- mesh-testbed get http://<a node's address>:{PORT}/ --count 10\n\
         \x20 cargo xtask lab exec{flag} node2 -- meshctl routes --watch\n\
         \x20 cargo xtask lab exec{flag} node1 -- docker service scale {SERVICE}=8\n\
         Take it down:\n\
         \x20 cargo xtask lab down{flag}"
    );
}
