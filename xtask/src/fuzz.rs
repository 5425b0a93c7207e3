//! `cargo xtask fuzz`: random and spoilt frames through the packet logic on the host and through the loaded
//! programs, for as long as one likes. Depends on `build`, `setup` and `vm`.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, cargo},
    command::stream,
    lab::check_root,
    paths,
    programs::Need,
    setup,
    test_binaries::{self, Part},
    vm::{MachineArguments, machine::quote},
};

/// The test that feeds the loaded programs; part of the suite as well, where it takes seconds.
const TEST: &str = "fuzz::random_and_spoilt_frames_do_no_harm";
/// What the packet logic tries on the host for each minute: about a quarter of it.
const CASES_PER_MINUTE: f64 = 20_000.0;

/// What a virtual machine takes to start and to load the programs, at most.
const START: Duration = Duration::from_secs(300);

/// How long, from which seed, and where.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Minutes to try frames for.
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Make the frames of an earlier run, which printed its seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Only try the frames that an earlier run has kept in a file.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Feed them to the programs under Debian's kernel, in a virtual machine.
    #[arg(long)]
    vm: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|minutes: &f64| minutes.is_finite() && *minutes > 0.0)
        .ok_or_else(|| "expected a number of minutes such as 10 or 0.5".to_owned())
}

/// Builds, and tries frames. The frames of a finding are kept in the target folder.
///
/// # Errors
/// When something is found, or cannot be built.
pub fn run(arguments: &Arguments) -> Result<()> {
    check_root().context("the frames are fed to eBPF programs in the kernel")?;
    let needs: &[Need] = if arguments.vm {
        &[Need::Check, Need::Build, Need::Vm]
    } else {
        &[Need::Check, Need::Build]
    };
    setup::packages(needs)?.install()?;
    build::ebpf()?;
    // What the packet logic does on the host is the same wherever the programs run.
    if arguments.replay.is_none() && !arguments.vm {
        let cases = (arguments.minutes * CASES_PER_MINUTE).ceil();
        let mut host = cargo([
            "test",
            "--quiet",
            "--package",
            "mesh-ebpf",
            "--lib",
            "arbitrary::",
        ]);
        stream(host.env("MESH_FUZZ_CASES", cases.to_string()))?;
    }
    let kept = paths::target().join("fuzz");
    fs::create_dir_all(&kept).with_context(|| format!("could not create {}", kept.display()))?;
    let kept = fs::canonicalize(&kept).with_context(|| format!("could not find {}", kept.display()))?;
    let seconds = (arguments.minutes * 60.0).ceil();
    let mut environment = vec![
        ("MESH_FUZZ_KEEP", kept.display().to_string()),
        ("MESH_FUZZ_SECONDS", seconds.to_string()),
    ];
    if let Some(seed) = arguments.seed {
        environment.push(("MESH_FUZZ_SEED", seed.to_string()));
    }
    if let Some(file) = &arguments.replay {
        let file = file
            .canonicalize()
            .with_context(|| format!("could not find {}", file.display()))?;
        environment.push(("MESH_FUZZ_REPLAY", file.display().to_string()));
    }
    if arguments.vm {
        return in_machine(&environment, seconds);
    }
    let mut programs = cargo([
        "test",
        "--quiet",
        "--package",
        "mesh-agent",
        "--test",
        "programs",
        "--",
    ]);
    stream(programs.args(["--exact", TEST, "--nocapture"]).envs(environment))
}

/// Runs it under Debian's kernel.
fn in_machine(environment: &[(&str, String)], seconds: f64) -> Result<()> {
    let built = test_binaries::build(&[Part::Vm])?;
    let programs = test_binaries::named(&built, "programs")?;
    let variables: String = environment
        .iter()
        .map(|(name, value)| format!("{name}={} ", quote(value)))
        .collect();
    let machine = MachineArguments::lasting(Duration::from_secs_f64(seconds) + START).machine()?;
    let script = format!(
        "cd {} && {variables}{} --exact {TEST} --nocapture",
        quote(&programs.folder.to_string_lossy()),
        quote(&programs.file.to_string_lossy())
    );
    match machine.run(&script)? {
        0 => Ok(()),
        code => bail!("something was found in the virtual machine (exit code {code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_positive_number() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for text in ["0", "-1", "inf", "NaN", "long"] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }
}
