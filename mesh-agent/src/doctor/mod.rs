//! Examines the machine: what the kernel has, what this process may do, what Docker offers, and which
//! data path follows. Reads and probes only; leaves nothing changed. Imports the datapath's types of mode.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::datapath::{DatapathKind, DatapathStatus, InterfaceMode, Rung, RungState, RungStatus};

mod bpf;
mod host;
mod ipvs;
mod kernel;
mod network;

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
    /// Whether the agent schedules tasks itself, on a node that is in no Swarm.
    pub orchestrator: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            docker_socket: "/var/run/docker.sock".into(),
            docker_root: None,
            bpffs: "/sys/fs/bpf".into(),
            cgroup: None,
            orchestrator: false,
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
    /// Every rung of the data path: the agent's own, or else what this kernel offers.
    #[serde(default)]
    pub rungs: Vec<RungStatus>,
}

/// What the agent that examines itself runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// The data path of each interface.
    pub interfaces: Vec<InterfaceMode>,
    /// The data path of the node.
    pub datapath: DatapathStatus,
}

/// Examines the machine with the permissions of this process. `running` is what the agent runs, when it
/// is the agent that asks.
pub async fn examine(options: &Options, examiner: Examiner, running: Option<Running>) -> Report {
    let mut ebpf = kernel::checks(options);
    ebpf.extend(host::ebpf_capability_checks());
    let mut ipvs = ipvs::checks().await;
    let mut common = host::capability_checks();
    common.extend(host::docker_checks(options).await);

    let rungs = match &running {
        Some(running) => running.datapath.rungs.clone(),
        None => offered(&ebpf, &ipvs),
    };
    let mut conclusion = conclude(&ebpf, &ipvs, &common);
    let on_ipvs = match &running {
        Some(running) => running.datapath.kind == DatapathKind::Ipvs,
        None => !works(&ebpf) && works(&ipvs),
    };
    if on_ipvs {
        conclusion.extend(LOST_ON_IPVS.map(str::to_owned));
    }
    settle(&mut ebpf, &mut ipvs);
    let checks = [ebpf, ipvs, common].concat();
    let interfaces = running.map(|running| running.interfaces).unwrap_or_default();
    let uplinks = interfaces.iter().map(|mode| mode.interface.clone());
    conclusion.extend(network::limit(uplinks.collect()));
    Report {
        version: crate::admin::api::VERSION,
        examiner,
        works: works(&checks),
        checks,
        conclusion,
        interfaces,
        rungs,
    }
}

/// What a node on IPVS does without, beside its speed.
const LOST_ON_IPVS: [&str; 7] = [
    "Lost on IPVS: replicas on other nodes see the entry node's address instead of the client's.",
    "Lost on IPVS: published ports are subject to the host firewall's INPUT rules.",
    "Lost on IPVS: containers on other Docker bridges than docker_gwbridge do not reach published ports on \
     their own node's addresses by the mesh.",
    "Lost on IPVS: direct return (--return-mode dsr); replies always pass the entry node.",
    "Lost on IPVS: drop counters by hook and reason.",
    "Lost on IPVS: local processes that dial ::1.",
    "Lost on IPVS: nodes on eBPF and nodes on IPVS do not send to each other's replicas.",
];

fn works(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Fail)
}

fn failed(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail);
    let names: Vec<_> = failed.map(|check| check.name.as_str()).collect();
    names.join(", ")
}

/// What one of the two data paths lacks is no failure while the other works.
fn settle(ebpf: &mut [Check], ipvs: &mut [Check]) {
    let spared = match (works(ebpf), works(ipvs)) {
        (true, _) => ipvs,
        (false, true) => ebpf,
        (false, false) => return,
    };
    for check in spared {
        check.outcome = check.outcome.min(Outcome::Warn);
    }
}

/// Which rungs the kernel offers. Whether an uplink's driver takes XDP shows when it is attached.
fn offered(ebpf: &[Check], ipvs: &[Check]) -> Vec<RungStatus> {
    let problem = |checks: &[Check], names: &[&str]| {
        let bad = checks
            .iter()
            .find(|check| names.contains(&check.name.as_str()) && check.outcome != Outcome::Ok);
        let failing = checks.iter().find(|check| check.outcome == Outcome::Fail);
        failing
            .or(bad)
            .map(|check| format!("{}: {}", check.name, check.detail))
    };
    Rung::ALL
        .into_iter()
        .map(|rung| {
            let problem = match rung {
                Rung::XdpNativeTcx => problem(ebpf, &[kernel::name::XDP, kernel::name::TCX]),
                Rung::XdpNativeClsact | Rung::XdpGeneric => problem(ebpf, &[kernel::name::XDP]),
                Rung::Tc => problem(ebpf, &[]),
                Rung::Ipvs => problem(ipvs, &[]),
            };
            RungStatus {
                rung,
                state: match problem {
                    Some(_) => RungState::Refused,
                    None => RungState::Offered,
                },
                reason: problem.unwrap_or_default(),
            }
        })
        .collect()
}

/// Which data path follows from the checks, one sentence for each part of it.
fn conclude(ebpf: &[Check], ipvs: &[Check], common: &[Check]) -> Vec<String> {
    if !works(ebpf) && !works(ipvs) {
        return vec![format!(
            "The mesh cannot work on this node: for eBPF this is wrong: {}; for IPVS: {}.",
            failed(ebpf),
            failed(ipvs)
        )];
    }
    if !works(common) {
        return vec![format!("The mesh cannot work on this node: {}.", failed(common))];
    }
    if !works(ebpf) {
        return vec![format!(
            "Data path: IPVS, because this is wrong for eBPF: {}.",
            failed(ebpf)
        )];
    }
    let mut sentences = conclude_ebpf(ebpf);
    sentences.push(if works(ipvs) {
        "Should eBPF be refused, IPVS takes its place.".to_owned()
    } else {
        format!(
            "Should eBPF be refused, nothing takes its place: for IPVS this is wrong: {}.",
            failed(ipvs)
        )
    });
    sentences
}

fn conclude_ebpf(checks: &[Check]) -> Vec<String> {
    let ok = |name: &str| {
        let mut named = checks.iter().filter(|check| check.name == name);
        named.all(|check| check.outcome == Outcome::Ok)
    };
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

    fn ipvs(outcome: Outcome) -> Vec<Check> {
        vec![Check {
            outcome,
            ..Check::warn("IPVS", "no such family", "load it")
        }]
    }

    fn with(name: &str, outcome: Outcome) -> Vec<Check> {
        let mut checks = all_ok();
        let check = checks.iter_mut().find(|check| check.name == name).unwrap();
        check.outcome = outcome;
        checks
    }

    fn conclusion(ebpf: &[Check], ipvs: &[Check]) -> String {
        conclude(ebpf, ipvs, &[]).join("\n")
    }

    #[test]
    fn the_conclusion_names_the_fastest_path_there_is() {
        let text = conclusion(&all_ok(), &ipvs(Outcome::Ok));
        assert!(text.contains("XDP in the driver"), "{text}");
        assert!(text.contains("tcx"), "{text}");
        assert!(text.contains("balanced by the cgroup hooks"), "{text}");
        assert!(text.contains("IPVS takes its place"), "{text}");
    }

    #[test]
    fn what_is_missing_changes_the_conclusion() {
        let without = |name| conclusion(&with(name, Outcome::Warn), &ipvs(Outcome::Fail));
        assert!(without(kernel::name::TCX).contains("clsact"));
        assert!(without(kernel::name::XDP).contains("tc by tcx alone"));
        assert!(without(kernel::name::CGROUP_HOOKS).contains("not balanced"));
        assert!(without(kernel::name::TCX).contains("nothing takes its place: for IPVS this is wrong: IPVS"));
    }

    #[test]
    fn one_data_path_is_enough() {
        let no_tc = with(kernel::name::TC, Outcome::Fail);
        let text = conclusion(&no_tc, &ipvs(Outcome::Ok));
        assert!(
            text.starts_with("Data path: IPVS, because this is wrong for eBPF: tc programs"),
            "{text}"
        );
        let (mut ebpf, mut other) = (no_tc.clone(), ipvs(Outcome::Ok));
        settle(&mut ebpf, &mut other);
        assert!(works(&ebpf), "a warning, as the other works");

        let (mut ebpf, mut other) = (no_tc.clone(), ipvs(Outcome::Fail));
        settle(&mut ebpf, &mut other);
        assert!(!works(&ebpf) && !works(&other));
        assert!(conclusion(&ebpf, &other).contains("cannot work on this node"));
    }

    #[test]
    fn the_rungs_that_a_kernel_offers_follow_from_what_it_takes() {
        let states = |ebpf: &[Check]| {
            let rungs = offered(ebpf, &ipvs(Outcome::Fail)).into_iter();
            rungs
                .map(|status| status.state == RungState::Offered)
                .collect::<Vec<_>>()
        };
        assert_eq!(states(&all_ok()), [true, true, true, true, false]);
        let without = |name| states(&with(name, Outcome::Warn));
        assert_eq!(without(kernel::name::TCX), [false, true, true, true, false]);
        assert_eq!(without(kernel::name::XDP), [false, false, false, true, false]);
        assert_eq!(states(&with(kernel::name::TC, Outcome::Fail)), [false; 5]);
    }

    /// Needs root.
    #[tokio::test]
    async fn an_examination_of_this_machine_has_a_remedy_for_every_trouble() {
        let options = Options {
            docker_socket: "/nonexistent/docker.sock".into(),
            ..Options::default()
        };
        let report = examine(&options, Examiner::Meshctl, None).await;
        assert!(!report.works, "there is no Docker behind that socket");
        for check in &report.checks {
            assert_eq!(check.remedy.is_empty(), check.outcome == Outcome::Ok, "{check:?}");
        }
    }
}
