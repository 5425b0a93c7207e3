//! Random histories of a simulated cluster; the seed of one that fails is printed. In the first kind the
//! control loops have the state, in the second (`faults`) whole members share a store that fails.

mod agents;
mod faults;
mod history;
mod invariants;
mod random;
mod rules;
mod settled;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use self::history::run;

/// Steps of each history.
const STEPS: u32 = 120;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is not a number"))
    })
}

/// Histories of a run that is not optimised: `cargo xtask test` has a minute for both kinds, on two cores.
const HISTORIES: u64 = if cfg!(debug_assertions) { 1_000 } else { 5_000 };

/// `MESH_SIMULATION_SEED=` replays one history, `MESH_SIMULATION_HISTORIES=` sets their number.
#[test]
fn every_history_keeps_the_invariants_and_settles() {
    let seeds = match variable("MESH_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("MESH_SIMULATION_HISTORIES").unwrap_or(HISTORIES),
    };
    let start = Instant::now();
    let (mut changes, mut updates, mut milliseconds) = (BTreeMap::new(), BTreeMap::new(), 0);
    let mut failed = Vec::new();
    let count = seeds.end - seeds.start;
    for (seed, outcome) in side_by_side(seeds, |seed| run(seed, STEPS)) {
        let summary = match outcome {
            Ok(summary) => summary,
            Err(violation) => {
                eprintln!("{violation}");
                failed.push(seed);
                continue;
            }
        };
        for (kind, number) in summary.changes {
            *changes.entry(kind).or_insert(0) += number;
        }
        for (end, number) in summary.updates {
            *updates.entry(end).or_insert(0) += number;
        }
        milliseconds += summary.milliseconds;
    }
    println!(
        "{count} histories in {:?}, {} simulated hours",
        start.elapsed(),
        milliseconds / 3_600_000
    );
    println!("changes: {changes:?}\nupdates: {updates:?}");
    assert!(failed.is_empty(), "these seeds fail: {failed:?}");
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs histories on all cores. Each has a thread of its own: the order of a hash map's entries depends on
/// the maps that its thread has had before.
fn side_by_side<T: Send>(seeds: Range<u64>, run: impl Fn(u64) -> T + Sync) -> BTreeMap<u64, T> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = thread::scope(|scope| scope.spawn(|| run(seed)).join());
            let outcome = outcome.unwrap_or_else(|_| panic!("MESH_SIMULATION_SEED={seed} panics"));
            outcomes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(seed, outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(work);
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Histories that found a fault: the first created a service again that was removed meanwhile, the second let
/// an old request take a node's registration away.
const KEPT: [u64; 2] = [37, 261];

/// Histories with faults of a run that is not optimised.
const FAULTS: u64 = if cfg!(debug_assertions) { 300 } else { 3_000 };

/// `MESH_FAULTS_SEED=` replays one history, with `MESH_FAULTS_TRACE=1` it prints what is committed, and
/// `MESH_FAULTS_HISTORIES=` sets their number.
#[test]
fn every_history_with_faults_keeps_the_invariants_and_settles() {
    if let Some(seed) = variable("MESH_FAULTS_SEED") {
        return with_faults(&[seed].into());
    }
    let count = variable("MESH_FAULTS_HISTORIES").unwrap_or(FAULTS);
    if let Some(part) = variable("MESH_FAULTS_PART") {
        let seeds = (0..count).chain(KEPT);
        let parts = variable("MESH_FAULTS_PARTS").unwrap_or(1);
        return with_faults(&seeds.filter(|seed| seed % parts == part).collect());
    }
    // A process each: tokio's random numbers depend on the runtimes that the process has had.
    let (count, parts) = (count.to_string(), cores());
    let part = |part: usize| {
        let (part, parts) = (part.to_string(), parts.to_string());
        replay(&[
            ("MESH_FAULTS_HISTORIES", &count),
            ("MESH_FAULTS_PART", &part),
            ("MESH_FAULTS_PARTS", &parts),
        ])
    };
    let outcomes: Vec<(bool, String)> = thread::scope(|scope| {
        let running: Vec<_> = (0..parts)
            .map(|number| scope.spawn(move || part(number)))
            .collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|outcome| outcome.unwrap_or_else(|_| panic!("a part of the histories panicked")))
            .collect()
    });
    for (_, text) in &outcomes {
        println!("{text}");
    }
    assert!(
        outcomes.iter().all(|(passed, _)| *passed),
        "the output above has the seeds that fail"
    );
}

/// Runs these histories one after the other.
fn with_faults(seeds: &BTreeSet<u64>) {
    let sabotage = variable("MESH_FAULTS_SABOTAGE").is_some();
    let start = Instant::now();
    let (mut commits, mut seconds) = (0, 0);
    let (mut seen, mut failed) = (BTreeMap::new(), Vec::new());
    for seed in seeds {
        let summary = match faults::run(*seed, sabotage) {
            Ok(summary) => summary,
            Err(failure) => {
                eprintln!("{failure}");
                failed.push(*seed);
                continue;
            }
        };
        commits += summary.commits;
        seconds += summary.time.as_secs();
        if variable("MESH_FAULTS_DIGESTS").is_some() {
            println!("digest of {seed}: {:016x}", summary.digest);
        }
        for (kind, number) in summary.seen {
            *seen.entry(kind).or_insert(0) += number;
        }
    }
    println!(
        "{} histories with faults in {:?}: {commits} transactions, {} simulated hours\nobjects: {seen:?}",
        seeds.len(),
        start.elapsed(),
        seconds / 3_600
    );
    assert!(failed.is_empty(), "these seeds fail: {failed:?}");
}

/// Runs histories in a process of their own, which has had none before.
fn replay(variables: &[(&str, &str)]) -> (bool, String) {
    let name = "every_history_with_faults_keeps_the_invariants_and_settles";
    let output = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .args([name, "--exact", "--nocapture"])
            .envs(variables.iter().copied())
            .output()
    });
    let output = output.unwrap_or_else(|error| panic!("this program could not be run again: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_seed_is_the_same_history_again() {
    // The second one has nodes without access to the store.
    for seed in [37, 38] {
        is_the_same_again(seed);
    }
}

fn is_the_same_again(seed: u64) {
    let digest = |variables: &[(&str, &str)]| {
        let (passed, text) = replay(&[variables, &[("MESH_FAULTS_DIGESTS", "1")]].concat());
        assert!(passed, "{text}");
        let start = format!("digest of {seed}:");
        let found = text.lines().find(|line| line.starts_with(&start));
        found.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let (this, next, part) = (seed.to_string(), (seed + 1).to_string(), (seed % 30).to_string());
    let alone: [(&str, &str); 1] = [("MESH_FAULTS_SEED", &this)];
    // In a process that has had another history before.
    let part: [(&str, &str); 3] = [
        ("MESH_FAULTS_HISTORIES", &next),
        ("MESH_FAULTS_PART", &part),
        ("MESH_FAULTS_PARTS", "30"),
    ];
    let first = digest(&alone);
    assert_eq!(first, digest(&alone));
    assert_eq!(first, digest(&part));
}

#[test]
fn a_store_that_ignores_the_conditions_of_transactions_is_found_out() {
    let (passed, text) = replay(&[("MESH_FAULTS_SABOTAGE", "1"), ("MESH_FAULTS_HISTORIES", "3")]);
    assert!(!passed && text.contains("MESH_FAULTS_SEED="), "{text}");
}
