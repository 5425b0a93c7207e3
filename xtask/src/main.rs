//! `cargo xtask`: set-up, build, lab, demo and tests of the mesh.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{
    bench, build, chaos, check, demo, fuzz, lab,
    setup::{self, Linker},
    suite, tidy, vm,
};

/// Set-up, build, lab, demo and tests of the mesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build and the lab need, and only what is missing.
    Setup,
    /// Build the eBPF programs and the static programs.
    Build,
    /// See it work: a Swarm of three nodes, a service, and who answers.
    Demo(demo::Arguments),
    /// Check without root or a lab: format, rules of the house, lints, documentation, unit tests.
    Check,
    /// Run every test and check there is, or with `--only` some of them.
    Test(suite::Arguments),
    /// Check the rules of the house: imports, sizes, names, proofs.
    Tidy(tidy::Arguments),
    Lab(lab::cli::Arguments),
    /// Run a command, or the tests that depend on the kernel, under another kernel in a virtual machine.
    Vm(vm::Arguments),
    /// Let things go wrong under load, and see what it costs the clients.
    Chaos(chaos::Arguments),
    /// The same at random for a long time: what grows, and which failures nothing explains.
    Soak(chaos::soak::Arguments),
    /// Feed random and spoilt frames to the packet path, and see whether it does any harm.
    Fuzz(fuzz::Arguments),
    /// Measure.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Setup => setup::run()?,
        Command::Build => build::run(Linker::default())?,
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Test(arguments) => suite::run(&arguments)?,
        Command::Check => check::run()?,
        Command::Fuzz(arguments) => fuzz::run(&arguments)?,
        Command::Tidy(arguments) => tidy::run(&arguments)?,
        Command::Bench(arguments) => bench::run(&arguments)?,
        Command::Soak(arguments) => return chaos::soak::run(&arguments),
        Command::Chaos(arguments) => return chaos::run(&arguments),
        Command::Vm(arguments) => return vm::run(&arguments),
        Command::Lab(arguments) => return lab::cli::run(arguments),
    }
    Ok(ExitCode::SUCCESS)
}
