//! The test binaries: which there are and what runs them, how cargo builds all of them at once, and how one
//! is run. Depends on `build` and `phases`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    build::cargo,
    command::{command, line, output},
    paths,
    phases::Output,
    setup::clean,
};

/// The part of the suite that a test binary belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Unit and property tests: in the libraries and programs themselves.
    Unit,
    /// The eBPF programs and data paths on this kernel, and the command line.
    Kernel,
    /// The orchestrator's stores, API and simulated histories.
    Store,
    /// Real engines in the lab.
    EndToEnd,
    /// What only a kernel with IPVS runs, in a virtual machine.
    Vm,
}

/// An integration test binary: its package, the folder of that, its name, and the parts that run it.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// The package as cargo knows it.
    pub package: &'static str,
    /// The folder it is in.
    pub folder: &'static str,
    /// The binary's name.
    pub name: &'static str,
    /// The parts that run it.
    pub parts: &'static [Part],
}

const fn listed(
    package: &'static str,
    folder: &'static str,
    name: &'static str,
    parts: &'static [Part],
) -> Listed {
    Listed {
        package,
        folder,
        name,
        parts,
    }
}

use Part::{EndToEnd, Kernel, Store, Vm};

const AGENT: &str = "mesh-agent";
const ORCHESTRATOR: &str = "mesh-orchestrator";

/// All integration test binaries. In a virtual machine they run in this order.
pub const ALL: &[Listed] = &[
    listed(AGENT, AGENT, "programs", &[Kernel, Vm]),
    listed(AGENT, AGENT, "ipvs", &[Vm]),
    listed(AGENT, AGENT, "conformance", &[Kernel, Vm]),
    listed(AGENT, AGENT, "deploy", &[Kernel]),
    listed(AGENT, AGENT, "ipvs_rules", &[Kernel]),
    listed(AGENT, AGENT, "meshctl", &[Kernel]),
    listed(AGENT, AGENT, "operator", &[Kernel]),
    listed(ORCHESTRATOR, ORCHESTRATOR, "api", &[Store]),
    listed(ORCHESTRATOR, ORCHESTRATOR, "simulation", &[Store]),
    listed(ORCHESTRATOR, ORCHESTRATOR, "stories", &[Store]),
    listed("mesh-tests", "tests", "fallback", &[EndToEnd, Vm]),
    listed("mesh-tests", "tests", "orchestrator", &[EndToEnd, Vm]),
    listed("mesh-tests", "tests", "swarm", &[EndToEnd, Vm]),
];

/// A test binary that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its name; a library's or program's is its package's.
    pub name: String,
    /// The parts that run it.
    pub parts: Vec<Part>,
    /// The file.
    pub file: PathBuf,
    /// The folder that cargo runs it in: its package's.
    pub folder: PathBuf,
}

/// Builds the test binaries of the given parts, all by one call of cargo.
///
/// # Errors
/// When they do not build.
pub fn build(parts: &[Part]) -> Result<Vec<Built>> {
    let mut build = cargo(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    // The same packages always: a dependency's features depend on which are built.
    build.arg("--workspace");
    if parts.contains(&Part::Unit) {
        build.args(["--lib", "--bins"]);
    }
    for listed in ALL {
        if listed.parts.iter().any(|part| parts.contains(part)) {
            build.args(["--test", listed.name]);
        }
    }
    let output = build
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{}`", line(&build)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&build), output.status);
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The lines of `cargo test --message-format=json` that name what was built.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

fn parse(messages: &str) -> Vec<Built> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| {
            let target = message.target?;
            message.profile.filter(|profile| profile.test)?;
            let integration = target.kind.iter().any(|kind| kind == "test");
            let listed = ALL
                .iter()
                .find(|listed| integration && listed.name == target.name);
            Some(Built {
                parts: listed.map_or_else(|| vec![Part::Unit], |listed| listed.parts.to_vec()),
                name: target.name,
                file: message.executable?,
                folder: message.manifest_path?.parent().map(Path::to_path_buf)?,
            })
        })
        .collect()
}

impl Built {
    /// The command that runs it as cargo would.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut test = clean(command([&self.file]));
        if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
            test.env("CARGO_TARGET_DIR", target);
        }
        test.current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("MESH_EBPF_OBJECT", paths::ebpf_object());
        test
    }

    /// The names of its tests.
    ///
    /// # Errors
    /// When it does not list them.
    pub fn tests(&self) -> Result<Vec<String>> {
        let mut list = self.command();
        list.args(["--list", "--format", "terse"]);
        let output = output(&mut list)?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect())
    }

    /// Runs it, and only the tests whose names hold one of the filters if there are any.
    ///
    /// # Errors
    /// When a test fails.
    pub fn run(
        &self,
        output: &Output,
        arguments: &[&str],
        environment: &[(&str, &str)],
        filters: &[String],
    ) -> Result<()> {
        output.line(&format!("-- {}", self.name));
        // libtest takes several filters, libtest-mimic one.
        let runs: Vec<Vec<&str>> = match filters {
            [] => vec![Vec::new()],
            filters => filters.iter().map(|filter| vec![filter.as_str()]).collect(),
        };
        for filter in runs {
            let mut test = self.command();
            test.args(filter)
                .args(arguments)
                .envs(environment.iter().copied());
            output.stream(&mut test)?;
        }
        Ok(())
    }
}

/// The binary of a name.
///
/// # Errors
/// When it has not been built.
pub fn named<'a>(built: &'a [Built], name: &str) -> Result<&'a Built> {
    built
        .iter()
        .find(|built| built.name == name)
        .with_context(|| format!("cargo has built no test binary `{name}`"))
}

/// Runs test binaries one after the other, to the last even where one fails.
///
/// # Errors
/// Names those that failed.
pub fn run_all(
    binaries: &[&Built],
    output: &Output,
    run: impl Fn(&Built, &Output) -> Result<()>,
) -> Result<()> {
    let mut failed = Vec::new();
    for binary in binaries {
        if let Err(error) = run(binary, output) {
            output.line(&format!("error: {error:#}"));
            failed.push(binary.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("tests failed in {}", failed.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_read_from_cargos_messages() {
        let text = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null,"profile":{"test":false},"manifest_path":"/w/a/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"programs"},"executable":"/t/programs-1","profile":{"test":true},"manifest_path":"/w/mesh-agent/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"b"},"executable":"/t/b","profile":{"test":false},"manifest_path":"/w/b/Cargo.toml"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"c"},"executable":"/t/c-1","profile":{"test":true},"manifest_path":"/w/c/Cargo.toml"}
{"reason":"build-finished","success":true}"#;
        let found = parse(text);
        let names: Vec<(&str, &[Part])> = found
            .iter()
            .map(|built| (built.name.as_str(), built.parts.as_slice()))
            .collect();
        assert_eq!(
            names,
            [
                ("programs", &[Part::Kernel, Part::Vm][..]),
                ("c", &[Part::Unit][..])
            ]
        );
        assert_eq!(found[0].folder, PathBuf::from("/w/mesh-agent"));
    }
}
