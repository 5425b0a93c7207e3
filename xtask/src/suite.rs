//! `cargo xtask test`: everything that can be tested, in phases, of which some run beside each other. Depends
//! on `setup`, `build`, `check`, `test_binaries` and `vm`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::{
    build, check,
    lab::{check_root, wait::SLACK},
    phases::{Output, Phase, Phases},
    programs::{self, Need},
    setup::{self, Linker},
    test_binaries::{self, ALL, Built, Part, run_all},
    vm,
};

/// What of the suite to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run only this: a phase, a test binary, or the tests whose names hold this text. May be repeated: text
    /// then restricts the phases and binaries that are named beside it.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Leave out the end-to-end tests.
    #[arg(long)]
    no_end_to_end: bool,
    /// Leave out what runs under another kernel, in a virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// Under the other kernel, too, try the mesh on a Swarm, beside Docker's own: takes a quarter of an hour
    /// where the processor is emulated.
    #[arg(long)]
    vm_swarm: bool,
}

/// What needs no test binary.
const STATIC: [&str; 4] = ["format", "tidy", "lints", "documentation"];

/// The phases of test binaries.
const PARTS: [(&str, Part); 5] = [
    ("unit", Part::Unit),
    ("kernel", Part::Kernel),
    ("store", Part::Store),
    ("end-to-end", Part::EndToEnd),
    ("vm", Part::Vm),
];

/// How a phase runs its test binaries.
#[derive(Clone, Copy)]
struct Runner {
    /// The phase's name.
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const fn runner(name: &'static str, arguments: &'static [&'static str]) -> Runner {
    Runner {
        name,
        arguments,
        environment: &[],
    }
}

/// The kernel's binary that takes longer than the others together, and mostly waits.
const DATA_PATHS: &str = "conformance";

/// So it runs twice at the same time, each time without some of its data paths.
const HALVES: [Runner; 2] = [
    runner("native", &["--skip", "ebpf-generic", "--skip", "ebpf-tc"]),
    runner("others", &["--skip", "ebpf-native"]),
];

/// The end-to-end binary whose stories need no Swarm.
const ORCHESTRATOR_STORIES: &str = "orchestrator";

/// The end-to-end binary whose stories need one. They take longer than all others and mostly wait, so it runs
/// twice at the same time as well.
const SWARM_STORIES: &str = "swarm";

/// The stories of a lab share it.
const ONE_BY_ONE: &[&str] = &["--test-threads=1"];

/// The lanes of stories have the processors together, and the checks what they leave: what a user sees within
/// a second takes longer then.
const BESIDE_OTHERS: (&str, &str) = (SLACK, "3");

/// The end-to-end phases and their binaries. Labs do not see each other.
const LABS: [(Runner, &[&str]); 3] = [
    (
        Runner {
            environment: &[BESIDE_OTHERS, ("MESH_LANE", "changes")],
            ..runner("end-to-end", ONE_BY_ONE)
        },
        &["fallback", SWARM_STORIES],
    ),
    (
        Runner {
            environment: &[BESIDE_OTHERS, ("MESH_LANE", "variants")],
            ..runner("variants", ONE_BY_ONE)
        },
        &[SWARM_STORIES],
    ),
    (
        Runner {
            environment: &[BESIDE_OTHERS],
            ..runner("without a Swarm", ONE_BY_ONE)
        },
        &[ORCHESTRATOR_STORIES],
    ),
];

/// Sets up, builds, and runs what was chosen; the runners' output is shown as it comes.
///
/// # Errors
/// When a phase fails; the phases and their times are printed all the same.
pub fn run(arguments: &Arguments) -> Result<()> {
    check_root().context("the tests load eBPF programs and run a lab")?;
    let mut phases = Phases::default();
    let outcome = run_phases(arguments, &mut phases);
    print!("\n{}", phases.report());
    if outcome.is_ok() {
        println!("all passed");
    }
    outcome
}

fn run_phases(arguments: &Arguments, phases: &mut Phases) -> Result<()> {
    let selection = Selection::of(&arguments.only);
    let mut parts = selection.parts();
    parts.retain(|part| match part {
        Part::EndToEnd => !arguments.no_end_to_end,
        Part::Vm => !arguments.no_vm,
        Part::Unit | Part::Kernel | Part::Store => true,
    });
    let needs = needs(&parts);
    let mut linker = Linker::default();
    phases.run_alone("set-up", |_| {
        linker = setup::packages(&needs)?;
        // A test that finds a program missing would say so in the last phase.
        programs::check(&needs)
    })?;
    phases.run_alone("build", |_| {
        if parts.contains(&Part::EndToEnd) || parts.contains(&Part::Vm) {
            return build::run(linker);
        }
        linker.install()?;
        build::ebpf()
    })?;
    let mut built = Vec::new();
    if !parts.is_empty() {
        phases.run_alone("test binaries", |_| {
            built = test_binaries::build(&parts)?;
            selection.check(&built, &parts)
        })?;
    }
    let tests = |runner: Runner, part: Part, chosen: &dyn Fn(&str) -> bool| {
        tests(runner, part, &built, &selection, &parts, chosen)
    };
    let lane = |part: Part| tests(runner(name_of(part), &[]), part, &|_| true);
    let mut first = vec![
        lane(Part::Unit),
        tests(runner(name_of(Part::Kernel), &[]), Part::Kernel, &|binary| {
            binary != DATA_PATHS
        }),
        lane(Part::Store),
    ];
    first.extend(HALVES.map(|half| tests(half, Part::Kernel, &|binary| binary == DATA_PATHS)));
    phases.run_together(first.into_iter().flatten().collect())?;
    let mut second: Vec<Phase<'_>> = LABS
        .iter()
        .filter_map(|(runner, binaries)| tests(*runner, Part::EndToEnd, &|binary| binaries.contains(&binary)))
        .collect();
    let checks: Vec<&str> = STATIC
        .into_iter()
        .filter(|name| selection.is_everything() || selection.named.contains(*name))
        .collect();
    let checks = (!checks.is_empty())
        .then(|| Phase::new("checks", move |output| static_checks(&checks, output)).giving_way());
    if !parts.contains(&Part::Vm) {
        // The stories wait now and then: the compiler takes what they leave.
        second.extend(checks);
        return phases.run_together(second);
    }
    phases.run_together(second)?;
    // After all else: an emulated processor is slow enough that a test's time-outs pass when it has to share.
    // Only the compiler takes what it leaves, as most tests there use one of its two processors.
    let chosen = |built: &&Built| built.parts.contains(&Part::Vm) && selection.takes(built, Part::Vm);
    let binaries: Vec<Built> = built.iter().filter(chosen).cloned().collect();
    let machine = vm::suite::Arguments::of_the_suite(arguments.vm_swarm);
    let mut last = vec![Phase::new("vm", move |output| {
        vm::suite::run_built(&machine, &binaries, output)
    })];
    last.extend(checks);
    phases.run_together(last)
}

fn static_checks(names: &[&str], output: &Output) -> Result<()> {
    let mut failed = Vec::new();
    for name in names {
        output.line(&format!("-- {name}"));
        let outcome = match *name {
            "format" => check::format(output),
            "tidy" => check::tidy(output),
            "lints" => check::lints(output),
            _ => check::documentation(output),
        };
        if let Err(error) = outcome {
            output.line(&format!("error: {error:#}"));
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("{} failed", failed.join(", "));
    }
    Ok(())
}

fn name_of(part: Part) -> &'static str {
    PARTS
        .into_iter()
        .find(|(_, other)| *other == part)
        .map_or("", |(name, _)| name)
}

/// A phase that runs those binaries of a part that are chosen by name; `None` where there are none.
fn tests<'a>(
    runner: Runner,
    part: Part,
    built: &'a [Built],
    selection: &'a Selection,
    parts: &[Part],
    chosen: &dyn Fn(&str) -> bool,
) -> Option<Phase<'a>> {
    let mut binaries: Vec<&Built> = built
        .iter()
        .filter(|built| built.parts.contains(&part) && selection.takes(built, part) && chosen(&built.name))
        .collect();
    if binaries.is_empty() || !parts.contains(&part) {
        return None;
    }
    binaries.sort_by_key(|built| ALL.iter().position(|listed| listed.name == built.name));
    let Runner {
        name,
        arguments,
        environment,
    } = runner;
    let work = move |output: &Output| {
        run_all(&binaries, output, |binary, output| {
            binary.run(output, arguments, environment, &selection.filters)
        })
    };
    Some(Phase::new(name, work))
}

fn needs(parts: &[Part]) -> Vec<Need> {
    let mut needs = vec![Need::Check, Need::Build];
    if parts.contains(&Part::EndToEnd) || parts.contains(&Part::Vm) {
        needs.push(Need::Lab);
    }
    if !parts.is_empty() {
        needs.push(Need::Tests);
    }
    if parts.contains(&Part::Vm) {
        needs.push(Need::Vm);
    }
    needs
}

/// What was asked for by `--only`.
#[derive(Debug, Default)]
struct Selection {
    /// Phases.
    named: BTreeSet<String>,
    /// Test binaries.
    binaries: BTreeSet<String>,
    /// Parts of tests' names.
    filters: Vec<String>,
}

impl Selection {
    fn of(only: &[String]) -> Self {
        let mut selection = Self::default();
        for name in only {
            let is_phase = STATIC.contains(&name.as_str()) || PARTS.iter().any(|(phase, _)| phase == name);
            if is_phase {
                selection.named.insert(name.clone());
            } else if ALL.iter().any(|listed| listed.name == name) {
                selection.binaries.insert(name.clone());
            } else {
                selection.filters.push(name.clone());
            }
        }
        selection
    }

    fn is_everything(&self) -> bool {
        self.named.is_empty() && self.binaries.is_empty() && self.filters.is_empty()
    }

    /// The parts that are to be built and run. A filter alone is looked for in all that this kernel can run.
    fn parts(&self) -> Vec<Part> {
        let only_filters = self.named.is_empty() && self.binaries.is_empty() && !self.filters.is_empty();
        PARTS
            .into_iter()
            .filter(|(name, part)| {
                self.is_everything()
                    || self.named.contains(*name)
                    || (only_filters && *part != Part::Vm)
                    || self.binaries.iter().any(|binary| part_of(binary) == Some(*part))
            })
            .map(|(_, part)| part)
            .collect()
    }

    /// Whether a part's phase runs a binary.
    fn takes(&self, built: &Built, part: Part) -> bool {
        let in_phase = PARTS
            .into_iter()
            .any(|(name, other)| other == part && self.named.contains(name));
        let named = part_of(&built.name) == Some(part) && self.binaries.contains(&built.name);
        in_phase || named || (self.named.is_empty() && self.binaries.is_empty())
    }

    /// Fails where a filter names no test.
    fn check(&self, built: &[Built], parts: &[Part]) -> Result<()> {
        if self.filters.is_empty() {
            return Ok(());
        }
        let mut tests = Vec::new();
        for built in built {
            if parts
                .iter()
                .any(|part| built.parts.contains(part) && self.takes(built, *part))
            {
                tests.extend(built.tests()?);
            }
        }
        for filter in &self.filters {
            if !tests.iter().any(|test| test.contains(filter)) {
                let phases = STATIC.into_iter().chain(PARTS.into_iter().map(|(name, _)| name));
                let binaries: Vec<&str> = ALL.iter().map(|listed| listed.name).collect();
                bail!(
                    "`{filter}` is no phase, no test binary, and in no test's name\nphases: {}\ntest binaries: {}",
                    phases.collect::<Vec<_>>().join(", "),
                    binaries.join(", ")
                );
            }
        }
        Ok(())
    }
}

/// The part that runs a binary which is asked for by name: the one on this kernel, if there is one.
fn part_of(binary: &str) -> Option<Part> {
    let listed = ALL.iter().find(|listed| listed.name == binary)?;
    listed.parts.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(only: &[&str]) -> Selection {
        Selection::of(&only.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_choice_everything_runs() {
        let all = selection(&[]);
        assert!(all.is_everything());
        assert_eq!(all.parts().len(), PARTS.len());
    }

    #[test]
    fn a_phase_a_binary_and_a_filter_are_distinguished() {
        assert_eq!(selection(&["store", "unit"]).parts(), [Part::Unit, Part::Store]);
        assert_eq!(selection(&["ipvs"]).parts(), [Part::Vm]);
        assert_eq!(selection(&["conformance"]).parts(), [Part::Kernel]);
        let filtered = selection(&["orchestrator", "webhook"]);
        assert_eq!(
            (filtered.parts(), filtered.filters),
            (vec![Part::EndToEnd], vec!["webhook".to_owned()])
        );
        assert!(selection(&["lints"]).parts().is_empty());
        assert!(!selection(&["some_test"]).parts().contains(&Part::Vm));
    }

    #[test]
    fn every_end_to_end_binary_is_in_a_phase() {
        for listed in ALL.iter().filter(|listed| listed.parts.contains(&Part::EndToEnd)) {
            let phases = LABS
                .iter()
                .filter(|(_, binaries)| binaries.contains(&listed.name));
            assert!(phases.count() > 0, "{}", listed.name);
        }
    }

    #[test]
    fn a_name_that_is_nothing_lists_the_choices() {
        let error = selection(&["no-such-thing"])
            .check(&[], &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`no-such-thing`")
                && error.contains("end-to-end")
                && error.contains("conformance")
        );
    }
}
