//! A process that is killed amid its work loses nothing that it was told is there.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    objects::{NodeRole, State},
    store::redb::RedbStore,
};

use crate::{
    OwnStory,
    agent::Machine,
    lab::{self, Lab, run, running, service},
};

const CHILD: &str = "MESH_CLUSTER_TEST_CHILD";

pub(crate) fn stories() -> Vec<OwnStory> {
    vec![("a_killed_process_loses_nothing_it_has_said", killed)]
}

/// Does a child's work, if this is one.
pub(crate) fn child() -> Option<ExitCode> {
    let path = std::env::var_os(CHILD)?;
    Some(match work(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}

/// Leads, runs tasks, and creates one service after the other, saying so of each.
fn work(folder: &Path) -> Result<()> {
    let lab = Lab::redb_in(folder)?;
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
    let mut told: BTreeSet<String> = BTreeSet::new();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe()?)
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        for _ in 0..(1 + round * 5 % 13) {
            told.insert(lines.next().context("the child has ended")??);
        }
        // A moment that falls anywhere within the next commits.
        std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        child.kill()?;
        child.wait()?;
        told.extend(lines.map_while(Result::ok).filter(|line| line.starts_with("web")));
        run(async {
            let store = Arc::new(RedbStore::open(folder.path().join("store.redb"))?);
            let handle = lab::open(store).await?;
            handle.cluster.read(|state| check(state, &told, round))
        })?;
    }
    // What was left half done is brought to its end by the next one.
    let lab = Lab::redb_in(folder.path())?;
    run(async {
        let one = Machine::start(&lab, "one", NodeRole::Manager).await?;
        one.handle
            .until("all of all services runs", |state| {
                state.services().keys().all(|id| running(state, id).len() == 2)
            })
            .await
    })
}

fn check(state: &State, told: &BTreeSet<String>, round: u64) -> Result<()> {
    for name in told {
        ensure!(
            state.service_named(name).is_some(),
            "{name} was created, and is gone in round {round}"
        );
    }
    ensure!(
        state.services().len() <= told.len() + 1 + usize::try_from(round)?,
        "services that nobody was told of"
    );
    ensure!(state.indexes_are_sound());
    Ok(())
}
