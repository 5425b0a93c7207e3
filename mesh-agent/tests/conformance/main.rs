//! What every data path must do, as stories that are run against each of them on this kernel.
//!
//! `cargo test -p mesh-agent --test conformance` runs every data path meant for this kernel; what the
//! programs decide is tried once where the same ones run by several hooks. `MESH_DATAPATHS=ebpf-tc,ipvs` (or
//! one name as an argument) runs exactly those with all stories, and one that does not work here fails. No
//! Docker engine is needed: nodes, containers and the client are network namespaces, each story makes up its
//! cluster, and the agent's own model, plan and data path do the rest. Needs root, iproute2, iptables,
//! nftables, ethtool, and an agent built with its eBPF object.
//!
//! `rungs` lists what is tried, and where data paths may differ; `world` makes the nodes and the wire, `mesh`
//! runs the data paths, `talk` has servers and clients, `state` reads what a node has in its kernel.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};

use crate::{
    mesh::{Idle, Mesh},
    netns::OwnCgroup,
    rungs::{Chosen, Rung},
    stories::{STORIES, Story},
    world::World,
};

mod mesh;
mod netns;
mod rungs;
mod state;
mod stories;
mod talk;
mod world;

/// What the stories share. They run one after the other.
struct Fixture {
    cgroup: OwnCgroup,
    /// Made by the first story, and again after one that has failed.
    world: Option<World>,
    /// Data paths that serve nothing since the last story: the next one need not load them.
    idle: Option<Idle>,
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
    let cgroup = if arguments.list {
        None
    } else {
        Some(OwnCgroup::new())
    };
    let cgroup = match cgroup.transpose() {
        Ok(cgroup) => cgroup,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let fixture = Arc::new(Mutex::new(cgroup.map(|cgroup| Fixture {
        cgroup,
        world: None,
        idle: None,
    })));
    let trials = rungs
        .iter()
        .flat_map(|chosen| STORIES.iter().map(move |story| (*chosen, story)))
        .filter(|(chosen, story)| story.runs_on(chosen.rung) && (story.of_hooks || !chosen.hooks_only))
        .map(|(Chosen { rung, .. }, story)| {
            let fixture = Arc::clone(&fixture);
            Trial::test(format!("{}::{}", rung.name, story.name), move || {
                // A story that panicked leaves the fixture to the next one.
                let mut fixture = fixture.lock().unwrap_or_else(PoisonError::into_inner);
                let fixture = fixture.as_mut().ok_or("stories are only listed")?;
                run_story(fixture, rung, story).map_err(|error| whole(&error).into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(fixture.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn run_story(fixture: &mut Fixture, rung: &'static Rung, story: &Story) -> Result<()> {
    // Taken out meanwhile: after a failure it is thrown away, with all that is left in it.
    let (kept, mut idle) = (fixture.world.take(), fixture.idle.take());
    if let Some(world) = &kept
        && let Some(idle) = idle.take_if(|idle| story.starts || idle.rung.name != rung.name)
    {
        idle.stop(world)?;
    }
    let is_like = |world: &World| (world.link, world.family) == (rung.link, rung.family);
    let world = match kept.filter(|world| !story.untouched && is_like(world)) {
        Some(world) => world,
        None => World::new(rung.link, rung.family).context("could not make the nodes")?,
    };
    let mut mesh = Mesh::new(&world, rung, &fixture.cgroup.path);
    if let Some(idle) = idle {
        mesh.take(idle);
    }
    match (story.run)(&mut mesh) {
        Ok(()) if rung.loads_slowly() => fixture.idle = mesh.leave()?,
        Ok(()) => mesh.stop()?,
        Err(error) => {
            let evidence = mesh.evidence();
            return Err(error).context(evidence);
        }
    }
    drop(mesh);
    fixture.world = Some(world);
    Ok(())
}

/// An error and its causes, a line each.
fn whole(error: &anyhow::Error) -> String {
    error.chain().map(|cause| format!("{cause}\n")).collect()
}

/// Tries until it succeeds.
///
/// # Errors
/// The last attempt's error, at the time limit.
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
