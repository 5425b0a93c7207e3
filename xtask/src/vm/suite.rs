//! `cargo xtask vm test`: the tests that depend on the kernel, in a virtual machine. Depends on `build` and
//! `machine`.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{MachineArguments, machine::quote};
use crate::{
    build::{self, cargo},
    command::line,
    paths,
    programs::Need,
    setup,
};

/// What to test under which kernel.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Leave out the Swarm, which takes the longest.
    #[arg(long)]
    without_swarm: bool,
    /// The data paths that the conformance suite is told of; all that the kernel has where none is named.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    datapaths: Vec<String>,
}

/// One of each kind: all of them take longer than the rest of the suite together.
const SUITE_DATAPATHS: [&str; 2] = ["ebpf-native-clsact", "ipvs"];

/// The suite is not held up longer than this by a machine that hangs, in seconds.
const SUITE_LIMIT: u64 = 1200;

impl Arguments {
    /// What `cargo xtask test` runs: under Debian's kernel, with one data path of each kind, the Swarm only if it is
    /// asked for.
    #[must_use]
    pub fn of_the_suite(swarm: bool) -> Self {
        let mut arguments = Self {
            without_swarm: !swarm,
            datapaths: SUITE_DATAPATHS.map(str::to_owned).into(),
            ..Self::default()
        };
        if !swarm {
            arguments.machine.limit = SUITE_LIMIT;
        }
        arguments
    }
}

/// The agent's test binaries that are about the kernel.
pub(crate) const AGENT_TESTS: &[&str] = &["programs", "ipvs", "conformance"];

/// How much longer than on this machine the Swarm may take: the guest's processors are emulated.
const PATIENCE: u32 = 12;

/// The lab's test binaries with tests that need what this machine's kernel may lack: the first without Docker, the second
/// without a Swarm.
pub(crate) const LAB_TESTS: &[&str] = &["fallback", "orchestrator", "swarm"];

/// Sets up, builds, and runs the tests in a virtual machine.
///
/// # Errors
/// When something cannot be set up, built or started, or a test fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::packages(&[Need::Build, Need::Lab, Need::Tests, Need::Vm])?.install()?;
    build::run()?;
    run_built(arguments)
}

/// [`run`], where set-up and build have been.
///
/// # Errors
/// When a machine cannot be set up or started, or a test fails.
pub fn run_built(arguments: &Arguments) -> Result<()> {
    let machine = arguments.machine.machine()?;
    let binaries = test_binaries()?;
    let binary = |name: &str| -> Result<String> {
        let path = binaries
            .get(name)
            .with_context(|| format!("cargo built no test binary `{name}`"))?;
        Ok(quote(&path.to_string_lossy()))
    };
    let mut script = Script::default();
    let verifier = "--exact life::every_program_passes_the_verifier --nocapture --quiet";
    script.step(
        "the verifier's counts",
        "mesh-agent",
        &format!("{} {verifier}", binary("programs")?),
    );
    for name in AGENT_TESTS {
        let chosen = if *name == "conformance" && !arguments.datapaths.is_empty() {
            format!("MESH_DATAPATHS={} ", quote(&arguments.datapaths.join(",")))
        } else {
            String::new()
        };
        script.step(name, "mesh-agent", &format!("{chosen}{}", binary(name)?));
    }
    script.step("fall-back from eBPF to IPVS", "tests", &binary("fallback")?);
    let mut in_a_lab = |name, binary: String| -> Result<()> {
        script.step(name, "tests", &format!("{} && {binary}", swarm_preparation()?));
        Ok(())
    };
    if !arguments.without_swarm {
        in_a_lab(
            "the orchestrator on IPVS",
            format!("{} --ignored ipvs::", binary("orchestrator")?),
        )?;
        in_a_lab(
            "three-node Swarm, beside Docker's own mesh",
            format!("{} --ignored beside::", binary("swarm")?),
        )?;
    }
    match machine.run(&script.finish())? {
        0 => Ok(()),
        code => bail!("tests failed in the virtual machine (exit code {code})"),
    }
}

/// Shell words that prepare a virtual machine for a lab.
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

/// The lines of `cargo test --message-format=json` that name what was built.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds the integration tests of the agent and of the lab, and says where each is.
fn test_binaries() -> Result<BTreeMap<String, PathBuf>> {
    let mut build = cargo(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(["--package", "mesh-agent", "--package", "mesh-tests"]);
    for name in AGENT_TESTS.iter().chain(LAB_TESTS) {
        build.args(["--test", name]);
    }
    let output = build
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{}`", line(&build)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&build), output.status);
    }
    Ok(parse_binaries(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_binaries(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| message.target.zip(message.executable))
        .filter(|(target, _)| target.kind.iter().any(|kind| kind == "test"))
        .map(|(target, executable)| (target.name, executable))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_read_from_cargos_messages() {
        let text = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"programs"},"executable":"/t/programs-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"b"},"executable":"/t/b"}
{"reason":"build-finished","success":true}"#;
        let found = parse_binaries(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["programs"], PathBuf::from("/t/programs-1"));
    }

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
