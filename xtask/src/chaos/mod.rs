//! `cargo xtask chaos`: things go wrong on a real Swarm under constant load, one scenario after the other,
//! and each says what it cost the clients. Depends on `setup`, `build` and `lab`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use comfy_table::{Table, presets};

mod fixture;
mod outcome;
mod play;
mod scenarios;
pub mod soak;

use self::{
    fixture::{Agents, Cluster, Fixture, Pace},
    outcome::Outcome,
    scenarios::{SCENARIOS, Scenario},
};
use crate::{
    build,
    lab::{Lab, check_root},
    programs::Need,
    setup,
};

/// What is to go wrong.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The scenarios to run; all without any. `--list` names them.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Name the scenarios, with what they require, and do nothing.
    #[arg(long)]
    list: bool,
    /// The agent of an earlier release, for the scenario `upgrade`, which is left out without it.
    #[arg(long, value_name = "FILE")]
    earlier_agent: Option<PathBuf>,
    /// How to print the rows.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The lab's name.
    #[arg(long, default_value = "chaos")]
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs the scenarios on one lab, and prints a row for each as it ends. The exit code is 1 where a row misses
/// its requirement. Standard output gets the rows and nothing else.
///
/// # Errors
/// When a name is no scenario's, or the lab cannot be set up.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut chosen = chosen(&arguments.scenarios)?;
    if arguments.list {
        for scenario in chosen {
            println!(
                "{:<14}{}\n{:<14}required: {}",
                scenario.name, scenario.event, "", scenario.required.text
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.earlier_agent.is_none() {
        let requested = !arguments.scenarios.is_empty();
        ensure!(
            !requested || chosen.iter().all(|scenario| scenario.agents == Agents::Current),
            "`upgrade` needs the agent of an earlier release: --earlier-agent FILE"
        );
        chosen.retain(|scenario| scenario.agents == Agents::Current);
    }
    check_root()?;
    eprintln!("set-up and build");
    let rows_to = crate::command::silence_standard_output()?;
    build::run(setup::packages(&[Need::Build, Need::Lab])?)?;
    let mut lab: Option<(Lab, Cluster)> = None;
    let mut outcomes = Vec::new();
    for scenario in chosen {
        eprintln!("{}: {}", scenario.name, scenario.event);
        let suitable = match lab.take() {
            Some((lab, cluster)) if cluster == scenario.cluster => lab,
            other => {
                other.map_or(Ok(()), |(lab, _)| lab.down())?;
                fixture::up(&arguments.name, scenario.cluster)?
            }
        };
        let fixture = Fixture {
            lab: &suitable,
            earlier_agent: arguments.earlier_agent.as_deref(),
            pace: Pace::Full,
        };
        let outcome = play(&fixture, scenario);
        lab = Some((suitable, scenario.cluster));
        eprintln!("  {}", outcome.sentence());
        outcomes.push(outcome);
    }
    lab.map_or(Ok(()), |(lab, _)| lab.down())?;
    nix::unistd::dup2_stdout(rows_to)?;
    match arguments.format {
        Format::Table => println!("{}", table(&outcomes)),
        Format::Json => println!("{}", serde_json::to_string_pretty(&outcomes)?),
    }
    Ok(if outcomes.iter().all(Outcome::holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Plays a scenario briefly on a lab that has the service and agents already. Returns its outcome in a
/// sentence.
///
/// # Errors
/// When it cannot be played, or misses its requirement.
pub fn play_briefly(lab: &Lab, name: &str) -> Result<String> {
    let mut outcomes = Vec::new();
    for scenario in chosen(&[name.to_owned()])? {
        let fixture = Fixture {
            lab,
            earlier_agent: None,
            pace: Pace::Brief,
        };
        let outcome = play(&fixture, scenario);
        ensure!(outcome.holds(), "{outcome:#?}");
        outcomes.push(outcome.sentence());
    }
    Ok(outcomes.join("; "))
}

fn play(fixture: &Fixture<'_>, scenario: &'static Scenario) -> Outcome {
    match fixture.under_load(scenario.entries, scenario.agents, scenario.play) {
        Ok((report, events)) => Outcome::of(scenario.name, &scenario.required, report, &events),
        Err(error) => Outcome::not_played(scenario.name, &scenario.required, &error),
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    names
        .iter()
        .map(
            |name| match SCENARIOS.iter().find(|scenario| scenario.name == name) {
                Some(scenario) => Ok(scenario),
                None => {
                    let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
                    bail!("there is no scenario `{name}`; there are {}", known.join(", "))
                }
            },
        )
        .collect()
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SCENARIO",
        "REQUESTS",
        "FAILED",
        "TOO LATE",
        "LAST AFTER",
        "KEPT",
        "BROKEN",
        "OUT",
        "BACK",
        "OK",
    ]);
    for outcome in outcomes {
        table.add_row(outcome.cells());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_scenario_lists_those_there_are() {
        let error = chosen(&["rain".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`rain`") && error.contains("cable"), "{error}");
        assert_eq!(chosen(&[]).unwrap().len(), SCENARIOS.len());
    }
}
