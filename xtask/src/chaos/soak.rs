//! `cargo xtask soak`: the lab under mixed load while services scale, containers are killed and agents come
//! and go, for as long as asked. Afterwards nothing may have grown, and no request may have failed that a
//! kill does not explain. Depends on `fixture` and `outcome`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{
    fixture::{Agents, Fixture, ONE_MANAGER, REPLICAS, SERVICE, Scene},
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
};

const ENTRIES: &[&str] = &["node1", "node2", "node3"];

/// How many actions a round has; its outcome is printed when it ends.
const ACTIONS: u32 = 8;

/// Between two actions: long enough for Swarm to start what it has to.
const PAUSE: Duration = Duration::from_secs(4);

/// What an agent may have more at the end than after the first round.
const MORE_FILES: u64 = 16;
const MORE_KIBIBYTES: u64 = 16 * 1024;

/// Plays rounds until the time is over.
///
/// # Errors
/// When the lab cannot be set up or put in order, or an agent's use cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_root()?;
    build::run(setup::packages(&[Need::Build, Need::Lab])?)?;
    let fixture = Fixture::up(&arguments.name, ONE_MANAGER, None)?;
    let mut dice = Dice(arguments.seed);
    let end = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    let mut first: Option<BTreeMap<String, Use>> = None;
    let mut good = true;
    let mut round = 1;
    while Instant::now() < end {
        let played = fixture.under_load(ENTRIES, Agents::Current, |scene| {
            (0..ACTIONS).try_for_each(|_| act(scene, &mut dice))
        });
        let outcome = match played {
            Ok((report, events)) => Outcome::of("soak", &REQUIRED, report, &events),
            Err(error) => Outcome::not_played("soak", &REQUIRED, &error),
        };
        println!("round {round}: {}", outcome.sentence());
        good &= outcome.holds();
        round += 1;
        let now = fixture.each_node(Use::read)?;
        for (node, used) in &now {
            println!(
                "  {node}: {} files, {} KiB, {} pins",
                used.files, used.kibibytes, used.pins
            );
        }
        let first = first.get_or_insert_with(|| now.clone());
        for (node, used) in &now {
            if let Err(error) = used.is_bounded_by(&first[node]) {
                println!("  {node}: {error:#}");
                good = false;
            }
        }
    }
    fixture.down()?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn act(scene: &Scene<'_>, dice: &mut Dice) -> Result<()> {
    let lab = scene.lab();
    let nodes = lab.nodes();
    let node = nodes[dice.below(nodes.len())];
    match dice.below(4) {
        0 => lab.scale(SERVICE, REPLICAS - 2 + dice.below(5))?,
        1 => {
            if let Ok(container) = scene.container_on(node) {
                scene.event();
                lab.docker(node, ["kill", "--signal", "KILL", &container])?;
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

/// What an agent and its data path use.
#[derive(Clone, Copy, Debug)]
struct Use {
    files: u64,
    /// Resident memory.
    kibibytes: u64,
    pins: u64,
}

impl Use {
    fn read(fixture: &Fixture, node: &str) -> Result<Self> {
        let script = "pid=$(cat /run/mesh-agent.pid); ls /proc/$pid/fd | wc -l; \
                      sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status; \
                      find /sys/fs/bpf -type f | wc -l";
        let text = fixture.lab().run(node, ["sh", "-c", script])?;
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let [files, kibibytes, pins] = numbers[..] else {
            bail!("the use of the agent on {node} cannot be read from `{text}`");
        };
        Ok(Self {
            files,
            kibibytes,
            pins,
        })
    }

    fn is_bounded_by(&self, first: &Self) -> Result<()> {
        ensure!(
            self.files <= first.files + MORE_FILES,
            "{} open files, {} after the first round",
            self.files,
            first.files
        );
        ensure!(
            self.kibibytes <= first.kibibytes + MORE_KIBIBYTES,
            "{} KiB of memory, {} after the first round",
            self.kibibytes,
            first.kibibytes
        );
        // Each container's interface has two.
        let most = first.pins + 2 * REPLICAS as u64;
        ensure!(
            self.pins <= most,
            "{} pins, {} after the first round",
            self.pins,
            first.pins
        );
        Ok(())
    }
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

    #[test]
    fn what_grows_is_named() {
        let first = Use {
            files: 40,
            kibibytes: 20_000,
            pins: 60,
        };
        assert!(first.is_bounded_by(&first).is_ok());
        let grown = Use { files: 100, ..first };
        let error = grown.is_bounded_by(&first).unwrap_err().to_string();
        assert!(error.contains("100 open files"), "{error}");
    }
}
