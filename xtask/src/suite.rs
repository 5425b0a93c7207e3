//! `cargo xtask test`: everything that can be tested, phase by phase. Depends on `setup`, `build` and `vm`.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    build,
    build::cargo,
    command::stream,
    lab::check_root,
    programs::{self, Need},
    setup, vm,
};

/// What of the suite to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Stop before the end-to-end tests.
    #[arg(long)]
    no_end_to_end: bool,
    /// Leave out what runs under another kernel, in a virtual machine.
    #[arg(long)]
    no_vm: bool,
    /// Under the other kernel, too, try the mesh on a Swarm, beside Docker's own: takes a quarter of an hour where
    /// the processor is emulated.
    #[arg(long)]
    vm_swarm: bool,
}

/// The agent's test binaries that this kernel can run; `ipvs` is for kernels with IPVS.
const AGENT_TESTS: &[&str] = &[
    "conformance",
    "deploy",
    "ipvs_rules",
    "meshctl",
    "operator",
    "programs",
];

/// The lab's test binaries that this kernel can run. Named one by one: a pattern would take in those that need
/// another kernel, whatever their `test` key says.
const END_TO_END_TESTS: &[&str] = &["fallback", "orchestrator", "swarm"];

/// The orchestrator's test binaries.
const ORCHESTRATOR_TESTS: &[&str] = &["api", "cluster", "simulation", "store"];

/// Whether this command or `cargo xtask vm test` runs a test binary of the package in this folder.
pub(crate) fn runs(folder: &str, name: &str) -> bool {
    let lists: &[&[&str]] = match folder {
        "mesh-agent" => &[AGENT_TESTS, vm::suite::AGENT_TESTS],
        "mesh-orchestrator" => &[ORCHESTRATOR_TESTS],
        "tests" => &[END_TO_END_TESTS, vm::suite::LAB_TESTS],
        _ => &[],
    };
    lists.iter().any(|list| list.contains(&name))
}

/// Sets up, builds, and runs everything; the runners' output is shown as it comes.
///
/// # Errors
/// The first phase that fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    check_root().context("the tests load eBPF programs and run a lab")?;
    let mut phases = Phases::default();
    let mut needs = vec![Need::Build, Need::Lab, Need::Tests];
    if !arguments.no_vm {
        needs.push(Need::Vm);
    }
    phases.run("set-up", || {
        setup::packages(&needs)?.install()?;
        // A test that finds a program missing would say so in the last phase.
        programs::check(&needs)
    })?;
    phases.run("build", build::run)?;
    phases.stream("format", &mut cargo(["fmt", "--all", "--", "--check"]))?;
    let mut lints = cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    phases.stream("lints", &mut lints)?;
    phases.stream(
        "unit and property tests",
        &mut cargo([
            "test",
            "--workspace",
            "--exclude",
            "mesh-tests",
            "--lib",
            "--bins",
        ]),
    )?;
    phases.stream(
        "unit tests of the test server",
        &mut cargo(["test", "--package", "mesh-tests", "--lib", "--bins"]),
    )?;
    let mut kernel = cargo(["test", "--package", "mesh-agent", "--no-fail-fast"]);
    for name in AGENT_TESTS {
        kernel.args(["--test", name]);
    }
    phases.stream("verifier and load tests, conformance", &mut kernel)?;
    let mut store = cargo(["test", "--package", "mesh-orchestrator"]);
    for name in ORCHESTRATOR_TESTS {
        store.args(["--test", name]);
    }
    phases.stream("store, etcd and simulated histories", &mut store)?;
    if !arguments.no_end_to_end {
        let mut stories = cargo(["test", "--package", "mesh-tests", "--no-fail-fast"]);
        for name in END_TO_END_TESTS {
            stories.args(["--test", name]);
        }
        stories.args(["--", "--test-threads=1"]);
        phases.stream("end-to-end tests", &mut stories)?;
    }
    if !arguments.no_vm {
        phases.run("another kernel, in a virtual machine", || {
            vm::suite::run_built(&vm::suite::Arguments::of_the_suite(arguments.vm_swarm))
        })?;
    }
    phases.report();
    Ok(())
}

#[derive(Default)]
struct Phases {
    done: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        let begin = Instant::now();
        work().with_context(|| format!("{name} failed"))?;
        let took = begin.elapsed();
        println!("== {name}: passed in {:.1} s", took.as_secs_f64());
        self.done.push((name, took));
        Ok(())
    }

    fn stream(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        self.run(name, || stream(command))
    }

    fn report(&self) {
        for (name, took) in &self.done {
            println!("{:>8.1} s  {name}", took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("all passed in {:.0} s", total.as_secs_f64());
    }
}
