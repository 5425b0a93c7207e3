//! Checks the machine: what the kernel supports, what this process may do, what Docker offers, and which data
//! path results. Only reads and probes; leaves nothing changed.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, path::PathBuf, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    config::{DEFAULT_FEED_PORT, DEFAULT_GENEVE_PORT},
    datapath::{DatapathKind, DatapathStatus, InterfaceMode, Rung, RungState, RungStatus},
    discovery::default_route_interfaces,
};

mod advertisements;
mod bpf;
mod feed;
mod firewall;
mod host;
mod ipvs;
mod kernel;
mod network;
mod path_mtu;
mod peers;

pub use self::peers::PeerFacts;

/// Paths to check; the agent passes its own settings, `meshctl` the defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// Docker's Unix socket.
    pub docker_socket: PathBuf,
    /// Docker's data root; by default the one that `docker info` reports.
    pub docker_root: Option<PathBuf>,
    /// Where the bpf file system is mounted.
    pub bpffs: PathBuf,
    /// A cgroup2 hierarchy; by default the first one in the mount table.
    pub cgroup: Option<PathBuf>,
    /// Whether the agent runs with `--orchestrator`, on a node outside any Swarm.
    pub orchestrator: bool,
    /// TCP port on managers, for other nodes' agents.
    pub feed_port: u16,
    /// UDP port of Geneve.
    pub geneve_port: u16,
    /// What a node without access to the orchestrator's store needs in addition.
    pub worker: Option<Arc<dyn WorkerChecks>>,
}

/// The checks of a node without access to the orchestrator's store: its certificates and its managers.
#[async_trait]
pub trait WorkerChecks: fmt::Debug + Send + Sync {
    /// Makes them.
    async fn checks(&self) -> Vec<Check>;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            docker_socket: "/var/run/docker.sock".into(),
            docker_root: None,
            bpffs: "/sys/fs/bpf".into(),
            cgroup: None,
            orchestrator: false,
            feed_port: DEFAULT_FEED_PORT,
            geneve_port: DEFAULT_GENEVE_PORT,
            worker: None,
        }
    }
}

/// The process that ran the checks, with its permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Examiner {
    /// The running agent.
    Agent,
    /// `meshctl`, because no agent is running.
    Meshctl,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing to do.
    Ok,
    /// The mesh works, but slower or with fewer features.
    Warn,
    /// The mesh cannot work, or not with some of the other nodes.
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

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when nothing needs doing.
    pub remedy: String,
}

impl Check {
    pub(crate) fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Ok, detail.into(), String::new())
    }

    pub(crate) fn warn(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Outcome::Warn, detail.into(), remedy.into())
    }

    pub(crate) fn fail(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
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

/// Every check, and the data path that results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process that ran the checks.
    pub examiner: Examiner,
    /// Every check; later ones depend on earlier ones.
    pub checks: Vec<Check>,
    /// Whether the mesh can work on this node.
    pub works: bool,
    /// The resulting data path and its limits, one sentence each.
    pub conclusion: Vec<String>,
    /// The data path of each interface; empty when no agent is running.
    pub interfaces: Vec<InterfaceMode>,
    /// Every rung of the data path: the running agent's, or else what this kernel offers.
    #[serde(default)]
    pub rungs: Vec<RungStatus>,
}

/// The data path that a running agent uses.
#[derive(Clone, Debug)]
pub struct Running {
    /// The data path of each interface.
    pub interfaces: Vec<InterfaceMode>,
    /// The data path of the node.
    pub datapath: DatapathStatus,
    /// The address that other nodes send to, once it is known.
    pub node_address: Option<Ipv4Addr>,
    /// The interfaces on which the mesh sees packets from outside.
    pub uplinks: BTreeSet<String>,
    /// The interfaces that lead to other nodes and have no hook, one line each.
    pub missing_hooks: Vec<String>,
    /// The other nodes.
    pub peers: Vec<PeerFacts>,
    /// Why it does not serve IPv6; `None` if it does.
    pub ipv6_left: Option<String>,
    /// Why the other nodes are not probed, although there are some.
    pub probe_trouble: Option<String>,
    /// What it could not do, one sentence each.
    pub problems: Vec<String>,
}

/// Checks the machine with the permissions of this process. `running` is the agent's data path, if the agent
/// itself calls.
pub async fn examine(options: &Options, examiner: Examiner, running: Option<Running>) -> Report {
    let mut ebpf = kernel::checks(options);
    ebpf.extend(host::ebpf_capability_checks());
    let mut ipvs = ipvs::checks().await;
    let mut common = host::capability_checks();
    let docker = host::docker_checks(options).await;
    common.extend(docker.checks);
    if let Some(worker) = &options.worker {
        common.extend(worker.checks().await);
    }
    let mut cluster = Vec::new();
    match &running {
        Some(running) => {
            let address = running.node_address;
            common.extend(address.map(|address| network::node_address(address, Some(&running.uplinks))));
            common.push(network::hooks(&running.missing_hooks));
            common.extend(advertisements::check(&running.uplinks));
            cluster = cluster_checks(options, running);
        }
        None => {
            let address = docker.node_address;
            common.extend(address.map(|address| network::node_address(address, None)));
            let uplinks = default_route_interfaces().unwrap_or_default();
            common.extend(advertisements::check(&uplinks));
        }
    }

    let rungs = match &running {
        Some(running) => running.datapath.rungs.clone(),
        None => offered(&ebpf, &ipvs),
    };
    let mut conclusion = conclude(&ebpf, &ipvs, &common);
    let problems = running.iter().flat_map(|running| &running.problems);
    conclusion.extend(problems.map(|problem| format!("Problem: {problem}.")));
    if !works(&cluster) {
        let failed = failed(&cluster);
        conclusion.push(format!(
            "Problem: the mesh may not work with some other nodes; failed checks: {failed}."
        ));
    }
    let on_ipvs = match &running {
        Some(running) => running.datapath.kind == DatapathKind::Ipvs,
        None => !works(&ebpf) && works(&ipvs),
    };
    if on_ipvs {
        conclusion.extend(IPVS_LIMITS.map(str::to_owned));
    }
    // IPVS needs no hooks.
    let on_ebpf = running
        .iter()
        .filter(|running| running.datapath.kind == DatapathKind::Ebpf);
    conclusion.extend(on_ebpf.filter_map(|running| network::unseen(&running.uplinks)));
    if !on_ipvs {
        conclusion.extend(firewall::limit());
    }
    tolerate_one_failure(&mut ebpf, &mut ipvs);
    let checks = [ebpf, ipvs, common, cluster].concat();
    let ipv6_left = match &running {
        Some(running) => running.ipv6_left.clone(),
        None => network::ipv6_left(on_ipvs),
    };
    let interfaces = running.map(|running| running.interfaces).unwrap_or_default();
    let uplinks = interfaces.iter().map(|mode| mode.interface.clone());
    conclusion.extend(ipv6_left.and_then(|reason| network::limit(uplinks.collect(), &reason)));
    Report {
        examiner,
        works: works(&checks),
        checks,
        conclusion,
        interfaces,
        rungs,
    }
}

/// What the running agent knows of the other nodes.
fn cluster_checks(options: &Options, running: &Running) -> Vec<Check> {
    let Running { datapath, peers, .. } = running;
    let trouble = running.probe_trouble.as_deref();
    let mut checks = Vec::new();
    checks.extend(peers::announcements(datapath.kind, peers));
    checks.extend(peers::mesh_port(
        datapath.kind,
        options.geneve_port,
        peers,
        trouble,
        SystemTime::now(),
    ));
    checks.extend(path_mtu::path_mtu(peers));
    checks.extend(peers::releases(crate::RELEASE, peers));
    checks
}

/// What a node on IPVS lacks compared to eBPF, apart from speed.
const IPVS_LIMITS: [&str; 10] = [
    "IPVS limit: replicas on other nodes see the entry node's address instead of the client's.",
    "IPVS limit: the host firewall's INPUT rules apply to published ports.",
    "IPVS limit: what arrives for a replica that this node no longer has is not given to another one; connections \
     fail until the other nodes' snapshots follow.",
    "IPVS limit: replicas that do not answer are not passed over; only a task's health check takes them out.",
    "IPVS limit: packets between nodes carry no key; they are accepted by the address of the node that sends them.",
    "IPVS limit: what the path to another node carries is not measured; the kernel fragments what is too big.",
    "IPVS limit: no direct return (--return-mode dsr); replies always go through the entry node.",
    "IPVS limit: no drop counters by hook and reason.",
    "IPVS limit: connections of local processes to ::1 are not balanced.",
    "IPVS limit: nodes on eBPF and nodes on IPVS do not send to each other's replicas.",
];

fn works(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Fail)
}

fn failed(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail);
    let names: Vec<_> = failed.map(|check| check.name.as_str()).collect();
    names.join(", ")
}

/// Turns the failures of one data path into warnings while the other one works.
fn tolerate_one_failure(ebpf: &mut [Check], ipvs: &mut [Check]) {
    let tolerated = match (works(ebpf), works(ipvs)) {
        (true, _) => ipvs,
        (false, true) => ebpf,
        (false, false) => return,
    };
    for check in tolerated {
        check.outcome = check.outcome.min(Outcome::Warn);
    }
}

/// Which rungs the kernel offers. Whether an uplink's driver supports XDP shows only when a program is
/// attached.
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

/// The data path that results from the checks, one sentence for each part of it.
fn conclude(ebpf: &[Check], ipvs: &[Check], common: &[Check]) -> Vec<String> {
    if !works(ebpf) && !works(ipvs) {
        return vec![format!(
            "The mesh cannot work on this node: eBPF fails these checks: {}; IPVS fails these: {}.",
            failed(ebpf),
            failed(ipvs)
        )];
    }
    if !works(common) {
        return vec![format!(
            "The mesh cannot work on this node; failed checks: {}.",
            failed(common)
        )];
    }
    if !works(ebpf) {
        return vec![format!(
            "Data path: IPVS, because eBPF fails these checks: {}.",
            failed(ebpf)
        )];
    }
    let mut sentences = conclude_ebpf(ebpf);
    sentences.push(if works(ipvs) {
        "If the kernel refuses eBPF later, the agent falls back to IPVS.".to_owned()
    } else {
        format!(
            "If the kernel refuses eBPF later, there is no fallback: IPVS fails these checks: {}.",
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
            "Uplinks: native XDP where the driver supports it, plus tc through {tc}; veth uplinks use tc only, \
             because their packets arrive with unfinished checksums."
        )
    } else {
        format!("Uplinks: tc through {tc} only, because XDP programs do not load.")
    };
    let local = if ok(kernel::name::CGROUP_HOOKS) {
        "Local processes: balanced through the cgroup hooks."
    } else {
        "Local processes: not balanced (localhost and the node's own addresses), because the cgroup hooks cannot \
         be attached."
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
            ..Check::warn("IPVS", "no such family", "load the module")
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
    fn the_conclusion_names_the_fastest_available_path() {
        let text = conclusion(&all_ok(), &ipvs(Outcome::Ok));
        assert!(text.contains("native XDP where the driver supports it"), "{text}");
        assert!(text.contains("tcx"), "{text}");
        assert!(text.contains("balanced through the cgroup hooks"), "{text}");
        assert!(text.contains("falls back to IPVS"), "{text}");
    }

    #[test]
    fn what_is_missing_changes_the_conclusion() {
        let without = |name| conclusion(&with(name, Outcome::Warn), &ipvs(Outcome::Fail));
        assert!(without(kernel::name::TCX).contains("clsact"));
        assert!(without(kernel::name::XDP).contains("tc through tcx only"));
        assert!(without(kernel::name::CGROUP_HOOKS).contains("not balanced"));
        assert!(without(kernel::name::TCX).contains("there is no fallback: IPVS fails these checks: IPVS"));
    }

    #[test]
    fn one_data_path_is_enough() {
        let no_tc = with(kernel::name::TC, Outcome::Fail);
        let text = conclusion(&no_tc, &ipvs(Outcome::Ok));
        assert!(
            text.starts_with("Data path: IPVS, because eBPF fails these checks: tc programs"),
            "{text}"
        );
        let (mut ebpf, mut other) = (no_tc.clone(), ipvs(Outcome::Ok));
        tolerate_one_failure(&mut ebpf, &mut other);
        assert!(works(&ebpf), "only a warning while IPVS works");

        let (mut ebpf, mut other) = (no_tc.clone(), ipvs(Outcome::Fail));
        tolerate_one_failure(&mut ebpf, &mut other);
        assert!(!works(&ebpf) && !works(&other));
        assert!(conclusion(&ebpf, &other).contains("cannot work on this node"));
    }

    #[test]
    fn a_failed_check_rules_out_the_rungs_that_need_it() {
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
    async fn every_check_on_this_machine_that_is_not_ok_has_a_remedy() {
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
