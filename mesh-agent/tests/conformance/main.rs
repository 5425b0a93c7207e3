//! What every data path must do, told as stories and run against each of them on the running kernel.
//!
//! `cargo test -p mesh-agent --test conformance` tries every data path meant for this kernel;
//! `MESH_DATAPATHS=ebpf-tc,ipvs` (or one name as an argument) exactly those, and one that does not work
//! here fails. No engine is needed: nodes, containers and the client are network namespaces, the cluster is
//! made up by each story, and between them stand the agent's own model, plan and data path. Needs root,
//! iproute2, iptables, nftables, ethtool, and an agent built with its eBPF object.
//!
//! Beside the stories stand `rungs` (what is tried, and where data paths may differ), `world` (nodes and
//! wire), `mesh` (the data paths), `talk` (servers and clients), `state` (what can be seen of a node).

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};

use crate::{
    mesh::Mesh,
    rungs::Rung,
    space::Corner,
    stories::{STORIES, Story},
    world::World,
};

mod mesh;
mod rungs;
mod space;
mod state;
mod stories;
mod talk;
mod world;

/// What the stories share: they happen one after the other.
struct Stage {
    corner: Corner,
    /// Made by the first story, and again after one that has failed.
    world: Option<World>,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let rungs = match rungs::chosen(arguments.filter.as_deref()) {
        Ok(rungs) => rungs,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let corner = if arguments.list { None } else { Some(Corner::new()) };
    let corner = match corner.transpose() {
        Ok(corner) => corner,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let stage = Arc::new(Mutex::new(corner.map(|corner| Stage { corner, world: None })));
    let trials = rungs
        .iter()
        .flat_map(|rung| STORIES.iter().map(move |story| (*rung, story)))
        .map(|(rung, story)| {
            let stage = Arc::clone(&stage);
            Trial::test(format!("{}::{}", rung.name, story.name), move || {
                // A story that panicked leaves the stage to the next one.
                let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
                let stage = stage.as_mut().ok_or("there is no stage to list stories on")?;
                tell(stage, rung, story).map_err(|error| whole(&error).into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(stage.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn tell(stage: &mut Stage, rung: &'static Rung, story: &Story) -> Result<()> {
    // Taken out while the story is told: a failure throws it away, with all that is left in it.
    let world = match stage.world.take().filter(|_| !story.untouched) {
        Some(world) => world,
        None => World::new().context("could not make the nodes")?,
    };
    let mut mesh = Mesh::new(&world, rung, &stage.corner.cgroup);
    match (story.tell)(&mut mesh) {
        Ok(()) => mesh.stop()?,
        Err(error) => {
            let evidence = mesh.evidence();
            return Err(error).context(evidence);
        }
    }
    drop(mesh);
    stage.world = Some(world);
    Ok(())
}

/// An error and its causes, a line each.
fn whole(error: &anyhow::Error) -> String {
    error.chain().map(|cause| format!("{cause}\n")).collect()
}

/// Tries until it works.
///
/// # Errors
/// The last attempt's, when time is up.
fn until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("waited {limit:?} until {what}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
