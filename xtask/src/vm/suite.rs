//! `cargo xtask vm test`: the tests that depend on the kernel, in a virtual machine. Depends on `build` and
//! `machine`.

use std::fs;

use anyhow::{Context, Result, bail};

use super::{
    MachineArguments, kernel,
    machine::{Machine, quote},
};
use crate::{
    build, paths,
    phases::{Output, Phases},
    programs::Need,
    setup,
    test_binaries::{self, ALL, Built, Part},
};

/// What to test under which kernel.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Leave out the Swarm, which takes the longest.
    #[arg(long)]
    without_swarm: bool,
    /// The data paths that the conformance suite tries; without it, all that the kernel has.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    datapaths: Vec<String>,
    /// Only what can be otherwise under this kernel, as the whole suite does: on an emulated processor, all
    /// of it takes longer than everything else.
    #[arg(long)]
    brief: bool,
    /// Only the programs, under the kernel that is backported to Debian's release: between its own and this
    /// machine's.
    #[arg(long, conflicts_with_all = ["kernel", "brief", "datapaths", "without_swarm"])]
    backports: bool,
}

/// Of the data paths that every kernel has, these stories: packets of every size and kind, by one of them.
/// IPVS runs nowhere else, and all of it runs.
const BRIEF_CONFORMANCE: [(&str, &str); 3] = [
    ("ipvs", ""),
    ("ebpf-native-clsact", "bulk_transfers"),
    ("ebpf-native-clsact", "datagrams_of_any_size"),
];

/// The programs' tests that show how they are attached under this kernel, and how they treat frames: built by
/// hand, kept in files, and random. Each loads all programs, which takes five seconds there; the stories show
/// the rest, and the verifier has a step of its own.
const BRIEF_PROGRAMS: &str = "life::the_next_agent life::programs_stay life::what_something_else life::detaching \
                              delivery:: fixtures:: fuzz::";

/// For how many seconds random frames are tried there.
const FUZZ_SECONDS: u32 = 5;

/// Of a kernel between the release's and this machine's: whether it takes the programs, and whether they do
/// the same there.
const BACKPORTS_PROGRAMS: &str = "fixtures::";

/// The test that prints how many instructions a kernel's verifier takes.
const VERIFIER: &str = "--exact life::every_program_passes_the_verifier --nocapture --quiet";

/// The groups of the Swarm's stories that this kernel is needed for.
const SWARM_GROUPS: [&str; 4] = ["beside", "ipvs", "vlan", "bond"];

/// The suite waits no longer than this for a machine that hangs, in seconds.
const SUITE_LIMIT: u64 = 1200;

impl Arguments {
    /// What `cargo xtask test` runs: the brief tests under Debian's kernel, the Swarm only if it is asked
    /// for.
    #[must_use]
    pub fn of_the_suite(swarm: bool) -> Self {
        let mut arguments = Self {
            without_swarm: !swarm,
            brief: true,
            ..Self::default()
        };
        if !swarm {
            arguments.machine.limit = SUITE_LIMIT;
        }
        arguments
    }
}

/// How much longer than on this machine the Swarm may take: the guest's processors are emulated.
const PATIENCE: u32 = 12;

/// Sets up, builds, and runs the tests in a virtual machine.
///
/// # Errors
/// When something cannot be set up, built or started, or a test fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    let needs = [Need::Check, Need::Build, Need::Lab, Need::Tests, Need::Vm];
    build::run(setup::packages(&needs)?)?;
    let mut phases = Phases::default();
    let outcome = phases.run_alone("vm", |output| {
        run_built(arguments, &test_binaries::build(&[Part::Vm])?, output)
    });
    print!("\n{}", phases.report());
    outcome
}

/// [`run`], where set-up and build have been.
///
/// # Errors
/// When a machine cannot be set up or started, or a test fails.
pub fn run_built(arguments: &Arguments, built: &[Built], output: &Output) -> Result<()> {
    if arguments.backports {
        return under_backports(arguments, built, output);
    }
    let machine = arguments.machine.machine()?;
    let mut script = Script::default();
    for listed in ALL.iter().filter(|listed| listed.parts.contains(&Part::Vm)) {
        let Some(binary) = built.iter().find(|built| built.name == listed.name) else {
            continue;
        };
        let file = quote(&binary.file.to_string_lossy());
        if listed.name == "programs" {
            script.step(
                "the verifier's counts",
                listed.folder,
                &format!("{file} {VERIFIER}"),
            );
        }
        let command = match listed.name {
            "conformance" if arguments.brief => {
                for (datapath, stories) in BRIEF_CONFORMANCE {
                    let name = format!("conformance, {datapath} {stories}");
                    let command = format!("MESH_DATAPATHS={datapath} {file} {stories}");
                    script.step(&name, listed.folder, &command);
                }
                continue;
            }
            "conformance" if !arguments.datapaths.is_empty() => {
                format!("MESH_DATAPATHS={} {file}", quote(&arguments.datapaths.join(",")))
            }
            "programs" if arguments.brief => {
                format!("MESH_FUZZ_SECONDS={FUZZ_SECONDS} {file} {BRIEF_PROGRAMS}")
            }
            // These load the programs dozens of times, and what they show is the same on every kernel.
            "programs" => format!("{file} --skip crash:: --skip takeover::an_agent_killed"),
            // These need engines, and the last one a Swarm.
            "orchestrator" | "swarm" if arguments.without_swarm => continue,
            "orchestrator" => format!("{} && {file} --ignored ipvs::", swarm_preparation()?),
            "swarm" => {
                let preparation = swarm_preparation()?;
                for group in SWARM_GROUPS {
                    let name = format!("swarm, {group}");
                    let command = format!("{preparation} && {file} --ignored {group}::");
                    script.step(&name, listed.folder, &command);
                }
                continue;
            }
            _ => file,
        };
        script.step(listed.name, listed.folder, &command);
    }
    succeed(&machine, script, output)
}

/// The programs under the kernel that is backported to Debian's release.
fn under_backports(arguments: &Arguments, built: &[Built], output: &Output) -> Result<()> {
    let programs = test_binaries::named(built, "programs")?;
    let machine = Machine {
        kernel: kernel::backports().context("could not get the kernel of Debian's backports")?,
        ..arguments.machine.machine()?
    };
    let file = quote(&programs.file.to_string_lossy());
    let folder = programs.folder.to_string_lossy();
    let mut script = Script::default();
    script.step("the verifier's counts", &folder, &format!("{file} {VERIFIER}"));
    script.step("programs", &folder, &format!("{file} {BACKPORTS_PROGRAMS}"));
    succeed(&machine, script, output)
}

/// Runs a script's steps in a machine.
fn succeed(machine: &Machine, script: Script, output: &Output) -> Result<()> {
    match machine.run_to(&script.finish(), output)? {
        0 => Ok(()),
        code => bail!("tests failed in the virtual machine (exit code {code})"),
    }
}

/// A shell command that prepares a virtual machine for a lab.
///
/// # Errors
/// When there is no target folder.
pub fn swarm_preparation() -> Result<String> {
    let target = fs::canonicalize(paths::target()).context("there is no target folder")?;
    Ok(format!(
        "sh {} {} && export PATH=/run/swarm:\"$PATH\" MESH_LAB_PATIENCE={PATIENCE}",
        quote(&paths::workspace().join("xtask/src/vm/swarm.sh").to_string_lossy()),
        quote(&target.to_string_lossy()),
    ))
}

/// A shell script of steps: all are run, and it fails if one has.
#[derive(Default)]
struct Script {
    text: String,
}

impl Script {
    /// `folder` is the package's, as cargo runs its tests there.
    fn step(&mut self, name: &str, folder: &str, command: &str) {
        let folder = paths::workspace().join(folder);
        let (title, folder) = (quote(name), quote(&folder.to_string_lossy()));
        self.text += &format!(
            "echo \"== Linux $(uname -r): \"{title}; begin=$(date +%s)\n\
             if (cd {folder} && {command}); then outcome=passed; else outcome=FAILED; failed=1; fi\n\
             echo \"== \"{title}\": $outcome in $(($(date +%s) - begin)) s\"\n"
        );
    }

    fn finish(self) -> String {
        format!("failed=0\n{}exit $failed\n", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_runs_every_step_and_fails_if_one_does() {
        let mut script = Script::default();
        script.step("one", "", "false");
        script.step("two", "", "echo here");
        let output = std::process::Command::new("sh")
            .args(["-c", &script.finish()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text.contains("== one: FAILED") && text.contains("here\n== two: passed"),
            "{text}"
        );
    }
}
