//! A killed process loses nothing that was acknowledged.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    objects::{NodeRole, State},
    store::redb::RedbStore,
};
use mesh_orchestrator_testing::{
    agent::Machine,
    lab::{self, Lab, running, service},
    run,
};

use crate::{OwnStory, child::Work};

pub(super) fn stories() -> Vec<OwnStory> {
    vec![("a_killed_process_loses_nothing_it_acknowledged", killed)]
}

/// A child's work: leads, runs tasks, and creates one service after the other, printing the name of each.
pub(crate) fn create_services_until_killed(folder: &Path) -> Result<()> {
    let lab = Lab::redb_in(folder);
    run(async {
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        let user = &one.handle;
        let mut count = user.cluster.read(|state| state.services().len());
        loop {
            count += 1;
            user.create(service(&format!("web{count}"), 2)?).await?;
            let mut out = std::io::stdout().lock();
            writeln!(out, "web{count}")?;
            out.flush()?;
        }
    })
}

fn killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for round in 0..12_u64 {
        let mut child = Work::CreateServicesUntilKilled
            .command(folder.path())?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        for _ in 0..(1 + round * 5 % 13) {
            acknowledged.insert(lines.next().context("the child has ended")??);
        }
        // Any moment within the next commits.
        std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        child.kill()?;
        child.wait()?;
        acknowledged.extend(lines.map_while(Result::ok).filter(|line| line.starts_with("web")));
        run(async {
            let store = Arc::new(RedbStore::open(folder.path().join("store.redb"))?);
            let handle = lab::open(store).await?;
            handle.cluster.read(|state| check(state, &acknowledged, round))
        })?;
    }
    // The next process finishes what was left half done.
    let lab = Lab::redb_in(folder.path());
    run(async {
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        one.handle
            .until("all tasks of all services run", |state| {
                state.services().keys().all(|id| running(state, id).len() == 2)
            })
            .await
    })
}

fn check(state: &State, acknowledged: &BTreeSet<String>, round: u64) -> Result<()> {
    for name in acknowledged {
        ensure!(
            state.service_named(name).is_some(),
            "{name} was acknowledged, and is missing in round {round}"
        );
    }
    ensure!(
        state.services().len() <= acknowledged.len() + 1 + usize::try_from(round)?,
        "services that were never acknowledged"
    );
    ensure!(state.indexes_are_sound());
    Ok(())
}
