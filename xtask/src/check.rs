//! `cargo xtask check`: what can be checked in two minutes without root, a lab or an installation. Depends on
//! `build`, `phases`, `programs` and `tidy`.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    build,
    command::{command, exists},
    paths,
    phases::{Output, Phases},
    programs::{self, Need},
    setup::clean,
    tidy,
};

/// Unit tests that need more than a compiler, and are left out where that is missing. `cargo xtask test` runs
/// them all.
struct Demanding {
    /// What their names begin with.
    tests: &'static str,
    needs: Demand,
}

#[derive(Clone, Copy)]
enum Demand {
    /// They make network namespaces or load eBPF programs.
    Root,
    Program(&'static str),
}

const DEMANDING: &[Demanding] = &[
    Demanding {
        tests: "process::privileges::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "discovery::network::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "doctor::bpf::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "doctor::firewall::tests::chains_of_the_kernel",
        needs: Demand::Root,
    },
    Demanding {
        tests: "discovery::host_firewall::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "discovery::host_firewall::ipv6::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "mesh0::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "mesh0::clients::tests::",
        needs: Demand::Root,
    },
    Demanding {
        tests: "metrics::tests::promtool",
        needs: Demand::Program("promtool"),
    },
];

impl Demand {
    fn is_met(self) -> bool {
        match self {
            Self::Root => nix::unistd::Uid::effective().is_root() && exists("ip"),
            Self::Program(name) => exists(name),
        }
    }
}

/// What does a part.
type Part = fn(&Output) -> Result<()>;

/// Checks, and prints how long each part took.
///
/// # Errors
/// When a part fails; the others have run all the same.
pub fn run() -> Result<()> {
    programs::check(&[Need::Check]).context("the host's programs cannot be compiled")?;
    if !paths::ebpf_object().is_file() {
        println!("the eBPF programs are not built: the agent is checked without them");
    }
    let mut phases = Phases::default();
    let parts: [(&'static str, Part); 5] = [
        ("format", format),
        ("tidy", tidy),
        ("lints", lints),
        ("documentation", documentation),
        ("unit tests", unit_tests),
    ];
    let mut failed = false;
    for (name, part) in parts {
        failed |= phases.run_alone(name, part).is_err();
    }
    print!("\n{}", phases.report());
    anyhow::ensure!(!failed, "not everything is in order");
    Ok(())
}

/// That every file is formatted.
///
/// # Errors
/// When one is not.
pub fn format(output: &Output) -> Result<()> {
    output
        .stream(&mut cargo(["fmt", "--all", "--", "--check"]))
        .context("run `cargo fmt`")
}

/// That the rules of the house hold.
///
/// # Errors
/// When one does not.
pub fn tidy(output: &Output) -> Result<()> {
    let found = tidy::violations()?;
    for violation in &found {
        output.line(violation);
    }
    anyhow::ensure!(
        found.is_empty(),
        "{} violations of the rules of the house",
        found.len()
    );
    Ok(())
}

/// That clippy finds nothing, neither in what runs on the host nor in the eBPF programs.
///
/// # Errors
/// When it finds something.
pub fn lints(output: &Output) -> Result<()> {
    let mut host = cargo(["clippy", "--quiet", "--workspace", "--all-targets"]);
    output.stream(host.args(["--", "--deny", "warnings"]))?;
    output.stream(&mut ebpf_lints())
}

/// Clippy over the eBPF programs and what measures them. They are looked at as if they were for the host: the
/// compiler for their own target comes without clippy. That needs what the host's libraries are not built
/// with: an unstable feature, and panics that abort.
fn ebpf_lints() -> Command {
    let mut clippy = cargo(["clippy", "--quiet", "--package", "mesh-ebpf", "--bins"]);
    clippy
        .args(["--features", "programs,bench", "--target-dir"])
        .arg(paths::target().join("ebpf-lints"))
        .args(["--", "--deny", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_DEV_PANIC", "abort");
    clippy
}

/// That the documentation builds without warnings.
///
/// # Errors
/// When it does not.
pub fn documentation(output: &Output) -> Result<()> {
    let mut doc = cargo(["doc", "--quiet", "--workspace", "--no-deps"]);
    output.stream(doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn unit_tests(output: &Output) -> Result<()> {
    let mut test = cargo([
        "test",
        "--quiet",
        "--workspace",
        "--lib",
        "--bins",
        "--no-fail-fast",
    ]);
    test.arg("--");
    for Demanding { tests, needs } in DEMANDING {
        if !needs.is_met() {
            let missing = match needs {
                Demand::Root => "root and `ip`",
                Demand::Program(name) => name,
            };
            output.line(&format!("left out, as they need {missing}: {tests}*"));
            test.args(["--skip", tests]);
        }
    }
    output.stream(&mut test)
}

/// The workspace's cargo, with the eBPF programs where they are built.
fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    if paths::ebpf_object().is_file() {
        return build::cargo(arguments);
    }
    let mut cargo = clean(command(["cargo"]));
    cargo.args(arguments).current_dir(paths::workspace());
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_that_need_more_are_where_they_are_named() {
        for Demanding { tests, .. } in DEMANDING {
            let (module, _) = tests.split_once("::tests::").unwrap_or((tests, ""));
            let path = paths::workspace()
                .join("mesh-agent/src")
                .join(module.replace("::", "/"));
            assert!(
                path.is_dir() || path.with_extension("rs").is_file(),
                "{}",
                path.display()
            );
        }
    }
}
