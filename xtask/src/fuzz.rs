//! `cargo xtask fuzz`: random and spoilt frames through the packet logic on the host and through the loaded
//! programs, for as long as one likes. Depends on `build` and `setup`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    build::{self, cargo},
    command::stream,
    lab::check_root,
    paths,
    programs::Need,
    setup,
};

/// The test that feeds the loaded programs; part of the suite as well, where it takes seconds.
const TEST: &str = "fuzz::random_and_spoilt_frames_do_no_harm";
/// What the packet logic tries on the host for each minute: about a quarter of it.
const CASES_PER_MINUTE: f64 = 20_000.0;

/// How long, and from which seed.
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
    setup::packages(&[Need::Check, Need::Build])?.install()?;
    build::ebpf()?;
    if arguments.replay.is_none() {
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
    std::fs::create_dir_all(&kept).with_context(|| format!("could not create {}", kept.display()))?;
    let mut programs = cargo([
        "test",
        "--quiet",
        "--package",
        "mesh-agent",
        "--test",
        "programs",
        "--",
    ]);
    programs
        .args(["--exact", TEST, "--nocapture"])
        .env("MESH_FUZZ_KEEP", std::path::absolute(&kept)?)
        .env("MESH_FUZZ_SECONDS", (arguments.minutes * 60.0).ceil().to_string());
    if let Some(seed) = arguments.seed {
        programs.env("MESH_FUZZ_SEED", seed.to_string());
    }
    if let Some(file) = &arguments.replay {
        let file = file
            .canonicalize()
            .with_context(|| format!("could not find {}", file.display()))?;
        programs.env("MESH_FUZZ_REPLAY", file);
    }
    stream(&mut programs)
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
