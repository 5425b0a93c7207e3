//! `cargo xtask soak`: the lab under mixed load while services scale, containers are killed and agents come
//! and go, for as long as asked. After each round nothing may have grown, the maps must hold what the
//! services need and nothing else, and no request may have failed that the kill of its own replica does not
//! explain.
//! Depends on `fixture` and `outcome`.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

mod explain;
mod usage;

use self::usage::Baseline;

use super::{
    fixture::{self, Agents, Fixture, ONE_MANAGER, Pace, REPLICAS, SERVICE, Scene},
    outcome::{Outcome, Requirement},
};
use crate::{build, lab::check_root, programs::Need, setup};

/// How long, and with which actions.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// The same number plays the same actions again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The lab's name.
    #[arg(long, default_value = "soak")]
    name: String,
}

/// What a round may cost: a killed container's own requests, and nothing else.
const REQUIRED: Requirement = Requirement {
    text: "nothing lost but within 100 ms of a kill",
    grace: Duration::from_millis(100),
    failures_per_entry: None,
    kept_may_break: true,
    back_within: None,
};

const ENTRIES: &[&str] = &["node1", "node2", "node3"];

/// The services scale between `REPLICAS - MORE` and this.
const MOST_REPLICAS: usize = REPLICAS + MORE;
const MORE: usize = 2;

/// How many actions a round has; its outcome is printed when it ends.
const ACTIONS: u32 = 8;

/// Between two actions: long enough for Swarm to start what it has to.
const PAUSE: Duration = Duration::from_secs(4);

/// Plays rounds until the time is over.
///
/// # Errors
/// When the lab cannot be set up or put in order, or an agent's use cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_root()?;
    build::run(setup::packages(&[Need::Build, Need::Lab])?)?;
    let lab = fixture::up(&arguments.name, ONE_MANAGER)?;
    let fixture = Fixture {
        lab: &lab,
        earlier_agent: None,
        pace: Pace::Full,
    };
    fixture.put_in_order()?;
    let baseline = Baseline::read(&fixture)?;
    let mut dice = Dice(arguments.seed);
    let end = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    let mut good = true;
    let mut round = 1;
    while Instant::now() < end {
        println!("round {round}");
        for problem in play(&fixture, &baseline, &mut dice)? {
            println!("  NOT as required: {problem}");
            good = false;
        }
        round += 1;
    }
    // The mesh itself removes flows that are over.
    if let Err(error) = baseline.until_no_flows(&fixture) {
        println!("NOT as required: {error:#}");
        good = false;
    }
    lab.down()?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Plays a round; returns what is not as required.
fn play(fixture: &Fixture<'_>, baseline: &Baseline, dice: &mut Dice) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let played = fixture.under_load(ENTRIES, Agents::Current, |scene| {
        (0..ACTIONS).try_for_each(|_| act(scene, dice))
    });
    let outcome = match played {
        Ok((report, events)) => {
            let failed = report.failed.iter().chain(&report.kept.broken);
            problems.extend(explain::unexplained(fixture.lab, failed)?);
            Outcome::of("soak", &REQUIRED, report, &events)
        }
        Err(error) => Outcome::not_played("soak", &REQUIRED, &error),
    };
    println!("  {}", outcome.sentence());
    if !outcome.holds() {
        problems.push(REQUIRED.text.to_owned());
    }
    fixture.put_in_order()?;
    problems.extend(baseline.compare(fixture)?);
    Ok(problems)
}

fn act(scene: &Scene<'_>, dice: &mut Dice) -> Result<()> {
    let lab = scene.lab();
    let nodes = lab.nodes();
    let node = nodes[dice.below(nodes.len())];
    match dice.below(4) {
        0 => lab.scale(SERVICE, REPLICAS - MORE + dice.below(2 * MORE + 1))?,
        1 => {
            if !scene.containers_on(node)?.is_empty() {
                scene.kill_replica(node)?;
            }
        }
        2 => {
            lab.kill_agent(node)?;
            thread::sleep(PAUSE);
            lab.start_agent(node, scene.agent_arguments())?;
        }
        _ => {
            lab.stop_agent(node)?;
            lab.start_agent(node, scene.agent_arguments())?;
        }
    }
    thread::sleep(PAUSE);
    Ok(())
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed % count.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_actions_and_all_of_them() {
        let roll = |seed| {
            let mut dice = Dice(seed);
            (0..100).map(|_| dice.below(4)).collect::<Vec<_>>()
        };
        assert_eq!(roll(1), roll(1));
        assert_ne!(roll(1), roll(2));
        assert!((0..4).all(|action| roll(1).contains(&action)));
    }
}
