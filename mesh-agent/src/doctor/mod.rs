//! Examines the machine: what the kernel has, what this process may do, what Docker offers, and which
//! data path follows. Reads and probes only; leaves nothing changed. Imports the datapath's types of mode.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::datapath::InterfaceMode;

mod bpf;
mod host;
mod kernel;

pub use kernel::own_netns_cookie;

/// Where to look; the agent passes its own settings, `meshctl` the defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// Docker's Unix socket.
    pub docker_socket: PathBuf,
    /// Docker's data root; `None`: what `docker info` says.
    pub docker_root: Option<PathBuf>,
    /// Where the bpf file system is mounted.
    pub bpffs: PathBuf,
    /// A cgroup2 hierarchy; `None`: the one in the mount table.
    pub cgroup: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            docker_socket: "/var/run/docker.sock".into(),
            docker_root: None,
            bpffs: "/sys/fs/bpf".into(),
            cgroup: None,
        }
    }
}

/// Whose permissions counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Examiner {
    /// The running agent examined itself.
    Agent,
    /// No agent runs: `meshctl` examined with its own permissions.
    Meshctl,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The mesh works, but slower or with less.
    Warn,
    /// The mesh cannot work.
    Fail,
}

impl Outcome {
    /// The name in columns and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was examined.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when nothing needs doing.
    pub remedy: String,
}

impl Check {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Ok, detail.into(), String::new())
    }

    fn warn(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Outcome::Warn, detail.into(), remedy.into())
    }

    fn fail(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Outcome::Fail, detail.into(), remedy.into())
    }

    fn new(name: &str, outcome: Outcome, detail: String, remedy: String) -> Self {
        Self {
            name: name.to_owned(),
            outcome,
            detail,
            remedy,
        }
    }
}

/// Everything that was found, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The admin API's version.
    pub version: u32,
    /// Whose permissions counted.
    pub examiner: Examiner,
    /// Every check, in the order of dependence.
    pub checks: Vec<Check>,
    /// Whether the mesh can work on this node.
    pub works: bool,
    /// Which data path results, and why.
    pub conclusion: Vec<String>,
    /// What runs on each interface; empty when no agent runs.
    pub interfaces: Vec<InterfaceMode>,
}

/// Examines the machine with the permissions of this process. `interfaces` is what the agent runs, when
/// it is the agent that asks.
pub async fn examine(options: &Options, examiner: Examiner, interfaces: Vec<InterfaceMode>) -> Report {
    let mut checks = kernel::checks(options);
    checks.extend(host::capability_checks());
    checks.extend(host::docker_checks(options).await);
    let conclusion = conclude(&checks);
    Report {
        version: crate::admin::api::VERSION,
        examiner,
        works: checks.iter().all(|check| check.outcome != Outcome::Fail),
        checks,
        conclusion,
        interfaces,
    }
}

/// Which data path follows from the checks, one sentence for each part of it.
fn conclude(checks: &[Check]) -> Vec<String> {
    let ok = |name: &str| {
        let mut named = checks.iter().filter(|check| check.name == name);
        named.all(|check| check.outcome == Outcome::Ok)
    };
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Fail)
        .map(|check| check.name.as_str())
        .collect();
    if !failed.is_empty() {
        return vec![format!(
            "The mesh cannot work on this node: {}.",
            failed.join(", ")
        )];
    }
    let tc = if ok(kernel::name::TCX) {
        "tcx"
    } else {
        "the clsact qdisc"
    };
    let first = if ok(kernel::name::XDP) {
        format!(
            "Uplinks: XDP in the driver where it has it, else generic XDP, and tc by {tc}; a veth uplink \
             gets tc alone, because its packets arrive with unfinished checksums."
        )
    } else {
        format!("Uplinks: tc by {tc} alone, because XDP programs do not load.")
    };
    let local = if ok(kernel::name::CGROUP_HOOKS) {
        "Local processes: balanced by the cgroup hooks."
    } else {
        "Local processes: not balanced by the mesh (localhost and the node's own addresses), because the \
         cgroup hooks cannot be attached."
    };
    vec![first, local.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ok() -> Vec<Check> {
        use kernel::name::{CGROUP_HOOKS, TC, TCX, XDP};
        [XDP, TC, TCX, CGROUP_HOOKS]
            .map(|name| Check::ok(name, ""))
            .into()
    }

    fn with(name: &str, outcome: Outcome) -> String {
        let mut checks = all_ok();
        let check = checks.iter_mut().find(|check| check.name == name).unwrap();
        check.outcome = outcome;
        conclude(&checks).join("\n")
    }

    #[test]
    fn the_conclusion_names_the_fastest_path_there_is() {
        let text = conclude(&all_ok()).join("\n");
        assert!(text.contains("XDP in the driver"), "{text}");
        assert!(text.contains("tcx"), "{text}");
        assert!(text.contains("balanced by the cgroup hooks"), "{text}");
    }

    #[test]
    fn what_is_missing_changes_the_conclusion() {
        assert!(with(kernel::name::TCX, Outcome::Warn).contains("clsact"));
        assert!(with(kernel::name::XDP, Outcome::Warn).contains("tc by tcx alone"));
        assert!(with(kernel::name::CGROUP_HOOKS, Outcome::Warn).contains("not balanced"));
        assert!(with(kernel::name::TC, Outcome::Fail).contains("cannot work on this node: tc programs"),);
    }

    /// Needs root.
    #[tokio::test]
    async fn an_examination_of_this_machine_has_a_remedy_for_every_trouble() {
        let options = Options {
            docker_socket: "/nonexistent/docker.sock".into(),
            ..Options::default()
        };
        let report = examine(&options, Examiner::Meshctl, Vec::new()).await;
        assert!(!report.works, "there is no Docker behind that socket");
        for check in &report.checks {
            assert_eq!(check.remedy.is_empty(), check.outcome == Outcome::Ok, "{check:?}");
        }
    }
}
