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
    process::Command,
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

/// `MESH_SIMULATION_SEED=` replays one history, `MESH_SIMULATION_HISTORIES=` sets their number.
#[test]
fn every_history_keeps_the_invariants_and_settles() {
    let seeds = match variable("MESH_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            0..variable("MESH_SIMULATION_HISTORIES").unwrap_or(if cfg!(debug_assertions) {
                200
            } else {
                5_000
            })
        }
    };
    let start = Instant::now();
    let (mut changes, mut updates, mut milliseconds) = (BTreeMap::new(), BTreeMap::new(), 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let summary = run(seed, STEPS).unwrap_or_else(|violation| panic!("{violation}"));
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
}

/// Histories that found a fault: the first created a service again that was removed meanwhile, the second let
/// an old request take a node's registration away.
const KEPT: [u64; 2] = [37, 261];

/// Histories with faults of a run that is not optimised: a fifth of a second each.
const FAULTS: u64 = if cfg!(debug_assertions) { 100 } else { 3_000 };

/// `MESH_FAULTS_SEED=` replays one history, with `MESH_FAULTS_TRACE=1` it prints what is committed, and
/// `MESH_FAULTS_HISTORIES=` sets their number.
#[test]
fn every_history_with_faults_keeps_the_invariants_and_settles() {
    let seeds: BTreeSet<u64> = match variable("MESH_FAULTS_SEED") {
        Some(seed) => [seed].into(),
        None => (0..variable("MESH_FAULTS_HISTORIES").unwrap_or(FAULTS))
            .chain(KEPT)
            .collect(),
    };
    let sabotage = variable("MESH_FAULTS_SABOTAGE").is_some();
    let start = Instant::now();
    let (mut commits, mut seconds) = (0, 0);
    let (mut seen, mut failed) = (BTreeMap::new(), Vec::new());
    for seed in &seeds {
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
        if variable("MESH_FAULTS_SEED").is_some() {
            println!("digest {:016x}", summary.digest);
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
    let run = || replay(&[("MESH_FAULTS_SEED", "37")]);
    let digest = |text: &str| {
        text.lines()
            .find(|line| line.starts_with("digest"))
            .map(str::to_owned)
    };
    let (first, second) = (run(), run());
    assert!(first.0, "{}", first.1);
    assert!(digest(&first.1).is_some(), "{}", first.1);
    assert_eq!(digest(&first.1), digest(&second.1));
}

#[test]
fn a_store_that_ignores_the_conditions_of_transactions_is_found_out() {
    let (passed, text) = replay(&[("MESH_FAULTS_SABOTAGE", "1"), ("MESH_FAULTS_HISTORIES", "3")]);
    assert!(!passed && text.contains("MESH_FAULTS_SEED="), "{text}");
}
